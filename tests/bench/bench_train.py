"""Training throughput on this CPU: compiled bf16 beside eager fp32 of the same model and optimizer.

    python -m tests.bench.bench_train

4 layers x 256, V = 4,096, T = 256, B = 16 rows; steps of both sides take turns in one process, so that a busy
neighbour slows both; the minimum counts. A step is forward, backward, update and zeroed gradients. The bf16
GEMM roof is that of a 2,048 x 2,048 x 2,048 product, measured between the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, OptimHyper
from nanochat.shape import Arch, Shape
from tests.bench.row import Row

STEPS = 20
ROWS = 16
GEMM = 2048
COMMAND = "python -m tests.bench train"


def trainer(arch: Arch, dtype: torch.dtype, *, compiled: bool) -> Callable[[], None]:
    """Return one training step on a fixed random batch."""
    shape = Shape.from_depth(4, arch=arch, vocab_size=4096, seq_len=256)
    model = GPT(shape, dtype=dtype)
    model.init_weights(0)
    half = dtype == torch.bfloat16
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) if arch == "classic" else None
    # As in training on a CPU, the update runs eager: compiling it takes longer than it saves.
    muon = MuonAdamW(model, OptimHyper.for_shape(shape, lr_scale=0.05, muon_bf16=half))
    loss = torch.compile(model, dynamic=False) if compiled else model
    ids = torch.randint(
        shape.vocab_size, (ROWS, shape.seq_len + 1), generator=torch.Generator().manual_seed(0)
    )
    inputs_BT, targets_BT = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        loss(inputs_BT, targets_BT).backward()
        if adamw is not None:
            adamw.step()
        else:
            muon.step(lr_mult=1.0, muon_momentum=0.95, muon_wd=0.1)
        muon.zero_grad()

    return step


def gemm() -> Callable[[], None]:
    """Return one square bf16 product."""
    a, b = (torch.randn(GEMM, GEMM).to(torch.bfloat16) for _ in range(2))
    out = torch.empty(GEMM, GEMM, dtype=torch.bfloat16)

    def product() -> None:
        torch.mm(a, b, out=out)

    return product


def fastest(sides: dict[str, Callable[[], None]], steps: int = STEPS) -> dict[str, float]:
    """Return each side's fastest step in seconds, the sides taking turns."""
    for step in sides.values():
        step()
        step()
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(steps):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def row(arch: Arch, *, optimizer: str, bound: float) -> Row:
    """Measure one architecture."""
    torch.compiler.reset()
    best = fastest(
        {
            "eager": trainer(arch, torch.float32, compiled=False),
            "compiled": trainer(arch, torch.bfloat16, compiled=True),
            "gemm": gemm(),
        }
    )
    shape = Shape.from_depth(4, arch=arch, vocab_size=4096, seq_len=256)
    tokens = ROWS * shape.seq_len
    rates = {side: tokens / best[side] for side in ("eager", "compiled")}
    reached = rates["compiled"] * shape.flops_per_token() / 1e9
    roof = 2 * GEMM**3 / best["gemm"] / 1e9
    return Row(
        name=f"training step, {arch} with {optimizer}: compiled bf16 over eager fp32",
        figure=round(rates["compiled"] / rates["eager"], 2),
        unit="x",
        bound=bound,
        better="higher",
        peer="eager fp32, tok/s",
        peer_figure=round(rates["eager"]),
        ratio=round(rates["compiled"] / rates["eager"], 2),
        command=COMMAND,
        notes=f"{rates['compiled']:,.0f} tok/s compiled bf16 = {reached:.0f} GFLOP/s of a bf16 GEMM roof of"
        f" {roof:.0f}; {torch.get_num_threads()} threads, minimum of {STEPS} steps",
    )


def rows() -> list[Row]:
    """Measure both architectures."""
    return [
        row("modern", optimizer="MuonAdamW", bound=2.2),
        row("classic", optimizer="AdamW", bound=2.5),
    ]


if __name__ == "__main__":
    for bar in rows():
        print(f"{bar.name}: {bar.figure} (bound {bar.bound}); {bar.peer_figure} {bar.peer}")
        print(f"  {bar.notes}; load {bar.load}")

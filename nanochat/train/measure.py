"""Speed of base training here, from three steps: `python -m nanochat.train.measure --preset tiny`.

Prints one JSON object; a plan multiplies it by the horizon. Times one micro-batch and one
optimizer update, compiled as training would, on random ids. Knows nothing of data or of plans.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nanochat.errors import NanochatError
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, OptimHyper, base_schedule
from nanochat.settings import Topology, home
from nanochat.shape import Preset, resolve
from nanochat.train.runtime import Runtime, compiles, loss_function, runtime

TIMED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """The fields of a run's configuration that decide its speed."""

    preset: str
    depth: int | None = None
    device_batch_size: int | None = None
    steps: int | None = None


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nanochat.train.measure", description=__doc__)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--device-batch-size", type=int)
    parser.add_argument("--steps", type=int, help="horizon that decides whether compiling pays")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument(
        "--cache", type=Path, help="where compiled kernels are kept (default: the home's cache)"
    )
    args = parser.parse_args(argv)
    try:
        preset = resolve(Asked(args.preset, args.depth, args.device_batch_size, args.steps))
        figures = measure(preset, dtype=args.dtype, cache=args.cache or home().cache)
    except NanochatError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    print(json.dumps(figures))
    return 0


def measure(
    preset: Preset,
    *,
    dtype: Literal["auto", "bf16", "fp32"] = "auto",
    cache: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Return the figures: tok_per_s of a whole step of one rank, and what it is made of."""
    topology = Topology()
    with runtime(dtype=dtype, deterministic=False, seed=0, topology=topology, cache=cache) as place:
        first, micro, update = _time_steps(preset, place, clock)
        step_s = preset.accumulation() * micro + update
        peak = place.peak_flops()
        tok_per_s = preset.total_batch_tokens / step_s
        return {
            "preset": preset.name,
            "depth": preset.shape.depth,
            "device": place.device.name,
            "dtype": str(place.dtype).removeprefix("torch."),
            "compiled": compiles(place, _flops(preset)),
            "threads": torch.get_num_threads(),
            "tok_per_s": round(tok_per_s, 1),
            "step_s": round(step_s, 5),
            "micro_batch_s": round(micro, 5),
            "optimizer_s": round(update, 5),
            "first_step_s": round(first, 3),
            "mfu": round(tok_per_s * preset.shape.flops_per_token() / peak, 4) if peak else None,
        }


def _flops(preset: Preset) -> float:
    return preset.shape.flops_per_token() * preset.total_batch_tokens * preset.base_steps


def _time_steps(preset: Preset, place: Runtime, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Return seconds of the first step (compilation included), a micro-batch, and an optimizer update."""
    shape, rows, half = preset.shape, preset.device_batch_size, place.dtype == torch.bfloat16
    on_gpu = place.device.kind == "cuda"
    table = torch.bfloat16 if half and on_gpu else torch.float32
    model = GPT(shape, dtype=place.dtype, table_dtype=table, device=place.device.torch)
    model.init_weights(0)
    compiled = on_gpu and compiles(place, _flops(preset))
    optimizer = MuonAdamW(model, OptimHyper.for_preset(preset, muon_bf16=half, compiled=compiled))
    loss_fn = loss_function(model, place, flops=_flops(preset))
    hyper = base_schedule(preset).at(preset.base_steps // 2)
    ids = torch.randint(shape.vocab_size, (rows, shape.seq_len + 1)).to(place.device.torch)
    inputs_BT, targets_BT = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    micro, update, first = [], [], 0.0
    for step in range(TIMED_STEPS + 1):
        place.synchronize()
        began = clock()
        (loss_fn(inputs_BT, targets_BT).sum() / targets_BT.numel()).backward()  # type: ignore[no-untyped-call]
        place.synchronize()
        middle = clock()
        optimizer.step(lr_mult=hyper.lr_mult, muon_momentum=hyper.muon_momentum, muon_wd=hyper.muon_wd)
        optimizer.zero_grad()
        place.synchronize()
        ended = clock()
        if step == 0:
            first = ended - began
        else:
            micro.append(middle - began)
            update.append(ended - middle)
    return first, min(micro), min(update)


if __name__ == "__main__":
    sys.exit(main())

"""What a training process computes with: device, arithmetic, compilation, its group of ranks.

The one place that touches torch's process-wide switches. Knows nothing of data,
schedules or checkpoints.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nanochat.device import Device, select_device
from nanochat.gpt import GPT
from nanochat.settings import Topology, tell_libraries

# Below this many FLOPs a CPU is done before a compiler pays: 12-24 s to compile cold, 4 s warm, against
# about 40% of the eager time at 200 GFLOP/s (2 cores, torch 2.15, 2026).
COMPILE_FROM_CPU_FLOPS = 5e12

LossFn = Callable[[Tensor, Tensor], Tensor]
"""(ids_BT, targets_BT) -> fp32 loss_BT in nats, 0 where the target is -1."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Device, arithmetic and group of this rank."""

    device: Device
    dtype: torch.dtype
    topology: Topology = field(default_factory=Topology)
    deterministic: bool = False

    @property
    def is_main(self) -> bool:
        """True on the rank that talks, decides by the clock and exports."""
        return self.topology.rank == 0

    def to_device(self, rows: NDArray[np.int64]) -> Tensor:
        """Copy [rows, T] int64 to the device; through pinned memory, without waiting, on CUDA."""
        tensor = torch.from_numpy(rows)
        if self.device.kind != "cuda":
            return tensor.to(self.device.torch)
        return tensor.pin_memory().to(self.device.torch, non_blocking=True)

    def sum(self, *values: float) -> list[float]:
        """Return the sums of `values` over all ranks; every rank must call it."""
        if self.topology.world_size == 1:
            return list(values)
        kind = torch.float32 if self.device.kind == "mps" else torch.float64
        tensor = torch.tensor(values, dtype=kind, device=self.device.torch)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def synchronize(self) -> None:
        """Wait for the device, so that a clock measures work and not its announcement."""
        if self.device.kind == "cuda":
            torch.cuda.synchronize()
        elif self.device.kind == "mps":
            torch.mps.synchronize()

    def peak_flops(self) -> float | None:
        """Return the published peak of all ranks' devices in the compute type, None where unknown."""
        peak = self.device.peak_flops
        return peak * self.topology.world_size if peak else None


@contextlib.contextmanager
def runtime(
    *,
    dtype: Literal["auto", "bf16", "fp32"],
    deterministic: bool,
    seed: int,
    topology: Topology,
    cache: Path | None = None,
) -> Iterator[Runtime]:
    """Select the device, set torch's switches and join the group of ranks, for the duration of the block.

    `cache` keeps compiled kernels between processes.
    """
    if cache is not None:
        # torch reads these when it first compiles; child processes of the compiler inherit them.
        tell_libraries(TORCHINDUCTOR_CACHE_DIR=str(cache / "inductor"))
    device = select_device()
    if device.kind == "cuda":
        torch.cuda.set_device(topology.local_rank)
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high" if not deterministic else "highest")
    _set_deterministic(deterministic)
    chosen = {"auto": device.dtype, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    joined = topology.world_size > 1 and not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if device.kind == "cuda" else "gloo")
    try:
        yield Runtime(device=device, dtype=chosen, topology=topology, deterministic=deterministic)
    finally:
        _set_deterministic(False)
        if joined:
            dist.destroy_process_group()


def _set_deterministic(on: bool) -> None:
    if on:
        tell_libraries(CUBLAS_WORKSPACE_CONFIG=":4096:8")  # without it cuBLAS may sum in another order
    torch.use_deterministic_algorithms(on)
    # Filling fresh memory costs a pass over it and hides nothing: every parameter is written anyway.
    torch.utils.deterministic.fill_uninitialized_memory = not on  # type: ignore[attr-defined]


def loss_function(model: GPT, runtime: Runtime, *, flops: float) -> LossFn:
    """Return the model's loss, compiled where that pays off for `flops` of work, else eager.

    One graph serves training and validation: validation runs it without a backward
    pass, because a second compilation costs more than what it would save.
    """

    def eager(ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        loss_BT: Tensor = model(ids_BT, targets_BT, reduction="none")
        return loss_BT

    if compiles(runtime, flops):
        compiled: LossFn = torch.compile(eager, dynamic=False)
        return compiled
    if _wants_compiler(runtime, flops) and runtime.is_main and runtime.device.kind != "mps":
        kind, why = str(runtime.dtype).removeprefix("torch."), runtime.device.why
        print(f"warning: training runs eager {kind}, up to half as fast as compiled: {why}", file=sys.stderr)
    return eager


def compiles(runtime: Runtime, flops: float) -> bool:
    """Return whether `flops` of training are worth a compilation, and the machine is able to."""
    return _wants_compiler(runtime, flops) and runtime.device.compile_ok


def _wants_compiler(runtime: Runtime, flops: float) -> bool:
    if runtime.deterministic:  # a compiled graph may differ between processes, eager kernels do not
        return False
    return runtime.device.kind != "cpu" or flops >= COMPILE_FROM_CPU_FLOPS


class FrozenGarbage:
    """Stops Python's garbage collector from walking what a training step never frees: pauses of 0.5 s at d24.

    Call `freeze` after the first step; leaving the block restores the collector.
    """

    def __enter__(self) -> FrozenGarbage:
        self._frozen = False
        return self

    def freeze(self) -> None:
        """Collect once, then leave all that lives alone."""
        if not self._frozen:
            gc.collect()
            gc.freeze()
            gc.disable()
            self._frozen = True

    def __exit__(self, *_: object) -> None:
        if self._frozen:
            gc.enable()
            gc.unfreeze()

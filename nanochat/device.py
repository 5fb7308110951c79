"""Which device computes, in which type, and whether `torch.compile` can work there: one function.

What the machine has is asked through a `Probe`, so that tests decide for a CUDA or
MPS machine on any laptop. Knows nothing of models.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import device as TorchDevice
from torch import dtype as Dtype

Kind = Literal["cpu", "cuda", "mps"]

BF16_CAPABILITY = (8, 0)  # Ampere and newer multiply bf16 in tensor cores

# Dense bf16 peaks as published; MFU counts against them.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The chosen device and what follows from it."""

    kind: Kind
    torch: TorchDevice
    dtype: Dtype
    """Compute type: bf16 where the hardware multiplies it faster than fp32, else fp32."""
    name: str
    peak_flops: float | None
    """Published dense bf16 peak in FLOP/s; None where unknown."""
    compile_ok: bool
    why: str | None
    """Why `compile_ok` is False, with the fix; None otherwise."""


class Probe(Protocol):
    """What a machine has."""

    def cuda(self) -> tuple[str, tuple[int, int]] | None:
        """Return name and compute capability of the CUDA device of this rank, or None."""
        ...

    def mps(self) -> bool:
        """Return whether Apple's Metal back end works."""
        ...

    def cpu(self) -> tuple[str, bool]:
        """Return the processor's name and whether it multiplies bf16 natively."""
        ...

    def compiler(self) -> str | None:
        """Return what torch.compile lacks to build its kernels, or None."""
        ...


class TorchProbe:
    """Asks torch and the operating system."""

    def cuda(self) -> tuple[str, tuple[int, int]] | None:
        """See `Probe.cuda`."""
        if not torch.cuda.is_available():
            return None
        return torch.cuda.get_device_name(), torch.cuda.get_device_capability()

    def mps(self) -> bool:
        """See `Probe.mps`."""
        return torch.backends.mps.is_available()

    def cpu(self) -> tuple[str, bool]:
        """See `Probe.cpu`."""
        name, flags = platform.processor() or platform.machine(), ""
        info = Path("/proc/cpuinfo")
        if info.exists():
            for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                name = value.strip() if key.strip() == "model name" else name
                if key.strip() in ("flags", "Features"):
                    flags = value
                    break
        return name, any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))

    def compiler(self) -> str | None:
        """See `Probe.compiler`."""
        wanted = "clang++" if sys.platform == "darwin" else "g++"
        if shutil.which(wanted) is None:
            return f"no C++ compiler on PATH: install {wanted} (Debian: apt install g++)"
        if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            minor = f"{sys.version_info.major}.{sys.version_info.minor}"
            return f"no Python.h: install the headers of Python {minor} (Debian: apt install python3-dev)"
        return None


def select_device(probe: Probe | None = None) -> Device:
    """Return the best device: CUDA, else Apple's MPS, else the CPU."""
    probe = TorchProbe() if probe is None else probe
    if (found := probe.cuda()) is not None:
        return _cuda(*found, lacks=probe.compiler())
    if probe.mps():
        return Device(
            kind="mps",
            torch=torch.device("mps"),
            dtype=torch.bfloat16,
            name="Apple MPS",
            peak_flops=None,
            compile_ok=False,
            why="torch.compile is not used on MPS",
        )
    name, native_bf16 = probe.cpu()
    lacks = probe.compiler()
    return Device(
        kind="cpu",
        torch=torch.device("cpu"),
        dtype=torch.bfloat16 if native_bf16 else torch.float32,
        name=name,
        peak_flops=None,
        compile_ok=lacks is None,
        why=lacks,
    )


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: those it is bound to, cut by its container's CPU limit.

    A pod with a limit of 4 CPUs still sees all cores of its node; one thread a core then spends its
    quota in the first milliseconds of each period and stands still for the rest.

    Args:
        root: where `/sys` is; a test's own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(root / "sys/fs/cgroup")
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the CPU limit in cores, of cgroup v2 or v1; None without one."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            limit = int(quota) / int(period)
        except (OSError, ValueError):  # no such file, or the word `max`
            continue
        if limit > 0:
            return limit
    return None


def _cuda(name: str, capability: tuple[int, int], *, lacks: str | None) -> Device:
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    return Device(
        kind="cuda",
        torch=torch.device("cuda"),
        dtype=torch.bfloat16 if capability >= BF16_CAPABILITY else torch.float32,
        name=name,
        peak_flops=peak,
        compile_ok=lacks is None,  # Triton builds a small C module for every kernel
        why=lacks,
    )

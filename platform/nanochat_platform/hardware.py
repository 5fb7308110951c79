"""Machines a run can be planned for: memory, peak, price and published training throughput, in one table.

Figures are other people's, with their sources; what this code reaches is measured on the machine itself.
Knows nothing of models or presets.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.errors import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """bf16 model FLOP utilisation that others reached at a depth, FLOPs as `Shape.flops_per_token`."""

    depth: int
    mfu: float
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One device as published."""

    title: str
    memory_bytes: int
    peak_flops: float
    """Dense bf16 FLOP/s of the datasheet."""
    usd_per_hour: float | None
    """Price of one device in a rented machine; None: none was published where the throughput was."""
    published: tuple[Published, ...]


_NANOCHAT = "karpathy/nanochat, leaderboard and development log, 2026"
_H100 = (
    Published(depth=8, mfu=0.398, source="karpathy/autoresearch, program.md sample, 2026"),
    Published(depth=12, mfu=0.415, source=_NANOCHAT),
    Published(depth=18, mfu=0.46, source=_NANOCHAT),
    Published(depth=20, mfu=0.475, source=_NANOCHAT),
    Published(depth=24, mfu=0.50, source=_NANOCHAT + ": 100K tok/s per GPU at depth 24"),
    Published(depth=26, mfu=0.493, source=_NANOCHAT + ": 630K tok/s on 8 GPUs at depth 26"),
    Published(depth=32, mfu=0.509, source="karpathy/nanochat, run1000, 2025: 41.7K tok/s per GPU"),
)

ACCELERATORS: dict[str, Accelerator] = {
    "h100": Accelerator(
        title="NVIDIA H100 SXM 80 GB",
        memory_bytes=80 * GIB,
        peak_flops=989e12,
        usd_per_hour=3.0,  # karpathy/nanochat, README, 2025: 8xH100 at $24 an hour
        published=_H100,
    ),
    "h200": Accelerator(
        title="NVIDIA H200 141 GB",
        memory_bytes=141 * 10**9,
        peak_flops=989e12,
        usd_per_hour=None,
        published=_H100,  # the same compute units; only its memory is faster
    ),
    "a100": Accelerator(
        title="NVIDIA A100 SXM 80 GB",
        memory_bytes=80 * GIB,
        peak_flops=312e12,
        usd_per_hour=1.79,  # Lambda, on-demand 8xA100 80 GB at $14.32 an hour, 2025
        published=(
            Published(depth=20, mfu=0.74, source="karpathy/nanochat, issue 147, 2025: 66K tok/s per GPU"),
        ),
    ),
    "rtx4090": Accelerator(
        title="NVIDIA RTX 4090 24 GB",
        memory_bytes=24 * GIB,
        peak_flops=165e12,
        usd_per_hour=None,
        published=(Published(depth=20, mfu=0.80, source="karpathy/nanochat, user report, 2025: 38K tok/s"),),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One machine, all of it for the run."""

    name: str
    kind: Literal["cpu", "mps", "cuda"]
    title: str
    devices: int
    memory_bytes: int
    """Of one device; of the whole machine for cpu and mps."""
    peak_flops: float | None
    """Of one device."""
    usd_per_hour: float | None
    """Of the whole machine."""
    published: tuple[Published, ...] = ()
    download_bytes_per_s: float
    """Assumed, not published: a laptop's line, a data centre's."""
    text_bytes_per_s: float
    """Assumed: training a tokenizer and tokenizing, all cores."""

    def mfu(self, depth: int) -> Published | None:
        """Return the published utilisation at a depth, linear in between and flat beyond; None: measure."""
        if not self.published:
            return None
        below = max((p for p in self.published if p.depth <= depth), key=lambda p: p.depth, default=None)
        above = min((p for p in self.published if p.depth >= depth), key=lambda p: p.depth, default=None)
        if below is None or above is None or below is above:
            return below or above
        part = (depth - below.depth) / (above.depth - below.depth)
        sources = dict.fromkeys((below.source, above.source))
        return Published(
            depth=depth, mfu=below.mfu + part * (above.mfu - below.mfu), source="; ".join(sources)
        )


def local_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return this machine's memory, or the container's limit where that is lower."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = cgroup.read_text(encoding="ascii").strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole


def names() -> list[str]:
    """Return the names that `find` is documented with; any count from 1 to 8 works too."""
    return ["cpu", "mps", *(f"{count}x{name}" for name in ACCELERATORS for count in (1, 8))]


def find(name: str, *, memory_bytes: int | None = None) -> Hardware:
    """Return a machine: `cpu`, `mps`, or `<count>x<accelerator>` such as `8xh100`.

    `memory_bytes` stands in for the memory of this machine (cpu and mps).

    Raises:
        ConfigError: unknown name, or more than 8 devices; the nearest name is offered.
    """
    if name in ("cpu", "mps"):
        return Hardware(
            name=name,
            kind="cpu" if name == "cpu" else "mps",
            title="this machine's CPU" if name == "cpu" else "this machine's Apple GPU",
            devices=1,
            memory_bytes=local_memory_bytes() if memory_bytes is None else memory_bytes,
            peak_flops=None,
            usd_per_hour=None,
            download_bytes_per_s=20e6,
            text_bytes_per_s=5e6,
        )
    match = re.fullmatch(r"([1-8])x([a-z0-9-]+)", name)
    if match is None or match[2] not in ACCELERATORS:
        raise ConfigError(f"unknown hardware `{name}`", hint=did_you_mean(name, names()))
    count, device = int(match[1]), ACCELERATORS[match[2]]
    return Hardware(
        name=name,
        kind="cuda",
        title=f"{count} x {device.title}",
        devices=count,
        memory_bytes=device.memory_bytes,
        peak_flops=device.peak_flops,
        usd_per_hour=None if device.usd_per_hour is None else count * device.usd_per_hour,
        published=device.published,
        download_bytes_per_s=200e6,
        text_bytes_per_s=25e6
        * count,  # 2e9 characters in about 80 s on a host of 8 GPUs, and it scales with cores
    )

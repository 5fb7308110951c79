"""Machines a run can be planned for: memory, peak, price and published training throughput, in one table;
and what a node of them is called and has in a Kubernetes cluster.

Figures are other people's, with their sources; what this code reaches is measured on the machine itself.
Knows nothing of models or presets, nor of the objects that ask for a node.
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a pod asks of its node."""

    cpu: float
    memory_gib: float
    """Request and limit."""
    shm_gib: float
    """Limit of /dev/shm; what is used of it counts as memory."""

    def times(self, count: int) -> Share:
        """Return the share of `count` such pods in one."""
        return Share(cpu=count * self.cpu, memory_gib=count * self.memory_gib, shm_gib=count * self.shm_gib)


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A kind of machine as a Kubernetes cluster sees it."""

    selector: dict[str, str]
    """Labels of such a node, as NVIDIA's GPU feature discovery sets them."""
    gpu_resource: str | None
    rdma_resource: str | None
    """Devices through which GPUs of several nodes reach each other, as NVIDIA's operator names them."""
    per_gpu: Share
    """Per rank on a machine without GPUs."""
    without_gpu: Share
    """Of a stage that needs none: data, tokenizer, report. It may run on any node."""
    env: dict[str, str]
    """Of a stage that trains."""
    rdma_env: dict[str, str]
    """Added to it where more than one node trains and has those devices."""
    fabric_env: dict[str, str]
    """Added to it where more than one node trains."""


_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3}
_UNITS |= {letter: 1000.0**power for power, letter in enumerate("MGTPE", 2)}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}


def quantity(text: str) -> float:
    """Return a Kubernetes quantity such as `500m`, `4Gi` or `1e3` as a number.

    Raises:
        ConfigError: it is not one.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)(?:[eE]([+-]?[0-9]+)|([a-zA-Z]*))", text)
    if match is None or (match[3] or "") not in _UNITS:
        raise ConfigError(f"`{text}` is not a quantity", hint="write e.g. `500m`, `8`, `512Mi` or `64Gi`")
    return float(match[1]) * 10.0 ** int(match[2] or 0) * _UNITS[match[3] or ""]


def cpu_text(cpus: float) -> str:
    """Return a number of CPUs as Kubernetes writes it, rounded up to a thousandth."""
    milli = math.ceil(round(cpus * 1000, 3))
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def memory_text(gib: float) -> str:
    """Return GiB as Kubernetes writes them, rounded up to a MiB."""
    mib = math.ceil(round(gib * 1024, 3))
    return f"{mib // 1024}Gi" if mib % 1024 == 0 else f"{mib}Mi"


def quantity_text(resource: str, amount: float) -> str:
    """Return an amount (CPUs, bytes of memory or storage, devices) as Kubernetes writes it."""
    if resource == "cpu":
        return cpu_text(amount)
    return memory_text(amount / GIB) if resource in ("memory", "storage") else str(round(amount))


# Eight shares fit the smaller of the usual 8-GPU machines, 96 vCPU and 680 GiB, and leave room for the node's
# own daemons. NCCL overflows the 64 MiB that /dev/shm has by default.
_HELPER = Share(cpu=8, memory_gib=32, shm_gib=1)
_NCCL = {"NCCL_DEBUG": "WARN"}
_RDMA = "rdma/rdma_shared_device_a"
_RDMA_ENV = {"NCCL_IB_HCA": "mlx5"}  # only Mellanox adapters carry the traffic
_FABRIC = {"NCCL_SOCKET_IFNAME": "eth0"}  # the pod's own interface carries the bootstrap, and TCP

NODES: dict[str, Node] = {
    "h100": Node(
        selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        gpu_resource="nvidia.com/gpu",
        rdma_resource=_RDMA,
        per_gpu=Share(cpu=10, memory_gib=64, shm_gib=8),
        without_gpu=_HELPER,
        env=_NCCL,
        rdma_env=_RDMA_ENV,
        fabric_env=_FABRIC,
    ),
    "a100": Node(
        selector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        gpu_resource="nvidia.com/gpu",
        rdma_resource=_RDMA,
        per_gpu=Share(cpu=10, memory_gib=64, shm_gib=8),
        without_gpu=_HELPER,
        env=_NCCL,
        rdma_env=_RDMA_ENV,
        fabric_env=_FABRIC,
    ),
    "cpu": Node(
        selector={},
        gpu_resource=None,
        rdma_resource=None,
        per_gpu=Share(cpu=1, memory_gib=4, shm_gib=0.25),
        without_gpu=Share(cpu=1, memory_gib=4, shm_gib=0.25),
        env={},
        rdma_env={},
        fabric_env={},
    ),
}


def node(profile: str) -> Node:
    """Return a cluster's side of a hardware profile such as `8xh100` or `cpu`.

    Raises:
        ConfigError: clusters are not planned for such machines; the nearest that are is offered.
    """
    machine = re.sub(r"^[1-8]x", "", profile)
    if machine not in NODES:
        raise ConfigError(
            f"hardware `{profile}` is not known in a cluster", hint=did_you_mean(machine, NODES)
        )
    return NODES[machine]

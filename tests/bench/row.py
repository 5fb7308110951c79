"""One measured bar: a figure, what it is compared with, and the bound it must keep."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal


def machine() -> str:
    """Return the processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A bar of the results table."""

    name: str
    figure: float
    unit: str
    bound: float
    better: Literal["higher", "lower"]
    peer: str = "-"
    peer_figure: float | None = None
    ratio: float | None = None
    command: str
    notes: str = ""
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    machine: str = field(default_factory=machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d"))

    @property
    def passed(self) -> bool:
        """True where the figure keeps its bound."""
        return self.figure >= self.bound if self.better == "higher" else self.figure <= self.bound

    def to_json(self) -> dict[str, Any]:
        """Return the row as it stands in `results.json`."""
        return asdict(self) | {"passed": self.passed}

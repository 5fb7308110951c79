"""Figures that the ladder measures on its way: printed, and kept for the table of results.

`NANOCHAT_TEST_FIGURES` names a file of JSON lines; `python -m tests.bench cluster` sets it and reads it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.cluster.harness.host import say

FIGURES = "NANOCHAT_TEST_FIGURES"


def figure(name: str, value: float, unit: str = "s") -> None:
    """Tell a measured figure."""
    say(f"figure {name}: {value:.3g} {unit}")
    if path := os.environ.get(FIGURES):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": value, "unit": unit}) + "\n")


def read_figures(path: Path) -> dict[str, list[float]]:
    """Return every value of every figure of a file, in order."""
    found: dict[str, list[float]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found.setdefault(entry["name"], []).append(float(entry["value"]))
    return found

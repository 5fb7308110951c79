"""Run the ladder on a real Kubernetes and read what it measured: binaries and images come from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.clean import ROOT, fresh_clone, timed
from tests.bench.row import Row
from tests.cluster.harness.figures import FIGURES, read_figures

COMMAND = "python -m tests.bench cluster"

Pick = Callable[[Sequence[float]], float]
BARS: tuple[tuple[str, str, float, Pick], ...] = (
    ("node Ready after the kubelet's start", "s", 10, max),
    ("rung (b): control plane, in all", "min", 2, max),
    ("rungs (b), (c), (d): in all", "min", 12, max),
    ("platform overhead of a stage", "s", 15, max),
    ("memory of the whole cluster idle, sum of PSS", "GB", 1.3, max),
    ("submit to pod created", "s", 2, min),
    ("nanochat status, minimum of five", "s", 1, min),
    ("cancel: job objects gone and every container signalled", "s", 3, max),
    ("cancel: pods of the smoke run gone", "s", 10, max),
    ("0 jobs and pods after a lost submitter", "s", 90, max),
)
"""Figure, unit, bound, and which of several measurements counts; lower is better for all."""


def rows() -> list[Row]:
    """Run every test of `tests/cluster` and return a row for each figure."""
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        path = Path(folder) / "figures.jsonl"
        command = [sys.executable, "-m", "pytest", "-m", "cluster", "tests/cluster"]
        subprocess.run(command, cwd=ROOT, env=os.environ | {FIGURES: str(path)}, check=True)
        return made_rows(read_figures(path))


def made_rows(figures: dict[str, list[float]]) -> list[Row]:
    """Return the rows of figures that were measured.

    Raises:
        KeyError: the ladder did not measure one.
    """
    return [
        Row(
            name=name,
            figure=round(pick(figures[name]), 2),
            unit=unit,
            bound=bound,
            better="lower",
            command=COMMAND,
            notes=f"of {len(figures[name])}" if len(figures[name]) > 1 else "",
        )
        for name, unit, bound, pick in BARS
    ]


def cold_rows() -> list[Row]:
    """Time `make test-cluster` in a fresh clone with empty caches: Kubernetes, images and all."""
    fresh, clone, env = fresh_clone()
    log = fresh / "cluster.log"
    set_up = time.monotonic()
    timed(["make", "setup"], clone, env, fresh / "setup.log")
    set_up = time.monotonic() - set_up
    wall = timed(["make", "test-cluster"], clone, env, log)
    return [
        Row(
            name="make test-cluster, everything cold",
            figure=round(wall / 60, 1),
            unit="min",
            bound=35,
            better="lower",
            command="python -m tests.bench clean-cluster",
            notes=f"beside {set_up:.0f} s of set-up",
        )
    ]

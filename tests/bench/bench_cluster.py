"""Run the ladder on a real Kubernetes and read what it measured: binaries and images come from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.bpb import BOUNDS
from tests.bench.clean import ROOT
from tests.bench.row import Row
from tests.cluster.harness.figures import FIGURES, read_figures

Pick = Callable[[Sequence[float]], float]
Bar = tuple[str, str, float, Pick]
"""Figure, unit, bound, and which of several measurements counts; lower is better for all."""

LADDER: tuple[Bar, ...] = (
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
REHEARSAL: tuple[Bar, ...] = (
    *(
        (f"tiny as PyTorchJobs: bits per byte, {name}", "bits per byte", must, max)
        for name, (must, _) in BOUNDS.items()
    ),
    ("tiny as PyTorchJobs: platform overhead of a stage", "s", 15, max),
)


def rows() -> list[Row]:
    """Run every test of `tests/cluster` and return a row for each figure."""
    return _measured("python -m tests.bench cluster", "tests/cluster", LADDER)


def rehearsal_rows() -> list[Row]:
    """Train `tiny` on real text as PyTorchJobs, and return what its models are worth."""
    return _measured("python -m tests.bench rehearsal", "tests/cluster/rehearsal.py", REHEARSAL)


def _measured(command: str, tests: str, bars: Sequence[Bar]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        path = Path(folder) / "figures.jsonl"
        pytest = [sys.executable, "-m", "pytest", "-m", "cluster", tests]
        subprocess.run(pytest, cwd=ROOT, env=os.environ | {FIGURES: str(path)}, check=True)
        figures = read_figures(path)
    return [
        Row(
            name=name,
            figure=round(pick(figures[name]), 2),
            unit=unit,
            bound=bound,
            better="lower",
            command=command,
            notes=f"of {len(figures[name])}" if len(figures[name]) > 1 else "",
        )
        for name, unit, bound, pick in bars
    ]

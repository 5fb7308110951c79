"""Time what everybody types first: `nanochat --help`, and the whole speedrun on generated text."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.clean import ROOT
from tests.bench.row import Row

COMMAND = "python -m tests.bench cli"
NANOCHAT = str(ROOT / ".venv" / "bin" / "nanochat")


def help_s(runs: int = 5) -> float:
    """Return the fewest wall seconds that `nanochat --help` took."""
    best = float("inf")
    for _ in range(runs):
        started = time.monotonic()
        subprocess.run([NANOCHAT, "--help"], stdout=subprocess.DEVNULL, check=True)
        best = min(best, time.monotonic() - started)
    return best


def smoke_s() -> float:
    """Return the wall seconds of `make smoke` on one core in a new home folder."""
    core = min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="smoke-") as home:
        started = time.monotonic()
        subprocess.run(
            ["taskset", "-c", str(core), "make", "smoke"],  # noqa: S607
            cwd=ROOT,
            env=os.environ | {"NANOCHAT_HOME": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        took = time.monotonic() - started
        if not any(Path(home).glob("runs/smoke/report/report.html")):
            raise RuntimeError("`make smoke` left no report")
    return took


def rows() -> list[Row]:
    """Return the two rows of the bar table."""
    return [
        Row(
            name="nanochat --help, minimum of five",
            figure=round(help_s(), 3),
            unit="s",
            bound=0.3,
            better="lower",
            command=COMMAND,
        ),
        Row(
            name="make smoke on one core, environment in place",
            figure=round(smoke_s(), 1),
            unit="s",
            bound=60,
            better="lower",
            command=COMMAND,
        ),
    ]

"""Time `make speedrun` and the whole check as a newcomer meets them: fresh clone and HOME, empty caches."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tests.bench.row import Row

ROOT = Path(__file__).parents[2]
KEPT = ("PATH", "LANG", "PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "RUSTUP_HOME", "CARGO_HTTP_CAINFO")


def environment(fresh: Path) -> dict[str, str]:
    """Return the variables of a new login: toolchains on PATH, HOME and every cache below `fresh`."""
    rustup = os.environ.get("RUSTUP_HOME") or str(Path.home() / ".rustup")
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {
        "HOME": str(fresh),
        "RUSTUP_HOME": rustup,
        "CARGO_HOME": str(fresh / "cargo"),
        "TMPDIR": str(fresh / "tmp"),
    }


def timed(command: list[str], where: Path, env: dict[str, str], log: Path) -> float:
    """Run a command to its end and return its wall seconds; its output goes to `log`."""
    started = time.monotonic()
    with log.open("wb") as out:
        subprocess.run(command, cwd=where, env=env, stdout=out, stderr=subprocess.STDOUT, check=True)
    return time.monotonic() - started


def stage_seconds(home: Path, run: str) -> float:
    """Return the sum of a run's stage wall times."""
    return sum(
        json.loads(path.read_text(encoding="utf-8"))["wall_s"]
        for path in (home / "runs" / run).glob("*/record.json")
    )


def fresh_clone() -> tuple[Path, Path, dict[str, str]]:
    """Return (folder, clone in it, environment) of somebody who has just cloned the repository."""
    fresh = Path(tempfile.mkdtemp(prefix="clean-"))
    (fresh / "tmp").mkdir()
    clone = fresh / "nanochat-platform"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)  # noqa: S607
    if (ROOT.parent / "shared").exists():
        (fresh / "shared").symlink_to(ROOT.parent / "shared")
    return fresh, clone, environment(fresh)


def speedrun_rows() -> list[Row]:
    """Time `make speedrun`, set-up and downloads included."""
    fresh, clone, env = fresh_clone()
    wall = timed(["make", "speedrun"], clone, env, fresh / "speedrun.log")
    text = (fresh / "speedrun.log").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"environment installed in (\d+) s", text)
    downloads = float(found.group(1)) if found else 0.0
    stages = stage_seconds(fresh / ".cache" / "nanochat", "tiny")
    shutil.rmtree(fresh)
    return made_speedrun_rows(wall, downloads, stages)


def made_speedrun_rows(wall: float, downloads: float, stages: float) -> list[Row]:
    """Return the two rows of seconds that were measured."""
    command = "python -m tests.bench clean"
    return [
        Row(
            name="make speedrun, clean clone, empty caches",
            figure=round(wall / 60, 2),
            unit="min",
            bound=16,
            better="lower",
            command=command,
            notes=f"of it {downloads:.0f} s download and install of the locked environment",
        ),
        Row(
            name="speedrun stages alone",
            figure=round(stages / 60, 2),
            unit="min",
            bound=11,
            better="lower",
            command=command,
        ),
    ]


def check_rows() -> list[Row]:
    """Time `.ci/run`, which ends with a Kubernetes built from nothing; a failed one stays for a look."""
    fresh, clone, env = fresh_clone()
    log = fresh / "check.log"
    wall = timed([".ci/run"], clone, env, log)
    rows = made_check_rows(wall, log.read_text(encoding="utf-8", errors="replace"))
    shutil.rmtree(fresh)
    return rows


def made_check_rows(wall: float, log: str) -> list[Row]:
    """Return the rows of a whole check from what it printed.

    Raises:
        KeyError: it has no such step.
        ValueError: it did not tell the seconds of rung (a).
    """
    starts = [(name, int(at)) for name, at in re.findall(r"^== (.+) \((\d+) s\) ==$", log, re.MULTILINE)]
    spent = {name: after - at for (name, at), (_, after) in pairwise(starts)}
    rung_a = re.search(r"^rung \(a\): .*: ([\d.]+) s$", log, re.MULTILINE)
    if rung_a is None:
        raise ValueError("the check printed no line of rung (a)")
    cluster = spent["tests on a real Kubernetes"]
    figures = (
        ("make test, clean clone, empty caches", spent["set-up"] + spent["tests"], 20, "set-up included"),
        ("of it rung (a)", float(rung_a.group(1)), 3, ""),
        ("make test-cluster, everything cold", cluster, 35, "Kubernetes and images built from nothing"),
        ("the whole check, everything cold", wall, 60, ""),
    )
    return [
        Row(
            name=name,
            figure=round(seconds / 60, 2),
            unit="min",
            bound=bound,
            better="lower",
            command="python -m tests.bench clean-check",
            notes=notes,
        )
        for name, seconds, bound, notes in figures
    ]

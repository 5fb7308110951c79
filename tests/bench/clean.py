"""Time the two commands of the README as a newcomer meets them: fresh clone, fresh HOME, empty caches."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
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


def suite_rows() -> list[Row]:
    """Time `make test`, set-up and downloads included."""
    fresh, clone, env = fresh_clone()
    wall = timed(["make", "test"], clone, env, fresh / "test.log")
    shutil.rmtree(fresh)
    return [
        Row(
            name="make test, clean clone, empty caches",
            figure=round(wall / 60, 2),
            unit="min",
            bound=20,
            better="lower",
            command="python -m tests.bench clean-test",
        )
    ]

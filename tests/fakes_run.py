"""Stages made for tests: real launchers and workers import them in place of the product's stage modules."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.files import write_json
from nanochat.run.config import RunConfig, StageConfig
from nanochat.run.record import Record, find_inputs, hash_outputs
from nanochat.run.setup import load_config
from nanochat.run.stage import STAGES
from nanochat.run.stage import stage as find_stage
from nanochat.settings import Home

ROOT = Path(__file__).parents[1]

_FINDER = """
import importlib.util, pathlib, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        file = pathlib.Path(__file__).parent / (name + ".py")
        return importlib.util.spec_from_file_location(name, file) if file.exists() else None

sys.meta_path.insert(0, Finder)
"""

WRITE = """
def run(context):
    out = context.dir / "out.txt"
    out.write_text(context.config.stage + " " + ",".join(sorted(context.inputs)))
    return StageResult([out], {"answer": 42})
"""

_IMPORTS = """
import os, signal, time
from nanochat.errors import *
from nanochat.run.context import StageContext, StageResult
"""


class FakeHome:
    """A home folder, and processes whose stages are given as source code."""

    def __init__(self, folder: Path, *, real: tuple[str, ...] = (), **stages: str) -> None:
        """`stages`: name -> source with a `run(context)`; all others but the `real` ones write one file."""
        self.home = Home(folder / "home")
        self._modules = folder / "modules"
        self._modules.mkdir(parents=True, exist_ok=True)
        (self._modules / "sitecustomize.py").write_text(_FINDER)
        for stage in STAGES:
            if stage.name not in real:
                self.stage(stage.name, stages.get(stage.name, WRITE))
        self.reason = folder / "termination-log"
        self.reason.write_text("")
        self.env = {
            **os.environ,
            "NANOCHAT_HOME": str(self.home.root),
            "NANOCHAT_TERMINATION_LOG": str(self.reason),
            "PYTHONPATH": os.pathsep.join([str(self._modules), str(ROOT), str(ROOT / "platform")]),
        }

    def stage(self, name: str, source: str) -> None:
        """Replace what a stage does."""
        self.module(find_stage(name).module, _IMPORTS + source)

    def module(self, name: str, source: str) -> None:
        """Replace a module of the product."""
        (self._modules / f"{name}.py").write_text(source)

    def config(self, stage: str = "data", run: str = "r", **values: Any) -> Path:
        """Write a `config.json`; returns its path."""
        spec = RunConfig(**{"run": run, "preset": "smoke", "source": "generated", **values})
        path = self.home.stage(run, stage) / "config.json"
        write_json(path, StageConfig(stage=stage, spec=spec).model_dump(mode="json"))
        return path

    def finish(self, stage: str, run: str = "r", **values: Any) -> Record:
        """Leave the record of a finished stage and its one output, without a process."""
        asked = load_config(self.config(stage, run, **values))
        folder = self.home.stage(run, stage)
        out = folder / "out.txt"
        out.write_text(stage)
        inputs = find_inputs(find_stage(stage), self.home.run(run))
        record = Record(
            stage=stage,
            config=asked.spec.relevant(find_stage(stage)),
            config_hash=asked.hash,
            inputs={name: found.hash for name, found in inputs.items()},
            outputs=hash_outputs([out], self.home),
        )
        record.save(folder)
        return record

    def launch(self, config: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the launcher on a `config.json`; its stderr is a pipe."""
        return self.start("nanochat.run.launch", "--config", str(config), *arguments, **options)

    def start(self, module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `python -m module` with stdout and stderr as pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**self.env, **options.pop("env", {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def cli(self, *arguments: str, **options: Any) -> tuple[int, str, str]:
        """Run `nanochat ...` to its end; returns exit code, stdout, stderr."""
        return end(self.start("nanochat_platform.cli", *arguments, **options))


def end(process: subprocess.Popen[str], timeout_s: float = 50) -> tuple[int, str, str]:
    """Wait for a process; returns exit code, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Read stderr until a line that holds `text`; returns all that was read."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came; stderr was:\n{seen}")


def wait_until(condition: Callable[[], bool], limit_s: float = 100.0) -> None:
    """Look until a condition holds; fails when it does not within `limit_s`."""
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "the condition never held"
        time.sleep(0.01)

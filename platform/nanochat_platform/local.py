"""Run stages on this machine, each as a subprocess of the one launcher.

Knows the order of stages and what their exit codes mean; knows nothing of what
they do, and imports no torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from nanochat import shape
from nanochat.errors import ConfigError, did_you_mean
from nanochat.files import read_json, write_json
from nanochat.run.config import SOURCES, RunConfig, StageConfig, parse
from nanochat.run.lock import check_free
from nanochat.run.record import find_inputs
from nanochat.run.setup import check_settings, judge
from nanochat.run.signals import STOP_SIGNALS, forwarded, handled_signals, interrupted
from nanochat.run.stage import STAGES, Stage, until
from nanochat.run.stage import stage as find_stage
from nanochat.settings import Home

DEFAULT_PRESET = "tiny"
QUESTION = "Who are you?"
MAX_RESTARTS = 2
"""Automatic restarts of a stage whose rank was killed or hung, in a row and without a new checkpoint."""


def make_spec(
    home: Home, options: Mapping[str, Any], *, stored: bool = True, check: bool = True
) -> RunConfig:
    """Return what a run is asked to do: options given now, over its `spec.json`, over defaults.

    Args:
        home: the home folder.
        options: fields of `RunConfig` that were given; None counts as not given.
        stored: False: the run's `spec.json`, if there is one, does not count.
        check: False: whether the batch divides is left to the caller, who knows the number of ranks.

    Raises:
        ConfigError: an unknown preset or source, or a value out of range; names the nearest or the range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    name = given.get("run") or given.get("preset") or DEFAULT_PRESET
    path = home.run(name) / "spec.json"
    known = dict(read_json(path)) if stored and path.exists() else {}
    values = {"preset": DEFAULT_PRESET, **known, **given, "run": name}
    preset = shape.preset(values["preset"])
    values["source"] = full_source(values.get("source") or preset.source)
    if values.get("identity") is not None:
        values["identity"] = str(Path(values["identity"]).absolute())
    spec: RunConfig = parse(RunConfig, values, what="options", flags=True)
    if check:
        shape.resolve(spec, world_size=spec.nproc)
    return spec


def full_source(source: str, profile: str | None = None) -> str:
    """Return a source with its profile: `packages` is `packages/cpu`.

    Raises:
        ConfigError: no such source, or it has no profiles.
    """
    if source == "packages":
        source = f"packages/{profile or 'cpu'}"
    elif profile is not None and source != f"packages/{profile}":
        raise ConfigError(
            f"source `{source}` has no profile `{profile}`", hint="profiles belong to `packages`"
        )
    if source not in SOURCES:
        raise ConfigError(f"unknown source `{source}`", hint=did_you_mean(source, SOURCES))
    return source


def choose(first: str | None, last: str | None) -> tuple[Stage, ...]:
    """Return the stages from `first` to `last`: one for `first` alone, all of them without either.

    Raises:
        ConfigError: an unknown stage, or `last` comes before `first`.
    """
    if first is None:
        return until(last)
    stages = until(last or first)
    names = [stage.name for stage in STAGES]
    if first not in names:
        raise ConfigError(f"unknown stage `{first}`", hint=did_you_mean(first, names))
    chosen = stages[names.index(first) :]
    if not chosen:
        raise ConfigError(f"--until {last} comes before {first}", hint="stages in order: " + ", ".join(names))
    return chosen


@dataclass(slots=True)
class Outcome:
    """How one stage went."""

    stage: str
    status: Literal["done", "skipped", "failed"]
    exit_code: int
    wall_s: float


@dataclass(slots=True)
class Result:
    """How the stages went; `exit_code` is that of the last."""

    run: str
    stages: list[Outcome] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when all stages are finished."""
        return self.stages[-1].exit_code if self.stages else 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        stages = [
            {"stage": o.stage, "status": o.status, "exit_code": o.exit_code, "wall_s": round(o.wall_s, 2)}
            for o in self.stages
        ]
        return {"run": self.run, "exit_code": self.exit_code, "stages": stages}


def run_stages(home: Home, spec: RunConfig, stages: Sequence[Stage], say: Callable[[str], None]) -> Result:
    """Write the spec and run stages in order until one fails; finished ones take no time.

    Raises:
        RunLockedError: another process works on the run, or a stage was made with other settings.
    """
    run_dir = home.run(spec.run)
    check_free(run_dir)
    for stage in stages:
        check_settings(stage, StageConfig(stage=stage.name, spec=spec), home.stage(spec.run, stage.name))
    write_json(run_dir / "spec.json", spec.model_dump(mode="json"))
    result = Result(spec.run)
    with Launcher() as launcher:
        for stage in stages:
            outcome = _run_stage(home, StageConfig(stage=stage.name, spec=spec), launcher, say)
            result.stages.append(outcome)
            if outcome.exit_code != 0:
                break
    return result


def _run_stage(home: Home, config: StageConfig, launcher: Launcher, say: Callable[[str], None]) -> Outcome:
    folder = home.stage(config.spec.run, config.stage)
    path = folder / "config.json"
    write_json(path, config.model_dump(mode="json"))
    stage = find_stage(config.stage)
    started = time.monotonic()
    inputs = find_inputs(stage, home.run(config.spec.run))
    if judge(stage, config, folder, home, inputs).action == "skip":
        say(f"stage {config.stage} is finished")
        return Outcome(config.stage, "skipped", 0, 0.0)
    saved = _saved(folder)
    code, restarts = launcher.run(path), 0
    while retried(code) and launcher.signum is None:
        before, saved = saved, _saved(folder)
        restarts = restarts + 1 if saved == before else 1
        if restarts > MAX_RESTARTS:
            break
        say(f"notice: stage {config.stage} ended with {code}; restart {restarts} of {MAX_RESTARTS}")
        code = launcher.run(path)
    return Outcome(config.stage, "done" if code == 0 else "failed", code, time.monotonic() - started)


def _saved(folder: Path) -> str:
    """Return the newest checkpoint's name: a stage that dies but gets further is worth going on with."""
    return max((path.name for path in (folder / "checkpoints").glob("step-*")), default="")


def retried(code: int) -> bool:
    """Return whether a launcher's exit code is worth another attempt without a person: a lost or hung rank.

    143 (asked to stop) and 201 (the volume) are retried by a cluster, not here, where somebody sits.
    """
    return code > 128 and code not in (130, 143, 201)


class Launcher:
    """Starts launchers one after another and forwards stop signals to the one that runs."""

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first stop signal received."""
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Launcher:
        self._before = {signum: signal.signal(signum, self._forward) for signum in handled_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def run(self, config: Path) -> int:
        """Run one launcher to its end; returns its exit code, 128 + n when a signal killed it.

        Raises:
            Interrupted: a stop signal arrived before it was started.
        """
        command = [sys.executable, "-m", "nanochat.run.launch", "--config", str(config)]
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if self.signum is not None:
                raise interrupted(self.signum, "all finished stages are saved")
            # Its own group: Ctrl-C reaches this process alone, which forwards it exactly once.
            self._process = subprocess.Popen([*command, "--parent", str(os.getpid())], process_group=0)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        code = self._process.wait()
        self._process = None
        return 128 - code if code < 0 else code

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or forwarded(signum)
        if self._process is not None:
            self._process.send_signal(forwarded(signum))

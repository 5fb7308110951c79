"""What a stage module is given, and what it gives back.

Every stage module has `def run(context: StageContext) -> StageResult`. Knows
nothing of how the process was started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.errors import ConfigError
from nanochat.run.config import RunConfig, StageConfig
from nanochat.run.events import EventLog
from nanochat.run.record import Record
from nanochat.run.signals import StopFlag
from nanochat.settings import Home, Topology


@dataclass(slots=True)
class StageResult:
    """What a finished stage leaves: files or folders below NANOCHAT_HOME, and figures for the report."""

    outputs: list[Path] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class StageContext:
    """One attempt at one stage, on one rank."""

    config: StageConfig
    home: Home
    dir: Path
    """`runs/<run>/<stage>`: the stage's own folder."""
    events: EventLog
    topology: Topology = field(default_factory=Topology)
    stop: StopFlag = field(default_factory=StopFlag)
    inputs: dict[str, Record] = field(default_factory=dict)
    """Records of the stages read, by name; of alternatives only the one that exists."""
    attempt: int = 1

    @property
    def spec(self) -> RunConfig:
        """What the run was asked to do."""
        return self.config.spec

    @property
    def dataset_dir(self) -> Path:
        """`datasets/<name>` of the run's source."""
        return self.home.dataset(self.spec.dataset())

    @property
    def run_dir(self) -> Path:
        """`runs/<run>`."""
        return self.home.run(self.spec.run)

    def emit(self, name: str, /, **fields: Any) -> None:
        """Append one event of the closed list in `nanochat.run.events`."""
        self.events.emit(name, **fields)

    def input(self, stage: str) -> Record:
        """Return the record of a stage read; of `a|b` the first that exists.

        Raises:
            ConfigError: the stage is not among those that this one reads.
        """
        for name in stage.split("|"):
            if name in self.inputs:
                return self.inputs[name]
        raise ConfigError(
            f"stage `{self.config.stage}` does not read `{stage}`; it reads {sorted(self.inputs)}"
        )

    def raise_if_stopped(self, what: str = "nothing is lost") -> None:
        """Raise `Interrupted` when SIGTERM or SIGINT arrived; `what` says what is safe on disk."""
        self.stop.raise_if_set(what)

    def reporter(self, *, every_s: float = 0.5) -> Callable[[str, int, int], None]:
        """Return `report(unit, done, total)`, which emits `step` events at most every `every_s` seconds."""
        last = 0.0

        def report(unit: str, done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done >= total or now - last >= every_s:
                last = now
                self.emit("step", step=done, steps=total, unit=unit)

        return report

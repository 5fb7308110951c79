"""From a `config.json` to a folder and a verdict: run the stage, skip it, or refuse.

Shared by launcher, worker and command line. Knows nothing of processes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.errors import ConfigError, DataError, RunLockedError
from nanochat.files import read_json
from nanochat.run.config import StageConfig, parse
from nanochat.run.events import read_events
from nanochat.run.record import Record, difference, missing_output, setting_difference
from nanochat.run.stage import Stage
from nanochat.settings import Home, home

_DERIVED = {"scores", "report"}
"""Kinds of result that are cheap to make again from their inputs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about a stage, and why."""

    action: Literal["run", "skip"]
    notice: str | None = None


def load_config(path: Path, given: str | None = None) -> StageConfig:
    """Return the parsed `config.json`; with `given` that JSON, whose place the file at `path` will be.

    Raises:
        ConfigError: it is missing, does not parse, a field is wrong, or `path` is another stage's place.
    """
    if given is not None:
        return _given_config(path, given)
    try:
        values = read_json(path)
    except DataError as error:
        raise ConfigError(error.message, hint="`nanochat run STAGE --run NAME` writes it") from None
    if not isinstance(values, dict):
        raise ConfigError(f"`{path}` is not a JSON object")
    config: StageConfig = parse(StageConfig, values, what=f"`{path}`")
    return config


def _given_config(path: Path, given: str) -> StageConfig:
    try:
        values = json.loads(given)
    except ValueError as error:
        raise ConfigError(f"NANOCHAT_CONFIG is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("NANOCHAT_CONFIG is not a JSON object")
    config: StageConfig = parse(StageConfig, values, what="NANOCHAT_CONFIG")
    if path.absolute().parts[-4:] != ("runs", config.spec.run, config.stage, "config.json"):
        raise ConfigError(
            f"NANOCHAT_CONFIG is stage `{config.stage}` of run `{config.spec.run}`, but --config is `{path}`",
            hint=f"use --config .../runs/{config.spec.run}/{config.stage}/config.json, or unset the variable",
        )
    return config


def stage_folder(path: Path, config: StageConfig) -> tuple[Home, Path]:
    """Return the home and the stage's folder: those that the file lies in, else NANOCHAT_HOME's."""
    path = path.absolute()
    if path.parts[-4:] == ("runs", config.spec.run, config.stage, "config.json"):
        where = Home(path.parents[3])
    else:
        where = home()
    return where, where.stage(config.spec.run, config.stage)


def judge(stage: Stage, config: StageConfig, folder: Path, where: Home, inputs: dict[str, Record]) -> Verdict:
    """Compare the record and the checkpoints of a stage with what is asked now.

    Raises:
        RunLockedError: they were made with another configuration or other inputs; names the field.
    """
    record = check_settings(stage, config, folder)
    if record is None:
        return Verdict("run")
    lost = missing_output(record, where)
    if lost is not None:
        return Verdict("run", f"an output of stage `{stage.name}` is damaged: {lost}; making it again")
    stale = _stale_input(record, inputs)
    if stale is None:
        return Verdict("skip")
    if set(stage.writes) <= _DERIVED:
        return Verdict("run", f"`{stale}` changed since stage `{stage.name}` ran; making it again")
    raise RunLockedError(
        f"{_name(config)} is finished, but its input `{stale}` changed since", hint=_another(folder)
    )


def check_settings(stage: Stage, config: StageConfig, folder: Path) -> Record | None:
    """Return the stage's record, None without one, after comparing settings alone.

    Raises:
        RunLockedError: the record, or the checkpoints of an unfinished attempt, were made with others.
    """
    record = Record.load(folder)
    if record is not None:
        changed = difference(record, config)
        if changed is not None:
            raise RunLockedError(
                f"{_name(config)} is finished with another configuration: {changed}", hint=_another(folder)
            )
        return record
    if any((folder / "checkpoints").glob("step-*")):
        settings: dict[str, Any] | None = None
        for event in read_events(folder / "events.jsonl", "run"):
            settings = event.get("settings")
        changed = None if settings is None else setting_difference(settings, config.spec.relevant(stage))
        if changed is not None:
            raise RunLockedError(
                f"{_name(config)} has checkpoints of another configuration: {changed}", hint=_another(folder)
            )
    return None


def _another(folder: Path) -> str:
    return f"choose another run with `--run NAME`, or delete `{folder}` to make it again"


def _name(config: StageConfig) -> str:
    return f"stage `{config.stage}` of run `{config.spec.run}`"


def _stale_input(record: Record, inputs: dict[str, Record]) -> str | None:
    now = {name: found.hash for name, found in inputs.items()}
    for name in sorted({*record.inputs, *now}):
        if record.inputs.get(name) != now.get(name):
            return name
    return None

"""What a run left, gathered from its records and events: stages, curves, scores, samples.

Knows nothing of how it is shown, and opens no checkpoint, dataset or model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.errors import DataError
from nanochat.files import read_json
from nanochat.run.config import RunConfig, parse
from nanochat.run.events import Event, read_events
from nanochat.run.record import Record
from nanochat.run.stage import STAGE_NAMES

COLUMNS = {"BASE": "base_eval", "MID": "mid_eval", "SFT": "chat_eval", "RL": "rl_eval"}
"""Columns of the summary table and the stages that fill them."""
SAMPLED = (
    ("base_eval", "base_train"),
    ("rl_eval", "chat_rl", "chat_eval", "chat_sft", "mid_eval", "mid_train"),
)
"""Whose samples are shown: the first of each row that has some."""
TRAINING = ("base_train", "mid_train", "chat_sft", "chat_rl")


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of an evaluation; `low` and `high` bound it with 95% confidence."""

    name: str
    value: float
    unit: str | None = None
    n: int | None = None
    chance: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (step, value) of one quantity of one stage."""

    stage: str
    name: str
    unit: str
    points: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and what the model made of it."""

    stage: str
    step: int | None
    prompt: str
    text: str


@dataclass(slots=True)
class Run:
    """All that the report shows."""

    name: str
    spec: RunConfig
    records: dict[str, Record] = field(default_factory=dict)
    """Of the finished stages, in the order of the stages."""
    curves: list[Curve] = field(default_factory=list)
    scores: dict[str, list[Score]] = field(default_factory=dict)
    """Evaluation stage -> its figures."""
    samples: list[Sample] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """Seconds of work of all finished stages but the report."""
        return sum(record.wall_s for name, record in self.records.items() if name != "report")


def collect(run_dir: Path) -> Run:
    """Gather a run.

    Raises:
        DataError: the folder is no run, or a record is damaged.
    """
    if not (run_dir / "spec.json").exists():
        raise DataError(f"`{run_dir}` is not a run: it has no `spec.json`")
    spec: RunConfig = parse(RunConfig, read_json(run_dir / "spec.json"), what=f"`{run_dir / 'spec.json'}`")
    run = Run(run_dir.name, spec)
    by_stage: dict[str, list[Sample]] = {}
    for stage in STAGE_NAMES:
        record = Record.load(run_dir / stage)
        if record is None:
            continue
        run.records[stage] = record
        events = list(read_events(run_dir / stage / "events.jsonl", "step", "eval", "sample"))
        if stage in TRAINING:
            run.curves += curves(stage, events)
        run.scores[stage] = scores(record)
        found = samples(stage, events)
        if found:
            by_stage[stage] = found
    run.samples = shown_samples(by_stage)
    return run


def shown_samples(by_stage: Mapping[str, list[Sample]]) -> list[Sample]:
    """Return the samples of the base model and of the last chat model."""
    chosen: list[Sample] = []
    for stages in SAMPLED:
        chosen += next((by_stage[stage] for stage in stages if stage in by_stage), [])
    return chosen


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def curves(stage: str, events: Iterable[Event]) -> list[Curve]:
    """Return the training loss and every evaluation over steps; a step repeated by a restart counts once."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for event in events:
        step = _number(event.get("step"))
        if step is None:
            continue
        if event["event"] == "step" and event.get("unit", "step") == "step":
            key, value = ("train loss", "nats per token"), _number(event.get("loss"))
        elif event["event"] == "eval":
            key = str(event.get("name", "")), str(event.get("unit") or "")
            value = _number(event.get("value"))
        else:
            continue
        if value is not None:
            found.setdefault(key, {})[step] = value
    return [Curve(stage, name, unit, sorted(points.items())) for (name, unit), points in found.items()]


def scores(record: Record) -> list[Score]:
    """Return the figures in a record's metric `scores`; entries without a name and a number are left out."""
    entries = record.metrics.get("scores", [])
    made = []
    for entry in entries if isinstance(entries, list) else []:
        value = _number(entry.get("value")) if isinstance(entry, dict) else None
        if value is None or "name" not in entry:
            continue
        count = entry.get("n")
        made.append(
            Score(
                name=str(entry["name"]),
                value=value,
                unit=entry.get("unit"),
                n=count if isinstance(count, int) else None,
                chance=_number(entry.get("chance")),
                low=_number(entry.get("low")),
                high=_number(entry.get("high")),
            )
        )
    return made


def samples(stage: str, events: Iterable[Event]) -> list[Sample]:
    """Return the samples of the last step that has some, each prompt once."""
    found: dict[str, Sample] = {}
    last: int | None = None
    for event in events:
        if event["event"] != "sample":
            continue
        step = event.get("step")
        if step != last:
            found.clear()
            last = step
        prompt = str(event.get("prompt", ""))
        found[prompt] = Sample(stage, step, prompt, str(event.get("text", "")))
    return list(found.values())

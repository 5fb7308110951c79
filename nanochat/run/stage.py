"""Stages of a run: what each reads, writes and needs.

Pure data. Knows nothing of Kubernetes, KFP or torch, so every check on the
shape of a run takes milliseconds on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One resumable step. Finished means: its `record.json` exists and matches."""

    name: str
    module: str
    """Imported by the worker, which calls its `run(context)`."""
    reads: tuple[str, ...] = ()
    """Earlier stages whose records are inputs; of `a|b` the first that exists counts, `a?` may be missing."""
    writes: tuple[str, ...]
    """Kinds of artefact left behind: dataset, tokenizer, tokens, model, scores, report."""
    ranks: bool = False
    """True where every rank of the topology runs it; False: rank 0 alone."""
    retry: bool = True
    """False where a second attempt cannot help (the launcher still honours the exit code)."""
    settings: tuple[str, ...] = ()
    """`RunConfig` fields that its result depends on; a change of another field keeps the record valid."""


_TRAIN = ("preset", "depth", "device_batch_size", "steps", "seed", "deterministic", "dtype", "allow_epochs")
_EVAL = ("preset", "max_problems", "seed")

STAGES: tuple[Stage, ...] = (
    Stage(
        name="data",
        module="nanochat.train.stages.data",
        writes=("dataset",),
        settings=("source", "identity", "preset", "depth", "steps"),
    ),
    Stage(
        name="tok_train",
        module="nanochat.train.stages.tok_train",
        reads=("data",),
        writes=("tokenizer",),
        settings=("preset",),
    ),
    Stage(
        name="tok_eval",
        module="nanochat.train.stages.tok_eval",
        reads=("data", "tok_train"),
        writes=("scores",),
    ),
    Stage(
        name="tokenize",
        module="nanochat.train.stages.tokenize",
        reads=("data", "tok_train"),
        writes=("tokens",),
    ),
    Stage(
        name="base_train",
        module="nanochat.train.stages.base_train",
        reads=("tok_train", "tokenize"),
        writes=("model",),
        ranks=True,
        settings=_TRAIN,
    ),
    Stage(
        name="base_eval",
        module="nanochat.train.stages.base_eval",
        reads=("data", "base_train"),
        writes=("scores",),
        settings=_EVAL,
    ),
    Stage(
        name="mid_train",
        module="nanochat.train.stages.mid_train",
        reads=("data", "base_train"),
        writes=("model",),
        ranks=True,
        settings=_TRAIN,
    ),
    Stage(
        name="mid_eval",
        module="nanochat.train.stages.chat_eval",
        reads=("data", "mid_train"),
        writes=("scores",),
        settings=_EVAL,
    ),
    Stage(
        name="chat_sft",
        module="nanochat.train.stages.chat_sft",
        reads=("data", "mid_train|base_train"),
        writes=("model",),
        ranks=True,
        settings=_TRAIN,
    ),
    Stage(
        name="chat_eval",
        module="nanochat.train.stages.chat_eval",
        reads=("data", "chat_sft"),
        writes=("scores",),
        settings=_EVAL,
    ),
    Stage(
        name="report",
        module="nanochat.report.stage",
        reads=(
            "data",
            "tok_train",
            "tok_eval?",
            "tokenize",
            "base_train",
            "base_eval?",
            "mid_train?",
            "mid_eval?",
            "chat_sft?",
            "chat_eval?",
        ),
        writes=("report",),
    ),
)
"""In order. `chat_rl` and `rl_eval` keep their names in `STAGE_NAMES` until they exist."""

STAGE_NAMES = (
    "data",
    "tok_train",
    "tok_eval",
    "tokenize",
    "base_train",
    "base_eval",
    "mid_train",
    "mid_eval",
    "chat_sft",
    "chat_eval",
    "chat_rl",
    "rl_eval",
    "report",
)


def stage(name: str) -> Stage:
    """Return the stage of that name.

    Raises:
        ConfigError: no such stage; the nearest name is offered.
    """
    for candidate in STAGES:
        if candidate.name == name:
            return candidate
    raise ConfigError(f"unknown stage `{name}`", hint=did_you_mean(name, (s.name for s in STAGES)))


def until(name: str | None, stages: Iterable[Stage] = STAGES) -> tuple[Stage, ...]:
    """Return the stages up to and including `name`; all of them for None."""
    stages = tuple(stages)
    if name is None:
        return stages
    last = stage(name).name
    return stages[: [s.name for s in stages].index(last) + 1]

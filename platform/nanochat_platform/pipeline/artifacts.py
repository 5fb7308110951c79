"""Which artifacts a stage's step takes and leaves: the lineage that a pipeline's backend shows.

Follows from the stage table alone. Knows nothing of a backend.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.run.stage import STAGES, Stage

TYPES = {
    "dataset": "system.Dataset",
    "tokenizer": "system.Artifact",
    "tokens": "system.Dataset",
    "model": "system.Model",
    "scores": "system.Markdown",
    "report": "system.Markdown",
    "page": "system.HTML",
    "metrics": "system.Metrics",
}
"""Artifact name -> its schema title. All but the last four are cards: JSON that says what is where."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One input or output of a step."""

    name: str
    schema: str


def outputs(stage: Stage) -> tuple[Artifact, ...]:
    """Return what the step of a stage leaves: its metrics, then what the stage writes."""
    names = ["metrics", *stage.writes]
    if "report" in stage.writes:
        names.append("page")
    return tuple(Artifact(name, TYPES[name]) for name in names)


def inputs(stage: Stage) -> tuple[tuple[Stage, Artifact], ...]:
    """Return the stages whose results a stage reads, each with the artifact that stands for it."""
    by_name = {candidate.name: candidate for candidate in STAGES}
    found = []
    for read in stage.reads:
        source = next(by_name[name] for name in read.rstrip("?").split("|") if name in by_name)
        found.append((source, outputs(source)[1]))
    return tuple(found)

"""The `report` stage: writes `report.md` and `report.html` of the run.

Knows nothing of models: it reads records and events only.
"""

from __future__ import annotations

from dataclasses import asdict

from nanochat.files import write_text
from nanochat.report.collect import Score, collect
from nanochat.report.markdown import markdown
from nanochat.report.page import page
from nanochat.run.context import StageContext, StageResult


def run(context: StageContext) -> StageResult:
    """Write both reports into the stage's folder.

    Raises:
        DataError: a record is damaged.
        StorageError: the volume refuses a report.
    """
    card = collect(context.run_dir)
    outputs = [context.dir / "report.md", context.dir / "report.html"]
    write_text(outputs[0], markdown(card))
    write_text(outputs[1], page(card))
    return StageResult(outputs, {"run_wall_s": round(card.wall_s, 3), "scores": _all_scores(card.scores)})


def _all_scores(scores: dict[str, list[Score]]) -> list[dict[str, object]]:
    """Return every figure with the stage it belongs to."""
    return [
        {"stage": stage, **{key: value for key, value in asdict(score).items() if value is not None}}
        for stage, of_stage in scores.items()
        for score in of_stage
    ]

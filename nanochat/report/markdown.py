"""The report card as Markdown, and its summary table for the terminal.

Knows nothing of HTML or of where the text goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.report import facts
from nanochat.report.collect import COLUMNS, Run, collect


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, align: str) -> str:
    """Return an aligned Markdown table; `align` has one letter a column: `l` left or `r` right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    rule = ["-" * w if side == "l" else "-" * (w - 1) + ":" for side, w in zip(align, widths, strict=True)]
    lines = [
        [c.ljust(w) if side == "l" else c.rjust(w) for side, c, w in zip(align, row, widths, strict=True)]
        for row in cells
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:]))


def summary_rows(run: Run) -> list[list[str]]:
    """Return the cells of the summary table."""
    rows = []
    for row in facts.summary(run):
        some = row.any
        chance = "" if some.chance is None else f"{some.chance:.1%}"
        figures = [facts.figure(row.figures[column]) for column in COLUMNS]
        rows.append([facts.label(row.name), facts.problems(row.name, some.n), chance, *figures])
    return rows


SUMMARY_HEAD = ("Metric", "n", "chance", *COLUMNS)


def summary_table(run_dir: Path) -> str:
    """Return the summary table of a run, metric x {BASE, MID, SFT, RL}, and its wall time.

    Raises:
        DataError: the folder is no run, or a record is damaged.
    """
    run = collect(run_dir)
    summary = table(SUMMARY_HEAD, summary_rows(run), align="lrrrrrr")
    return f"{summary}\n\nTotal wall time: {facts.duration(run.wall_s)}"


def stage_rows(run: Run) -> list[list[str]]:
    """Return stage, wall time, attempts and a short list of its own figures."""
    return [
        [stage, facts.duration(record.wall_s), str(record.attempts), facts.figures(record.metrics)]
        for stage, record in run.records.items()
        if stage != "report"
    ]


def interval_rows(run: Run) -> list[list[str]]:
    """Return task, stage, problems, figure, 95% interval and chance of every accuracy."""
    rows = []
    for column, stage in COLUMNS.items():
        for score in run.scores.get(stage, []):
            if score.low is None or score.high is None:
                continue
            rows.append(
                [
                    facts.label(score.name),
                    column,
                    facts.problems(score.name, score.n),
                    facts.figure(score),
                    f"{score.low:.1%} to {score.high:.1%}",
                    "" if score.chance is None else f"{score.chance:.1%}",
                ]
            )
    return rows


def quote(text: str) -> str:
    """Return text as a Markdown code block that no content of it can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def markdown(run: Run) -> str:
    """Return the whole report card."""
    parts = [
        f"# Report card: {run.name}",
        table(("", ""), [list(pair) for pair in facts.header(run)], align="ll"),
    ]
    parts += ["## Summary", table(SUMMARY_HEAD, summary_rows(run), align="lrrrrrr")]
    parts.append(
        "Bits per byte: lower is better, over every raw UTF-8 byte of whole held-out documents. Accuracies: "
        "higher is better; `n` problems, `chance` is what guessing gets. `-`: not evaluated."
    )
    if intervals := interval_rows(run):
        head = ("Task", "Stage", "n", "Accuracy", "95% interval", "Chance")
        parts += ["## Accuracies with their uncertainty", table(head, intervals, align="llrrrr")]
    parts += [
        "## Stages",
        table(("Stage", "Wall time", "Attempts", "Figures"), stage_rows(run), align="lrrl"),
    ]
    parts.append(f"Total wall time: {facts.duration(run.wall_s)}")
    if run.curves:
        rows = [
            [
                c.stage,
                c.name,
                c.unit,
                f"{c.points[0][1]:.4f}",
                f"{c.points[-1][1]:.4f}",
                f"{c.points[-1][0]:,.0f}",
            ]
            for c in run.curves
        ]
        head = ("Stage", "Curve", "Unit", "First", "Last", "Step")
        parts += ["## Curves", table(head, rows, align="lllrrr"), "Drawn in `report.html`."]
    if labels := facts.vocabularies(run):
        body = table(("Text", "bytes", *labels), facts.compression(run), align="lr" + "r" * len(labels))
        parts += ["## Tokenizer: bytes a token", body]
    if run.samples:
        parts.append("## Samples")
        parts += [
            f"**{sample.stage}** · {sample.prompt.strip()}\n\n{quote(sample.text.strip())}"
            for sample in run.samples
        ]
    return "\n\n".join(parts) + "\n"

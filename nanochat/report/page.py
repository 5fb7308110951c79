"""The report card as one HTML file that needs nothing else: style and charts are inside, no script.

Knows nothing of where the text goes. Everything that came from a run is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from nanochat.report import facts, markdown
from nanochat.report.collect import COLUMNS, Curve, Run, Sample, Score
from nanochat.report.svg import Interval, Line, interval_chart, line_chart, smooth

_CSS = Path(__file__).with_name("page.css")
_FOOTER = (
    "Bits per byte count every raw UTF-8 byte of whole held-out documents; documents longer than the context "
    "are read in overlapping windows. Accuracies are exact counts; intervals are Wilson's, 95%."
)
_NOTE = "Bits per byte: lower is better. Accuracies: higher is better. A dash: not evaluated."
_STAGE_CLASS = {"BASE": "four", "MID": "two", "SFT": "one", "RL": "three"}
_STAGE_NAMES = {
    "base_train": "Base training",
    "mid_train": "Midtraining",
    "chat_sft": "Fine-tuning",
    "chat_rl": "Reinforcement learning",
}


def page(run: Run) -> str:
    """Return the whole page."""
    body = [
        f"<h1>{escape(run.name)}</h1>",
        '<p class="lead">Report card of one training run, made from its records and events.</p>',
        _tiles(run),
        _definitions(facts.header(run)),
        "<h2>Summary</h2>",
        _summary(run),
        _accuracies(run),
        _curves(run),
        "<h2>Stages</h2>",
        _stages(run),
        _tokenizer(run),
        _samples(run.samples),
        f"<footer>{_FOOTER}</footer>",
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(run.name)}: report card</title>",
            f"<style>\n{_CSS.read_text('utf-8')}</style>\n</head>\n<body>\n<main>",
            *filter(None, body),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _tiles(run: Run) -> str:
    """Return the few figures that tell most: wall time, bits per byte, the best accuracies above chance."""
    tiles = [(facts.duration(run.wall_s), "wall time of all stages")]
    tiles += [
        (f"{score.value:.3f}", facts.label(score.name))
        for score in run.scores.get("base_eval", [])
        if score.name.startswith("bpb/")
    ][:3]
    last = next((run.scores[stage] for stage in reversed(COLUMNS.values()) if run.scores.get(stage)), [])
    above = [s for s in last if s.low is not None and s.low > (s.chance or 0.0)]
    tiles += [(facts.figure(s), facts.label(s.name)) for s in sorted(above, key=lambda s: -s.value)[:2]]
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for value, name in tiles)
    return f'<ul class="tiles">{items}</ul>'


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in pairs)}</dl>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    quiet = {"n", "chance"}
    cells = "".join(f'<th class="{"quiet" if name in quiet else ""}">{escape(name)}</th>' for name in head)
    body = f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _best(figures: dict[str, Score | None]) -> float | None:
    """Return the best of at least two different figures: the lowest bits, the highest accuracy."""
    known = [score for score in figures.values() if score is not None]
    values = [score.value for score in known]
    if len(set(values)) < 2:
        return None
    return min(values) if known[0].name.startswith("bpb/") else max(values)


def _summary(run: Run) -> str:
    rows = []
    for row in facts.summary(run):
        some, best = row.any, _best(row.figures)
        chance = "" if some.chance is None else f"{some.chance:.1%}"
        cells = [f"<td>{escape(facts.label(row.name))}</td>"]
        cells += [
            f'<td class="quiet">{facts.problems(row.name, some.n)}</td>',
            f'<td class="quiet">{chance}</td>',
        ]
        for score in row.figures.values():
            kind = "none" if score is None else "best" if score.value == best else ""
            cells.append(f'<td class="{kind}">{facts.figure(score)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        return '<p class="note">No evaluation has finished yet.</p>'
    return _table(markdown.SUMMARY_HEAD, rows) + f'<p class="note">{_NOTE}</p>'


def _accuracies(run: Run) -> str:
    tasks = [row for row in facts.summary(run) if row.any.low is not None]
    rows = [
        Interval(
            label=facts.label(row.name),
            note=column,
            value=score.value,
            low=score.low,
            high=score.high,
            chance=score.chance or 0.0,
            css=_STAGE_CLASS[column],
        )
        for row in tasks
        for column, score in row.figures.items()
        if score is not None and score.low is not None and score.high is not None
    ]
    if not rows:
        return ""
    used = dict.fromkeys(row.note for row in rows)
    keys = "".join(f'<i class="key {_STAGE_CLASS[column]}"></i>{column}' for column in used)
    chart = interval_chart(rows, caption="Accuracy of each task with its 95% interval")
    caption = f"<figcaption>{keys} &nbsp; bar: 95% interval, dashed: chance level</figcaption>"
    figure = f'<figure class="wide">{caption}<div class="scroll">{chart}</div></figure>'
    return f"<h2>Accuracies with their uncertainty</h2>{figure}"


def _curves(run: Run) -> str:
    stages = dict.fromkeys(curve.stage for curve in run.curves)
    charts = [chart for stage in stages for chart in _charts([c for c in run.curves if c.stage == stage])]
    return f'<h2>Training</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _charts(curves: Sequence[Curve]) -> list[str]:
    """Return the charts of one stage: the losses together, every other evaluation by itself."""
    curves = [curve for curve in curves if len(curve.points) > 1]
    losses = [curve for curve in curves if curve.name in ("train loss", "val_loss")]
    made = [_chart("loss", [line for curve in losses for line in _lines(curve)], losses[0])] if losses else []
    others = [curve for curve in curves if curve not in losses]
    return made + [_chart(facts.label(curve.name), _lines(curve), curve) for curve in others]


def _lines(curve: Curve) -> list[Line]:
    """Return a curve as lines: the training loss also smoothed, evaluations with a mark on every point."""
    name = facts.label(curve.name)
    if curve.name != "train loss":
        return [Line(name, curve.points, "two", dots="all" if len(curve.points) <= 60 else "last")]
    window = max(1, len(curve.points) // 50)
    mean = Line(f"mean of {window} steps" if window > 1 else name, smooth(curve.points, window), "one")
    return [Line("one step", curve.points, "one-pale", dots="none"), mean] if window > 1 else [mean]


def _chart(name: str, lines: Sequence[Line], curve: Curve) -> str:
    title = f"{_STAGE_NAMES.get(curve.stage, curve.stage)}: {name}"
    unit = facts.unit(curve.unit or curve.name)
    step, value = lines[-1].points[-1]
    keys = "".join(f'<i class="key {line.css}"></i>{escape(line.label)}' for line in lines)
    keys = f"<br>{keys}" if len(lines) > 1 else ""
    caption = f"{title}, ends at {value:.4f} {unit} after {step:,.0f} steps"
    chart = line_chart(lines, x_title="optimizer steps", y_title=unit, caption=caption)
    ends = f"ends at <b>{value:.4f}</b> {escape(unit)}"
    return f"<figure><h3>{escape(title)}</h3><figcaption>{ends}{keys}</figcaption>{chart}</figure>"


def _tokenizer(run: Run) -> str:
    labels = facts.vocabularies(run)
    if not labels:
        return ""
    rows = [
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in facts.compression(run)
    ]
    note = '<p class="note">Bytes that a token stands for: more means fewer tokens for the same text.</p>'
    return "<h2>Tokenizer</h2>" + _table(("Text", "bytes", *labels), rows) + note


def _stages(run: Run) -> str:
    records = {name: record for name, record in run.records.items() if name != "report"}
    longest = max((record.wall_s for record in records.values()), default=0.0) or 1.0
    rows = [
        f"<tr><td>{escape(name)}</td><td>{facts.duration(record.wall_s)}</td>"
        f'<td class="bar"><i style="width:{record.wall_s / longest:.1%}"></i></td>'
        f'<td class="figures">{escape(facts.figures(record.metrics))}</td></tr>'
        for name, record in records.items()
    ]
    total = f'<td class="best">Total</td><td class="best">{facts.duration(run.wall_s)}</td>'
    rows.append(f"<tr>{total}<td></td><td></td></tr>")
    return _table(("Stage", "Wall time", "", ""), rows)


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    cards = [
        f'<div class="sample"><b>{escape(sample.stage)}</b><mark>{escape(sample.prompt.strip())}</mark>'
        f"{escape(_answer(sample))}</div>"
        for sample in samples
    ]
    return f'<h2>Samples</h2><div class="samples">{"".join(cards)}</div>'


def _answer(sample: Sample) -> str:
    """Return the text as it stands behind its prompt: continued by a base model, below it by a chat model."""
    return sample.text.rstrip() if sample.stage.startswith("base") else f"\n{sample.text.strip()}"

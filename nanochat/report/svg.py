"""Charts as inline SVG: lines over steps, and accuracies as intervals beside their chance level.

Hand-made, without scripts; colours are CSS variables of the page, so they follow light
and dark. Knows nothing of runs.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 44
MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart; `css` is the class that colours it."""

    label: str
    points: Sequence[tuple[float, float]]
    css: str
    dots: str = "last"
    """Which points are marked: `all`, the `last` or `none`."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One accuracy with its bounds, all from 0 to 1."""

    label: str
    note: str
    value: float
    low: float
    high: float
    chance: float
    css: str


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers that cover [low, high], about `wanted` of them."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / wanted))
    step *= next((m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= wanted), 10)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most `limit` points: means of equal runs of neighbours, and the last point."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit - 1))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [*means[:-1], points[-1]]


def smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the running mean over the last `window` points."""
    made, total = [], 0.0
    for index, (x, y) in enumerate(points):
        total += y
        if index >= window:
            total -= points[index - window][1]
        made.append((x, total / min(index + 1, window)))
    return made


def _label(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.10g}"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _text(css: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{css}" x="{x}" y="{y}" text-anchor="{anchor}">{_escape(text)}</text>'


def _segment(css: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


class _Axes:
    """Maps data to the drawing area and draws grid, ticks and axis titles."""

    def __init__(self, lines: Sequence[Line]) -> None:
        xs = [x for line in lines for x, _ in line.points]
        ys = [y for line in lines for _, y in line.points]
        self.x_range = min(*xs, 0.0), max(*xs, 1.0)
        self.x_ticks = [tick for tick in ticks(*self.x_range) if tick <= self.x_range[1]]
        self.y_ticks = ticks(min(ys), max(ys))

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def draw(self, x_title: str, y_title: str) -> list[str]:
        base = HEIGHT - BOTTOM
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(_segment("grid", LEFT, WIDTH - RIGHT, y, y))
            parts.append(_text("tick", LEFT - 8, y + 4, "end", _label(tick)))
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(_segment("axis", x, x, base, base + 4))
            parts.append(_text("tick", x, base + 18, "middle", _label(tick)))
        parts.append(_segment("axis", LEFT, WIDTH - RIGHT, base, base))
        parts.append(_text("title", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "middle", x_title))
        turned = f'transform="translate(13 {(TOP + base) / 2}) rotate(-90)"'
        parts.append(f'<text class="title" {turned} text-anchor="middle">{_escape(y_title)}</text>')
        return parts


def line_chart(lines: Sequence[Line], *, x_title: str, y_title: str, caption: str) -> str:
    """Return one chart of lines over a common axis; `caption` is read to those who cannot see it."""
    lines = [Line(line.label, thin(line.points), line.css, line.dots) for line in lines if line.points]
    if not lines:
        return ""
    axes = _Axes(lines)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_escape(caption)}">',
        *axes.draw(x_title, y_title),
    ]
    for line in lines:
        path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in line.points)
        parts.append(f'<polyline class="line {line.css}" points="{path}"/>')
    for line in lines:
        marked = {"all": line.points, "last": line.points[-1:], "none": ()}[line.dots]
        for x, y in marked:
            parts.append(
                f'<circle class="dot {line.css}" cx="{axes.x(x)}" cy="{axes.y(y)}" r="3">'
                f"<title>{_escape(line.label)}: {y:.4f} at step {x:,.0f}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


SPAN, ROW, GAP, NAMES, VALUES = 720, 22, 12, 262, 72


def interval_chart(rows: Sequence[Interval], *, caption: str) -> str:
    """Return accuracies from 0 to 100% as dots with their 95% interval and a tick at chance level."""
    if not rows:
        return ""
    groups = len({row.label for row in rows})
    base = TOP + ROW * len(rows) + GAP * groups
    height, right = base + BOTTOM, SPAN - VALUES

    def x(value: float) -> float:
        return round(NAMES + value * (right - NAMES), 1)

    parts = [f'<svg viewBox="0 0 {SPAN} {height}" role="img" aria-label="{_escape(caption)}">']
    for percent in range(0, 101, 20):
        at = x(percent / 100)
        parts.append(_segment("grid", at, at, TOP - 6, base))
        parts.append(_text("tick", at, base + 18, "middle", f"{percent}%"))
    parts.append(_text("title", (NAMES + right) / 2, height - 6, "middle", "right answers"))
    y, label = TOP - ROW // 2, None
    for row in rows:
        y += ROW
        if row.label != label:
            label, y = row.label, y + (GAP if label else 0)
            parts.append(_text("name", 0, y + 4, "start", row.label))
        parts.append(_text("tick", NAMES - 12, y + 4, "end", row.note))
        if row.chance > 0:
            parts.append(_segment("chance", x(row.chance), x(row.chance), y - 9, y + 9))
        parts.append(_segment(f"range {row.css}", x(row.low), x(row.high), y, y))
        title = f"{row.label} {row.note}: {row.value:.1%}, 95% interval {row.low:.1%} to {row.high:.1%}"
        dot = f'<circle class="dot {row.css}" cx="{x(row.value)}" cy="{y}" r="4.5">'
        parts.append(f"{dot}<title>{_escape(title)}</title></circle>")
        parts.append(_text("value", SPAN, y + 4, "end", f"{row.value:.1%}"))
    return "".join([*parts, "</svg>"])

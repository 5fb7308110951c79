"""Progress of a stage on stderr, from its events: a bar on a terminal, greppable lines elsewhere.

Knows nothing of the work itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TextIO

from nanochat.run.events import Event, Listener

_LINE_FIELDS = ("loss", "tok_per_s", "dt_s", "lr", "mfu", "eta_s")


def progress(stream: TextIO, stage: str) -> Listener:
    """Return a listener that shows events on `stream`; has a `close` method."""
    return Bar(stream, stage) if stream.isatty() else Lines(stream, stage)


def number(value: Any) -> str:
    """Format a field: four significant digits for floats, JSON for text with spaces."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if not value or set(value) & set(' "=\n') else value
    return json.dumps(value, ensure_ascii=False)


def line(stage: str, event: Event) -> str:
    """Return an event as one line: its name, then `key=value` pairs."""
    fields = {"stage": stage} | {
        k: v for k, v in event.items() if k not in ("event", "time") and v is not None
    }
    if event["event"] == "step":
        names = ("stage", "step", "unit", *_LINE_FIELDS)
        fields["step"] = f"{event['step']}/{event['steps']}" if event.get("steps") else event["step"]
        fields = {name: fields[name] for name in names if name in fields}
    if event["event"] == "run":
        fields = {name: fields[name] for name in ("stage", "run", "attempt", "revision") if name in fields}
    return " ".join([event["event"], *(f"{name}={number(value)}" for name, value in fields.items())])


class Lines:
    """Plain lines; steps at most every `every_s` seconds, and the last one always."""

    def __init__(
        self, stream: TextIO, stage: str, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._stage = stage
        self._every_s = every_s
        self._clock = clock
        self._next: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event["event"] == "step" and not self._due(event):
            return
        print(line(self._stage, event), file=self._stream, flush=True)

    def _due(self, event: Event) -> bool:
        now, unit = self._clock(), str(event.get("unit", ""))
        last = event["step"] == event.get("steps")
        if not last and now < self._next.get(unit, 0.0):
            return False
        self._next[unit] = now + self._every_s
        return True


class Bar:
    """A rich progress bar with loss, tokens per second and time to go; other events print above it."""

    def __init__(self, stream: TextIO, stage: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._stage = stage
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=False,
            refresh_per_second=4,
        )
        self._tasks: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event["event"] == "step":
            self._step(event)
        else:
            text = sentence(self._stage, event)
            if text is not None:
                self._console.print(text, markup=False, soft_wrap=True)

    def _step(self, event: Event) -> None:
        unit = str(event.get("unit") or "step")
        if unit not in self._tasks:
            self._progress.start()
            self._tasks[unit] = self._progress.add_task(f"{self._stage} {unit}", total=None, facts="")
        self._progress.update(
            self._tasks[unit], completed=event["step"], total=event.get("steps") or None, facts=facts(event)
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def sentence(stage: str, event: Event) -> str | None:
    """Return what a person at a terminal reads of an event; None for what only machines need."""
    name = event["event"]
    if name == "eval":
        at = f" at step {event['step']}" if event.get("step") is not None else ""
        chance = f", chance {number(event['chance'])}" if event.get("chance") else ""
        problems = f" of {event['n']}{chance}" if event.get("low") is not None else ""
        return f"  {event['name']} {number(event['value'])}{problems}{at}"
    if name == "sample":
        return f"  {event['prompt']} > {' '.join(str(event['text']).split())}"
    if name == "checkpoint" and event.get("error"):
        return f"  checkpoint of step {event['step']} failed: {event['error']}"
    if name == "record":
        return f"{stage} finished in {duration(event['wall_s'])}"
    return f"{stage} continues: {event['after']}" if name == "restart" else None


def facts(event: Event) -> str:
    """Return what a bar shows beside the count, e.g. `loss 3.214  5,120 tok/s  1m 20s left`."""
    parts = []
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.3f}")
    if event.get("tok_per_s"):
        parts.append(f"{event['tok_per_s']:,.0f} tok/s")
    if event.get("mfu"):
        parts.append(f"mfu {event['mfu']:.1%}")
    if event.get("eta_s") is not None:
        parts.append(f"{duration(event['eta_s'])} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration for people, e.g. `45s`, `1m 20s`, `2h 05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"

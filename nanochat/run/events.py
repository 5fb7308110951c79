"""Events of a stage: one JSON line each, from a closed list, appended to `events.jsonl`.

Progress, metrics and the report card read events; nothing else is telemetry.
Knows nothing of who listens.

run         {run, stage, attempt, revision, hardware, settings}   a launcher began an attempt
stage       {stage, status: start | resume | done | skip | failed, ...}
step        {step, steps, unit, loss?, tok_per_s?, dt_s?, lr?, mfu?, eta_s?, tokens?}
eval        {name, value, step?, unit?, n?, chance?, low?, high?}
sample      {step, prompt, text}
checkpoint  {step, bytes, dt_s} or {step, error, misses}
restart     {attempt, after}                                      an earlier attempt had ended early
record      {stage, hash, wall_s}                                 the completion record was written
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat.files import storage_errors

EVENTS = ("run", "stage", "step", "eval", "sample", "checkpoint", "restart", "record")

Event = dict[str, Any]
Listener = Callable[[Event], None]


def _plain(value: Any) -> Any:
    """Return a JSON value: NaN and infinities, which JSON lacks, become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class EventLog:
    """Appends events to one file and hands each to the listeners.

    Several processes may append to one file: a line is one `write` of a file opened
    for appending. A line torn by a crash is ended by the next writer, and readers skip it.
    A full volume loses telemetry, never the run: `dropped` counts what was not written.
    """

    def __init__(
        self,
        path: Path | None,
        listeners: Iterable[Listener] = (),
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open `path` for appending; None: listeners only (ranks other than 0).

        Raises:
            StorageError: the volume refuses the file.
        """
        self.path = path
        self.listeners = list(listeners)
        self.dropped = 0
        self._clock = clock
        self._fd: int | None = None
        self._torn = False
        if path is not None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._torn = _ends_torn(path)
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def emit(self, name: str, /, **fields: Any) -> Event:
        """Append one event and tell the listeners; returns it."""
        if name not in EVENTS:
            raise ValueError(f"event {name!r} is not one of {EVENTS}")
        event = {"event": name, "time": round(self._clock(), 3), **_plain(fields)}
        self._write(json.dumps(event, ensure_ascii=False, separators=(",", ":")))
        for listener in self.listeners:
            listener(event)
        return event

    def _write(self, line: str) -> None:
        if self._fd is None:
            return
        data = (("\n" if self._torn else "") + line + "\n").encode("utf-8", "replace")
        try:
            written = os.write(self._fd, data)
        except OSError:
            self.dropped += 1
            return
        self._torn = written < len(data)
        self.dropped += self._torn

    def close(self) -> None:
        """Close the file and the listeners that can be closed."""
        for listener in self.listeners:
            close = getattr(listener, "close", None)
            if close is not None:
                close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ends_torn(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False


def read_events(path: Path, *names: str) -> Iterator[Event]:
    """Yield the events of a file, of the given names only where some are given; torn lines are skipped."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if (
                isinstance(event, dict)
                and event.get("event") in EVENTS
                and (not names or event["event"] in names)
            ):
                yield event


def spent_s(events: Iterable[Event]) -> float:
    """Return the seconds that all attempts worked: from each `run` event to the last one before the next.

    A clock that was set back between two events counts as no time.
    """
    total, first, last = 0.0, None, 0.0
    for event in events:
        if event["event"] == "run":
            total += max(0.0, last - first) if first is not None else 0.0
            first = event["time"]
        last = event["time"]
    return total + (max(0.0, last - first) if first is not None else 0.0)

"""Why a stage ended: from a rank to its launcher, and from the launcher to Kubernetes.

A rank has one slot in a file made beforehand and written in place, so it also works
on a full volume. The launcher's last words are one JSON line in the termination
message, which the pod's status shows. Knows nothing of what failed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from nanochat.errors import NanochatError, PeerLostError
from nanochat.files import storage_errors
from nanochat.run.config import Frozen
from nanochat.settings import termination_log

SLOT_BYTES = 4096
LAST_WORDS_BYTES = 4096  # the kubelet cuts a longer message, and half a JSON line says nothing


class LastWords(Frozen):
    """How a launcher ended: the termination message of its pod, one JSON line."""

    stage: str = ""
    """Empty where not even that was known."""
    run: str = ""
    exit_code: int = Field(ge=0, le=255)
    status: Literal["done", "skip", "failed"]
    record: str | None = None
    """Hash of the completion record; always there unless failed."""
    config: str | None = None
    """Hash of the settings that the result depends on."""
    wall_s: float | None = None
    """Seconds of work, all attempts together."""
    metrics: dict[str, float] | None = None
    """Figures of the record; as many as fit."""
    message: str | None = None
    hint: str | None = None

    def line(self) -> str:
        """Return the JSON, cut at the figures and then at the message until it and its newline fit."""
        values = self.model_dump(mode="json", exclude_none=True)
        figures = list((self.metrics or {}).items())
        while len(encoded := _json(values)) >= LAST_WORDS_BYTES and figures:
            figures = figures[: len(figures) * 3 // 4]
            values["metrics"] = dict(figures)
        text = self.message or ""
        while len(encoded) >= LAST_WORDS_BYTES and text:
            text = text[: len(text) * 3 // 4]
            values["message"] = f"{text} ..."
            values.pop("hint", None)
            encoded = _json(values)
        return encoded.decode()


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def write_last_words(words: LastWords, path: Path | None = None) -> None:
    """Write them where Kubernetes looks, or to `path`; nothing happens where that cannot be written."""
    path = path or termination_log()
    if path is not None:
        with contextlib.suppress(OSError):
            path.write_text(words.line() + "\n", encoding="utf-8")


def parse_last_words(text: str) -> LastWords | None:
    """Return the last words in a termination message; None when it is something else."""
    try:
        return LastWords.model_validate_json(text.strip())
    except ValidationError:
        return None


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of nested figures, `a/b` for `b` inside `a`."""
    return dict(_numbers(values, prefix))


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", value


def tell(path: Path, local_rank: int, error: NanochatError) -> bool:
    """Write an error into the slot of a local rank; False when that failed."""
    slot = json.dumps(
        {
            "message": error.message[:500],
            "hint": (error.hint or "")[:150] or None,
            "lost": isinstance(error, PeerLostError),
        }
    )
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, slot.encode().ljust(SLOT_BYTES)[:SLOT_BYTES], local_rank * SLOT_BYTES)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


class Reasons:
    """The launcher's end: makes the file, reads it, removes it."""

    def __init__(self, folder: Path, *, slots: int, rank: int = 0) -> None:
        """`rank` tells the launchers of one folder apart: those of nodes, and those that torchrun started."""
        self.path = folder / f".reason-{rank}"
        self._slots = slots

    def __enter__(self) -> Reasons:
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("wb") as file:
                file.write(b" " * (SLOT_BYTES * self._slots))
                file.flush()
                os.fsync(file.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def error(self, code: int, local_rank: int) -> NanochatError | None:
        """Return what the local rank that ended with exit code `code` wrote; None when it wrote nothing."""
        slot = self._slot(local_rank)
        if slot is None:
            return None
        message, hint = str(slot.get("message", "")), slot.get("hint")
        if slot.get("lost"):
            return PeerLostError(message, hint=hint)
        error = NanochatError(message, hint=hint)
        error.exit_code = code
        return error

    def lost(self, local_rank: int) -> bool:
        """Return whether the local rank ended because another one was gone."""
        return bool((self._slot(local_rank) or {}).get("lost"))

    def _slot(self, local_rank: int) -> dict[str, Any] | None:
        try:
            data = self.path.read_bytes()[local_rank * SLOT_BYTES : (local_rank + 1) * SLOT_BYTES]
            slot = json.loads(data)
        except (OSError, ValueError):
            return None
        return slot if isinstance(slot, dict) else None

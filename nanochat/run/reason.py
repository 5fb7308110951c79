"""How a rank tells the launcher why it failed: one slot a rank, in a file made beforehand.

Written in place, so it also works on a full volume. Knows nothing of what failed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nanochat.errors import NanochatError
from nanochat.files import storage_errors

SLOT_BYTES = 4096


def tell(path: Path, local_rank: int, error: NanochatError) -> bool:
    """Write an error into the slot of a local rank; False when that failed."""
    slot = json.dumps({"message": error.message[:500], "hint": (error.hint or "")[:150] or None})
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
        """`rank` tells the launchers of one folder apart where torchrun started several."""
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
        error = NanochatError(str(slot.get("message", "")), hint=slot.get("hint"))
        error.exit_code = code
        return error

    def _slot(self, local_rank: int) -> dict[str, Any] | None:
        try:
            data = self.path.read_bytes()[local_rank * SLOT_BYTES : (local_rank + 1) * SLOT_BYTES]
            slot = json.loads(data)
        except (OSError, ValueError):
            return None
        return slot if isinstance(slot, dict) else None

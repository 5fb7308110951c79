"""The lock of a run: one launcher at a time, also after `kill -9`.

A kernel lock on `runs/<run>/owner`, so it ends with the process that holds it;
Python opens the file close-on-exec, so children never hold it. Where a network
volume does not carry the lock to other machines, the attempt number in the file
is the fence: checkpoints of an older attempt are not published. Knows nothing of stages.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.errors import RunLockedError
from nanochat.files import storage_errors


def read_owner(path: Path) -> dict[str, Any]:
    """Return what the last holder wrote: attempt, pid, host, stage, time; `{"attempt": 0}` when nothing."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {"attempt": 0}
    return owner if isinstance(owner, dict) and isinstance(owner.get("attempt"), int) else {"attempt": 0}


def _refuse(path: Path) -> RunLockedError:
    owner = read_owner(path)
    where = f"process {owner.get('pid', '?')} on host {owner.get('host', '?')}"
    return RunLockedError(
        f"run `{path.parent.name}` is in use by {where} (stage `{owner.get('stage', '?')}`)",
        hint="wait for it or stop it, or choose another run with `--run NAME`",
    )


@contextlib.contextmanager
def run_lock(run_dir: Path, stage: str) -> Iterator[int]:
    """Hold the run for the duration of the block; yields the attempt number, one more than the last.

    Raises:
        RunLockedError: another process holds it; names pid, host and stage.
    """
    path = run_dir / "owner"
    with storage_errors(path):
        run_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refuse(path) from None
        attempt = read_owner(path)["attempt"] + 1
        owner = {
            "attempt": attempt,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "stage": stage,
            "time": round(time.time(), 3),
        }
        with storage_errors(path):
            # In place: a rename would leave the lock on a file that nobody opens again.
            os.pwrite(fd, json.dumps(owner).ljust(512).encode() + b"\n", 0)
            os.fsync(fd)
        yield attempt
    finally:
        os.close(fd)


def check_free(run_dir: Path) -> None:
    """Return when no process holds the run.

    Raises:
        RunLockedError: one does.
    """
    path = run_dir / "owner"
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refuse(path) from None
        finally:
            os.close(fd)

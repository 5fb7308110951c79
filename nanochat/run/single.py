"""One rank: start the worker as a child, forward signals, watch it, say how it ended.

Imports no torch. Knows nothing of stages.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from nanochat.run.signals import STOP_SIGNALS, forwarded, handled_signals

WORKER = "nanochat.run.worker"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the launcher waits, in seconds."""

    hang_s: float = 1800.0
    """Without an event: then the ranks are killed (exit 202)."""
    grace_s: float = 300.0
    """From SIGTERM or SIGINT until SIGKILL."""
    gather_s: float = 900.0
    """For all nodes to come: pods of one job may pull images at different speeds."""
    peer_s: float = 30.0
    """Without a sign of life from another node's launcher: then it counts as lost."""
    poll_s: float = 0.5


@dataclass(slots=True)
class Ended:
    """How the ranks ended."""

    code: int
    """Exit code; negative: died by that signal."""
    rank: int = 0
    local_rank: int = 0
    asked: int | None = None
    """The signal that the launcher had forwarded, if any."""
    impatient: bool = False
    """True when a second SIGINT asked to kill."""
    hung_s: float | None = None
    """Seconds without an event after which the ranks were killed."""
    yielded: bool = False
    """True when the ranks were killed because another node had failed."""


class Watch:
    """Notices that a file no longer grows. The clock is monotonic: a suspended laptop is not a hang."""

    def __init__(
        self, path: Path | None, limit_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._limit_s = limit_s
        self._clock = clock
        self._size = -1
        self._since = clock()

    def stalled_s(self) -> float | None:
        """Return the seconds without growth once they exceed the limit, else None."""
        size = -1
        if self._path is not None:
            with contextlib.suppress(OSError):
                size = self._path.stat().st_size
        now = self._clock()
        if size != self._size:
            self._size, self._since = size, now
        still = now - self._since
        return still if self._path is not None and still > self._limit_s else None


class _Child:
    def __init__(self, arguments: list[str], limits: Limits) -> None:
        command = [sys.executable, "-m", WORKER, "--parent", str(os.getpid()), *arguments]
        # Its own group: Ctrl-C in a terminal reaches the launcher, which forwards it exactly once.
        self.process = subprocess.Popen(command, process_group=0)
        self.ended = Ended(code=0)
        self._limits = limits
        self._deadline: float | None = None

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Forward the first signal; kill at a second SIGINT."""
        signum = forwarded(signum)
        if self.ended.asked is None:
            self.ended.asked = int(signum)
            self._deadline = time.monotonic() + self._limits.grace_s
            self.process.send_signal(signum)
        elif signum == signal.SIGINT:
            self.ended.impatient = True
            self.kill()

    def kill(self) -> None:
        """Kill the worker and all that it started in its group."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, watch: Watch) -> Ended:
        """Wait for the end; kills at the end of the grace period or on a hang."""
        while True:
            try:
                self.ended.code = self.process.wait(timeout=self._limits.poll_s)
                return self.ended
            except subprocess.TimeoutExpired:
                self._check(watch)

    def _check(self, watch: Watch) -> None:
        if self._deadline is not None:
            if time.monotonic() > self._deadline:
                self.kill()
            return
        stalled = watch.stalled_s()
        if stalled is None:
            return
        self.ended.hung_s = stalled
        self.process.send_signal(signal.SIGUSR1)  # it prints the stacks of its threads
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1.0)
        self.kill()


def run_single(arguments: list[str], limits: Limits, *, watch: Path | None) -> Ended:
    """Run one worker to its end. Signals are blocked on entry, so none is lost before the handlers stand."""
    child = _Child(arguments, limits)
    before = {signum: signal.signal(signum, child.on_signal) for signum in handled_signals()}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        return child.wait(Watch(watch, limits.hang_s))
    finally:
        child.kill()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        for signum, handler in before.items():
            signal.signal(signum, handler)

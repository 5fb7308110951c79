"""What watches over the ranks of a node from a thread of its own: signals, limits, other nodes.

Stop signals stay blocked in every thread and are fetched here, so that none arrives
in the middle of anything. Knows nothing of how ranks are started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from nanochat.run.nodes import News
from nanochat.run.signals import StopNow, forwarded, handled_signals
from nanochat.run.single import Ended, Limits, Watch

LOOK_S = 0.1
YIELD_S = 5.0
"""Ranks may go on for so long after another node failed, in case they know why themselves."""
YIELD_STOPPED_S = 30.0
"""The same after another node had stopped as it was asked: ours have saved too, and are about to end."""
STACKS_S = 1.0
"""A rank has so long to write the stacks of its threads."""


class Peers(Protocol):
    """The part of `nanochat.run.nodes.Nodes` that is needed here."""

    def look(self) -> News: ...
    def stop(self, signum: int) -> None: ...


class Guard:
    """Forwards what the launcher is asked, and kills ranks that do not end; a context manager."""

    def __init__(
        self,
        ended: Ended,
        peers: Peers,
        watch: Watch,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ended` is told what was asked for and why ranks were killed."""
        self.ended = ended
        self.pids: Callable[[], Iterable[int]] = tuple
        """Gives the ranks that run, each the leader of its process group."""
        self._peers, self._watch, self._limits, self._clock = peers, watch, limits, clock
        self._deadline: float | None = None
        self._yield_at: float | None = None
        self._signalled: set[int] = set()
        self._signals = set(handled_signals())  # before torch replaces what `nohup` set
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    def __enter__(self) -> Guard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def deadline(self) -> float | None:
        """When the grace period ends; None: nobody asked to stop."""
        return self._deadline

    def check(self) -> None:
        """Raise `StopNow` once somebody asked to stop: for work before the ranks exist."""
        if self.ended.asked is not None:
            raise StopNow(self.ended.asked)

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self.step()

    def step(self) -> None:
        """Look once, and do what is due."""
        waiting = signal.sigpending() & self._signals
        if waiting:
            self.ask(signal.sigwait(waiting))
        news = self._peers.look()
        if news.stop is not None and self.ended.asked is None:
            self._ask(news.stop)
        if self.ended.asked is not None:
            self._forward(self.ended.asked)
        if self._due(news):
            self._send(signal.SIGKILL)

    def ask(self, signum: int) -> None:
        """Stop the ranks of all nodes; a second SIGINT kills those of this one."""
        signum = forwarded(signum)
        if self.ended.asked is None:
            self._ask(signum)
            self._peers.stop(signum)
        elif signum == signal.SIGINT:
            self.ended.impatient = True

    def _ask(self, signum: int) -> None:
        self.ended.asked = int(signum)
        self._deadline = self._clock() + self._limits.grace_s

    def _forward(self, signum: int) -> None:
        for pid in self.pids():
            if pid not in self._signalled:
                self._signalled.add(pid)
                self._signal(pid, signum)

    def _due(self, news: News) -> bool:
        """Return whether the ranks must go now."""
        if self.ended.impatient or (self._deadline is not None and self._clock() > self._deadline):
            return True
        if self.ended.hung_s is not None or self.ended.yielded:
            return True
        stalled = self._watch.stalled_s() if self.ended.asked is None else None
        if stalled is not None:
            self.ended.hung_s = stalled
            self._show_stacks()
            return True
        if news.failed is None:
            return False
        if self._yield_at is None:
            stopped = news.failed.code in (130, 143)
            self._yield_at = self._clock() + (YIELD_STOPPED_S if stopped else YIELD_S)
        if self._clock() < self._yield_at or not list(self.pids()):
            return False
        self.ended.yielded = True
        if news.failed.code == 202:
            self._show_stacks()
        return True

    def _show_stacks(self) -> None:
        self._send(signal.SIGUSR1)
        self._over.wait(STACKS_S)

    def _send(self, signum: int) -> None:
        for pid in self.pids():
            self._signal(pid, signum)

    def _signal(self, pid: int, signum: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(pid, signum) if signum == signal.SIGKILL else os.kill(pid, signum)

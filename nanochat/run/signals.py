"""Signals of a process tree: a flag that work polls, and death with the parent.

Knows nothing of stages. Stop signals are blocked by the launcher around the
start of a child and unblocked by `StopFlag.install`, so none is lost in between.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType

from nanochat.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What stops a process; SIGHUP, which a closing terminal sends, counts as SIGTERM."""
_PR_SET_PDEATHSIG = 1


def handled_signals() -> list[signal.Signals]:
    """Return the stop signals to handle: SIGHUP stays ignored under `nohup`."""
    return [
        signum
        for signum in STOP_SIGNALS
        if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN
    ]


def forwarded(signum: int) -> signal.Signals:
    """Return what a child is sent: SIGINT as it is, SIGTERM for all others."""
    return signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM


class StopNow(BaseException):
    """Raised by the handler in work that does not poll; not an `Exception`, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopFlag:
    """Which signal asked this process to stop, if one did.

    Work that reads `signum` is trusted to go on reading it, to save, and to raise
    `Interrupted`. Until the first reading (imports, compilation, stages that do not
    poll because each of their files is atomic) a signal stops the process at once.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._polled = False

    @property
    def signum(self) -> int | None:
        """The first signal received, or None; reading it makes stopping cooperative."""
        self._polled = True
        return self._signum

    def install(self) -> None:
        """Handle the stop signals from now on; main thread only."""
        for signum in handled_signals():
            signal.signal(signum, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def set(self, signum: int) -> None:
        """Ask to stop without a signal (tests, other ranks)."""
        self._signum = self._signum or signum

    def raise_if_set(self, what: str) -> None:
        """Raise `Interrupted` when a signal arrived; `what` says what is safe, e.g. `step 120 is saved`."""
        if self.signum is not None:
            raise interrupted(self.signum, what)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self._signum is None
        self.set(forwarded(signum))
        if first and not self._polled:
            raise StopNow(forwarded(signum))


def interrupted(signum: int, what: str) -> Interrupted:
    """Return the error of a stop by `signum`."""
    return Interrupted(
        signum,
        f"stopped by {signal.Signals(signum).name}: {what}",
        hint="run the same command again to continue",
    )


def die_with_parent(parent: int) -> None:
    """Make this process be killed when process `parent`, which started it, ends in any way.

    Linux: the kernel does it. Elsewhere: a thread looks at the parent's id once a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_poll_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the kernel knew of our wish
        os._exit(128 + signal.SIGKILL)


def _poll_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(128 + signal.SIGKILL)

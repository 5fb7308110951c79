"""One child process at a time, in a group of its own, and the stop signals that it is owed.

Knows nothing of what the child does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Self

from nanochat.run.signals import STOP_SIGNALS, forwarded, handled_signals, interrupted


class Child:
    """Starts processes one after another and gives each stop signal to the one that runs, exactly once.

    Use as a context in the main thread: it owns the handlers of the stop signals.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        """The first stop signal received."""
        self._process: subprocess.Popen[str] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {signum: signal.signal(signum, self._forward) for signum in handled_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        hear: Callable[[str], None] | None = None,
        stdout: int | None = None,
    ) -> tuple[int, str]:
        """Run one process to its end; returns its exit code, 128 + n for a signal, and its stdout.

        Args:
            command: what to start.
            env: its environment; None: this process's.
            hear: takes each line of its stderr; None: it has this process's.
            stdout: `subprocess.PIPE` to read it (a result, no more than a pipe holds); None: this process's.

        Raises:
            Interrupted: a stop signal arrived before it was started.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if self.signum is not None:
                raise interrupted(self.signum, "all finished stages are saved")
            # Its own group: Ctrl-C reaches this process alone, which forwards it exactly once.
            self._process = process = subprocess.Popen(
                command,
                env=env,
                stdout=stdout,
                stderr=None if hear is None else subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if process.stderr is not None and hear is not None:
            for line in process.stderr:
                hear(line.rstrip("\n"))
        said, _ = process.communicate()
        self._process = None
        code = process.returncode
        return (128 - code if code < 0 else code), said or ""

    def kill(self) -> None:
        """Kill the process that runs, if one does; for signal handlers."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or forwarded(signum)
        if self._process is not None:
            self._process.send_signal(forwarded(signum))

"""Start our command line by a fork of a process that has imported it, to die right before a file operation.

Sixty deaths of a process that needs 0.4 s to import itself would be the whole time of the test. Imports are
not counted: they are the interpreter's.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection
from pathlib import Path

AUDITED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.scandir")
CODE = (".py", ".pyc", ".so", ".pth", ".dist-info")
PRELOADED = (
    "nanochat_platform.cli.app",
    "nanochat_platform.kube.planned",
    "nanochat_platform.local",
    "nanochat_platform.submit",
    "yaml",
)


# An exit code comes through a pipe, once: a second reader sees its end, which multiprocessing takes for
# code 255. Not only `join` reads: to start a process reads those of all others that have ended.
_READING = threading.Lock()


class Fork:
    """The command line in a process of its own, which any thread may kill or await."""

    def __init__(self, limit: int | None, *arguments: str) -> None:
        """Start it, to be killed before its file operation number `limit`; None: before none."""
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([__name__, *PRELOADED])
        self._process = server.Process(target=main, args=(limit, arguments), daemon=True)
        with _READING:
            self._process.start()

    def kill(self) -> None:
        """Send it SIGKILL and return when it has ended."""
        self._process.kill()
        self.wait(10)

    def wait(self, timeout: float) -> int:
        """Return its exit code, that of a signal negative, once it has ended.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
        """
        if not connection.wait([self._process.sentinel], timeout):
            raise TimeoutError(f"process {self._process.pid} still runs after {timeout:.0f} s")
        with _READING:
            self._process.join()
            code = self._process.exitcode
        assert code is not None
        return code


def main(limit: int | None, arguments: tuple[str, ...]) -> None:
    """Run in the fork: count, and end there."""
    from nanochat_platform.cli import app

    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    count = 0

    def audit(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event not in AUDITED or not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = Path(os.fsdecode(args[0]))
        if path.suffix in CODE or "python3" in path.parts[-2:] or path.is_relative_to(sys.prefix):
            return
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    if limit is not None:
        sys.addaudithook(audit)
    os._exit(app.run(arguments))

"""Start the real server command for a measurement and stop it afterwards."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def served(run: str) -> Iterator[str]:
    """Yield the base URL of `nanochat serve --run RUN` on a free port."""
    command = [sys.executable, "-m", "nanochat_platform.cli", "serve", "--run", run, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("the server's stdout is not a pipe")
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"`{' '.join(command)}` ended before it printed its URL")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            process.wait(timeout=60)

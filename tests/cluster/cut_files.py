"""Run our command line, and die by SIGKILL right before its k-th file operation.

`python cut_files.py K ARGUMENTS...`. Imports are not counted: they are the interpreter's.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from nanochat_platform.cli import app

AUDITED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.scandir")
CODE = (".py", ".pyc", ".so", ".pth", ".dist-info")


def main() -> int:
    """Count, and end there."""
    limit, arguments = int(sys.argv[1]), sys.argv[2:]
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

    sys.addaudithook(audit)
    return app.run(arguments)


if __name__ == "__main__":
    sys.exit(main())

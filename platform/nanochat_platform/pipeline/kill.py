"""`python -m nanochat_platform.pipeline.kill SIGNAL`: stop the step of this container and its job.

A backend runs it inside the step's container in place of its own kill command, more
than once. It asks the step to cancel, makes sure that nothing of it is left, and then
passes the signal on to the container. Knows nothing of backends but that.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from nanochat_platform.pipeline.cancel import State, cancel

ARGOEXEC = Path("/var/run/argo/argoexec")
STEP_PATIENCE_S = 5.0


def main(argv: list[str]) -> int:
    """Cancel, then signal the container; returns 0, because a backend can do nothing about anything else."""
    signum = int(argv[0]) if argv and argv[0].isdigit() else 15
    state = State.read()
    if state is not None:
        ask(state.pid)
        for problem in cancel(state, timeout_s=2.0):
            print(f"warning: {problem}", file=sys.stderr)
    pass_on(signum)
    return 0


def ask(pid: int, *, patience_s: float = STEP_PATIENCE_S) -> None:
    """Ask the step to cancel and wait until it has ended."""
    deadline = time.monotonic() + patience_s
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, 15)
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            if _ended(pid):
                return
            time.sleep(0.02)


def _ended(pid: int) -> bool:
    """Return whether a process is only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def pass_on(signum: int) -> None:
    """Give the signal to the container's first process, as the backend's own command would."""
    if ARGOEXEC.exists():
        subprocess.run([str(ARGOEXEC), "kill", str(signum), "1"], check=False)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(1, signum)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What Argo and a pipeline's launcher do inside a step's container, in one program for the test backend.

`emissary` is process 1: it starts `launcher` in a process group of its own and ends soon after it, and
with it everything else in the container. `launcher` fetches input artifacts, runs the step's command with
its stdout and stderr as pipes, and says on its own stdout what the step left. It has no signal handler:
a SIGTERM to the group reaches the step too, whose stdout is a broken pipe from then on. `kill` is what
Argo runs to signal the group. Reads `job.json`; standard library alone.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

HERE = pathlib.Path(__file__).parent
GROUP = pathlib.Path("/tmp/launcher-group")  # noqa: S108
MARK = "KFP-OUTPUT "


def emissary() -> int:
    """Be process 1; a container ends with it, and the kernel kills what is left."""
    job = json.loads((HERE / "job.json").read_text())
    launcher = subprocess.Popen([sys.executable, __file__, "launcher"], process_group=0)
    GROUP.write_text(str(launcher.pid))
    # As process 1 it would ignore signals without a handler; Argo's passes them on to the group.
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(launcher.pid, signal.SIGTERM))
    code = launcher.wait()
    if code < 0:  # the launcher is gone; how long the step lives on depends on when that is noticed
        time.sleep(job["linger_s"])
    return 0 if code == 0 else 1  # Argo shows every failure as 1


def local(uri: str) -> pathlib.Path:
    """Return the file of an artifact in the container."""
    assert uri.startswith("minio://"), uri
    return pathlib.Path("/minio") / uri.removeprefix("minio://")


def launcher() -> int:
    """Fetch inputs, run the step, collect what it left."""
    job = json.loads((HERE / "job.json").read_text())
    given = job["executor_input"]
    for artifacts in given["inputs"]["artifacts"].values():
        for artifact in artifacts["artifacts"]:
            path = local(artifact["uri"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(job["store"][artifact["uri"]]))  # missing: the step fails
    output_file = pathlib.Path(given["outputs"]["outputFile"])
    output_file.parent.mkdir(parents=True, exist_ok=True)
    for artifacts in given["outputs"]["artifacts"].values():
        local(artifacts["artifacts"][0]["uri"]).parent.mkdir(parents=True, exist_ok=True)
    step = subprocess.Popen(job["argv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert step.stdout is not None
    assert step.stderr is not None
    copies = [
        threading.Thread(target=copy, args=(source, sys.stdout.fileno()))
        for source in (step.stdout, step.stderr)
    ]
    for thread in copies:
        thread.start()
    code = step.wait()
    for thread in copies:
        thread.join()
    if code != 0:
        return 1  # the step's own code is lost here
    print(MARK + json.dumps(collect(given, output_file)), flush=True)
    return 0


def copy(source: IO[bytes], target: int) -> None:
    """Pass on what the step says, as it comes."""
    while chunk := os.read(source.fileno(), 65536):
        os.write(target, chunk)


def collect(given: Mapping[str, Any], output_file: pathlib.Path) -> dict[str, Any]:
    """Return the account of the outputs and the files that a launcher would upload."""
    said = json.loads(output_file.read_text()) if output_file.exists() else {}
    uploads = {}
    for name, artifacts in given["outputs"]["artifacts"].items():
        told = said.get("artifacts", {}).get(name, {}).get("artifacts", [{}])[0]
        path = local(told.get("uri") or artifacts["artifacts"][0]["uri"])
        if path.exists():
            uploads[artifacts["artifacts"][0]["uri"]] = base64.b64encode(path.read_bytes()).decode()
    return {"said": said, "uploads": uploads}


def kill(signum: str) -> int:
    """Signal the launcher's group; a group that has gone is no error."""
    try:
        os.killpg(int(GROUP.read_text()), int(signum))
    except (OSError, ValueError):
        return 1
    return 0


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "kill":
        sys.exit(kill(rest[0]))
    sys.exit(emissary() if role == "emissary" else launcher())

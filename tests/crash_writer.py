"""Kill a checkpoint writer at every file operation of a save, and look at what a reader finds.

`python tests/crash_writer.py FOLDER`: imports torch once, then forks one writer for each
operation of the save, which kills itself right before that operation. Prints one JSON line:
the number of crash points, and the violations found.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanochat.checkpoint import folder as committed
from nanochat.checkpoint.commit import CheckpointStore

AUDITED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")


def save(stage: Path, step: int) -> None:
    """Save a checkpoint whose every file says which step it is."""
    value = {"w": torch.full((9,), float(step))}
    CheckpointStore(stage).save(step, model=value, optim=value, state={"step": step})


def counted(limit: int | None, operations: list[str]) -> None:
    """Record each file operation of this process from now on; die right before number `limit`."""

    def count(name: str) -> None:
        operations.append(name)
        if len(operations) - 1 == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            count(name)
            return function(*args, **options)

        return call

    os.fsync = wrapped("fsync", os.fsync)
    committed.HashingFile.write = wrapped("write", committed.HashingFile.write)  # type: ignore[method-assign]
    sys.addaudithook(lambda event, args: count(event) if event in AUDITED and is_ours(event, args) else None)


def is_ours(event: str, args: tuple[Any, ...]) -> bool:
    """Leave out what Python itself opens, e.g. a module."""
    return event != "open" or "checkpoints" in str(args[0])


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def violations(stage: Path, old: int, new: int) -> list[str]:
    """Return what is wrong with the folder that a killed writer left."""
    found = CheckpointStore(stage).latest()
    if found is None:
        return ["none"]
    wrong = []
    if found.step not in (old, new):
        wrong.append(f"step {found.step}")
    held = {found.state["step"], *found.load_model()["w"].tolist(), *found.load_optim()["w"].tolist()}
    if held != {found.step}:
        wrong.append(f"a mix: {held}")
    save(stage, new)
    again = CheckpointStore(stage).latest()
    if again is None or again.step != new:
        wrong.append("the next save was not found")
    left = [path.name for path in (stage / "checkpoints").iterdir() if path.name.startswith(".")]
    return wrong + [f"left {name}" for name in left]


def scenario(root: Path, prepare: Callable[[Path], None], new: int) -> dict[str, Any]:
    """Kill a save of step `new` at each of its operations, starting from what `prepare` makes."""
    master = root / "master"
    prepare(master)
    operations: list[str] = []
    target = root / "count"
    shutil.copytree(master, target)
    report = root / "operations.json"

    def count_all() -> None:
        counted(None, operations)
        save(target, new)
        names = list(operations)
        report.write_text(json.dumps(names))

    assert in_child(count_all) == 0
    names = json.loads(report.read_text())
    wrong = {}
    for point in range(len(names)):
        stage = root / f"at-{point}" / "s"
        shutil.copytree(master, stage)

        def die(point: int = point, stage: Path = stage) -> None:
            counted(point, [])
            save(stage, new)

        status = in_child(die)
        problems = violations(stage, new - 1, new)
        if not os.WIFSIGNALED(status):
            problems.append(f"was not killed: {status}")
        if problems:
            wrong[f"{point} {names[point]}"] = problems
        shutil.rmtree(stage.parent)
    return {"points": len(names), "names": names, "wrong": wrong}


def two_checkpoints(stage: Path) -> None:
    """Steps 1 and 2; saving step 3 retires step 1."""
    save(stage, 1)
    save(stage, 2)


def a_damaged_target(stage: Path) -> None:
    """Steps 1 and 2, and a damaged step 3 in the way."""
    two_checkpoints(stage)
    bad = stage / "checkpoints" / "step-00000003"
    shutil.copytree(stage / "checkpoints" / "step-00000002", bad)
    os.truncate(bad / "model.safetensors", 10)


def left_overs(stage: Path) -> None:
    """Steps 1 and 2, and what two dead writers left."""
    two_checkpoints(stage)
    for name in (".incoming-00000003-0", ".incoming-00000002-7", ".removing-step-00000000"):
        shutil.copytree(stage / "checkpoints" / "step-00000002", stage / "checkpoints" / name)


def main() -> None:
    """Run the scenarios."""
    root = Path(sys.argv[1])
    result = {
        prepare.__name__: scenario(root / prepare.__name__, prepare, 3)
        for prepare in (two_checkpoints, a_damaged_target, left_overs)
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

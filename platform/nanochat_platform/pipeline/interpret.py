"""Run a compiled pipeline on this machine: each step a process, in the order of the file, no backend.

Reads the same file as a backend and starts each step's own command; `--local`, added
to its arguments, makes the step run its stage here instead of submitting a job. Knows
nothing of stages.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nanochat.errors import DataError
from nanochat.files import read_json
from nanochat.settings import Home, environment
from nanochat_platform.kube.names import HOME
from nanochat_platform.pipeline.child import Child
from nanochat_platform.pipeline.ir import Key, Pipeline, Step


@dataclass(slots=True)
class Outcome:
    """How one step went, and the artifacts that it left."""

    step: str
    state: Literal["SUCCEEDED", "FAILED"]
    exit_code: int
    artifacts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """How the steps went; `exit_code` is that of the last."""

    pipeline: str
    folder: Path
    steps: list[Outcome] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when every step succeeded."""
        return self.steps[-1].exit_code if self.steps else 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        steps = [
            {"step": o.step, "state": o.state, "exit_code": o.exit_code, "artifacts": o.artifacts}
            for o in self.steps
        ]
        return {
            "pipeline": self.pipeline,
            "exit_code": self.exit_code,
            "artifacts": str(self.folder),
            "steps": steps,
        }


def run(pipeline: Pipeline, values: Mapping[str, Any], home: Home, say: Callable[[str], None]) -> Result:
    """Run the steps until one fails; artifacts go to a new folder below the home's cache.

    Raises:
        Interrupted: a stop signal arrived between two steps.
        DataError: a step's account of its outputs is damaged.
    """
    folder = home.cache / "pipelines" / pipeline.name / uuid.uuid4().hex[:12]
    result = Result(pipeline.name, folder)
    produced: dict[Key, Any] = {}
    with Child() as child:
        for step in pipeline.steps:
            say(f"step {step.name}")
            outcome = _run_step(step, values, produced, folder=folder, home=home, child=child)
            result.steps.append(outcome)
            produced |= {(step.name, name): artifact for name, artifact in outcome.artifacts.items()}
            if outcome.exit_code != 0:
                say(f"step {step.name} ended with {outcome.exit_code}")
                break
    return result


def _run_step(
    step: Step,
    values: Mapping[str, Any],
    produced: Mapping[Key, Any],
    *,
    folder: Path,
    home: Home,
    child: Child,
) -> Outcome:
    place = folder / step.name
    place.mkdir(parents=True, exist_ok=True)
    output_file = place / "output_metadata.json"
    executor_input = step.executor_input(
        values, produced, uri=lambda task, name: str(folder / task / name), output_file=str(output_file)
    )
    # A step whose pod does not mount the volume names its folder all the same: here it is always there.
    mounts = {HOME: str(home.root)}
    mounts |= {mount["mountPath"]: str(home.root) for mount in step.platform.get("pvcMount", ())}
    env = environment(**{name: mounts.get(value, value) for name, value in step.env.items()})
    program, *arguments = step.argv(executor_input)
    command = [sys.executable if program in ("python", "python3") else program, *arguments, "--local"]
    code, _ = child.run(command, env=env)
    if code != 0:
        return Outcome(step.name, "FAILED", code)
    return Outcome(step.name, "SUCCEEDED", 0, collect(executor_input, output_file))


def collect(executor_input: Mapping[str, Any], output_file: Path) -> dict[str, Any]:
    """Return a step's output artifacts: as provisioned, with what its output file says over them.

    Raises:
        DataError: the file is not what a step writes.
    """
    return merge(executor_input, read_json(output_file) if output_file.exists() else {})


def merge(executor_input: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step's output artifacts: as provisioned, with what the step said of them over that.

    Raises:
        DataError: it speaks of an artifact that it does not leave.
    """
    told = said.get("artifacts", {})
    found = {}
    for name, artifacts in executor_input["outputs"]["artifacts"].items():
        provisioned = artifacts["artifacts"][0]
        mine = told.get(name, {}).get("artifacts", [{}])[0]
        metadata = {**provisioned.get("metadata", {}), **mine.get("metadata", {})}
        found[name] = {**provisioned, "uri": mine.get("uri") or provisioned["uri"], "metadata": metadata}
    if unknown := sorted(set(told) - set(found)):
        raise DataError(f"a step tells of the artifact `{unknown[0]}`, which it does not leave")
    return found

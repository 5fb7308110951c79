"""`python -m nanochat_platform.pipeline.step`: what each container of the pipeline runs.

Takes a stage and the backend's `ExecutorInput`, makes the run's spec of it, has the
stage done by a child process (`nanochat submit` in a cluster, `nanochat run` with
`--local`), and tells the backend what it left. Owns the stage's attempts through
`submit`, because a backend's own retries do nothing for a step that exits. Knows
nothing of how jobs are made or what stages do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from nanochat import settings
from nanochat.errors import ConfigError, NanochatError
from nanochat.files import no_permission, write_json
from nanochat.run.reason import LastWords, write_last_words
from nanochat.run.record import Record
from nanochat.run.signals import interrupted
from nanochat.run.stage import stage as find_stage
from nanochat.settings import Home
from nanochat_platform.kube.names import HOME
from nanochat_platform.pipeline.cancel import State, cancel, connect
from nanochat_platform.pipeline.child import Child
from nanochat_platform.pipeline.outputs import wait_for_record, write_outputs
from nanochat_platform.pipeline.parameters import Parameters
from nanochat_platform.pipeline.pod import Pod

CANCEL_TIMEOUT_S = 0.3
CLI = (sys.executable, "-m", "nanochat_platform.cli")


def main(argv: list[str] | None = None) -> int:
    """Do one stage; returns the exit code of what did it."""
    parser = argparse.ArgumentParser(prog="python -m nanochat_platform.pipeline.step", description=__doc__)
    parser.add_argument("--stage", required=True, help="name of the stage")
    parser.add_argument("--executor-input", required=True, help="the backend's ExecutorInput, as JSON")
    parser.add_argument("--local", action="store_true", help="run the stage here instead of submitting a job")
    parser.add_argument("--no-volume", action="store_true", help="the run's volume is not mounted here")
    args = parser.parse_args(argv)
    try:
        executor_input, parameters = read_input(args.executor_input)
        find_stage(args.stage)
        if args.local:
            return run_here(args.stage, executor_input, parameters)
        return Submission(args.stage, executor_input, parameters, mounted=not args.no_volume).run()
    except NanochatError as error:
        return fail(error, stage=args.stage)
    except PermissionError as error:
        return fail(no_permission(error), stage=args.stage)


def read_input(text: str) -> tuple[dict[str, Any], Parameters]:
    """Return the `ExecutorInput` and the run's parameters in it.

    Raises:
        ConfigError: it is not one, or a parameter is wrong.
    """
    try:
        found = json.loads(text)
        values = found["inputs"]["parameterValues"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            "--executor-input is not the ExecutorInput of a pipeline step",
            hint="a pipeline's backend, or `nanochat pipeline run --local`, fills it in",
        ) from None
    return found, Parameters.of(values, what="pipeline parameters")


def say(text: str) -> None:
    """Print talk; a reader that has gone, as after a terminated run, is no reason to end."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def fail(
    error: NanochatError, *, stage: str, run: str = "", tell: Callable[[str], None] | None = None
) -> int:
    """Leave the cause where Kubernetes and `nanochat explain` look, then print it; returns its exit code."""
    words = LastWords(
        stage=stage,
        run=run,
        exit_code=error.exit_code,
        status="failed",
        message=error.message,
        hint=error.hint,
    )
    write_last_words(words)
    if tell is not None:
        tell(error.message)
    say(error.render())
    return error.exit_code


def run_here(stage: str, executor_input: Mapping[str, Any], parameters: Parameters) -> int:
    """Run the stage on this machine as `nanochat run` does, and tell its outputs; returns the exit code.

    Raises:
        NanochatError: the outputs cannot be told.
    """
    with Child() as child:
        code, _ = child.run([*CLI, "run", stage, *parameters.flags()], stdout=subprocess.DEVNULL)
        if code == 0:
            tell_outputs(stage, executor_input, parameters, expected=None)
    return code


def tell_outputs(
    stage: str, executor_input: Mapping[str, Any], parameters: Parameters, *, expected: str | None
) -> None:
    """Write the artifacts of a finished stage and the account of them.

    Raises:
        DataError: the completion record is not on this step's volume.
        StorageError: a file cannot be written.
    """
    home, run = settings.home(), parameters.run_name
    record = wait_for_record(home, home.stage(run, stage), expected)
    write_outputs(executor_input, home, record, run=run, claim=parameters.claim)


class Submission:
    """One stage done by jobs in the cluster: a child submits and follows, this process answers for it.

    A stop signal takes everything back at once: the child is killed first, so that it can make no
    further attempt, then the lease and the jobs are deleted.
    """

    def __init__(
        self, stage: str, executor_input: Mapping[str, Any], parameters: Parameters, *, mounted: bool = True
    ) -> None:
        """`mounted`: whether the run's volume is mounted here, so that its records can be read."""
        self.stage = stage
        self._mounted = mounted
        self.parameters = parameters
        self._input = executor_input
        self._child = Child()
        self._transport = connect()
        self._pod = Pod.own(self._transport)
        self._errors: list[str] = []
        namespace = parameters.namespace or self._pod.namespace
        self.state = State(
            pid=os.getpid(),
            run=parameters.run_name,
            stage=stage,
            kind=parameters.kind,
            namespace=namespace,
        )

    def run(self) -> int:
        """Submit, follow, tell the outputs; returns the exit code.

        Raises:
            NanochatError: the outputs cannot be told.
        """
        self.state.write()
        self._pod.join(self.state.run)
        with tempfile.TemporaryDirectory() as folder, self._child:
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(signum, self._stop)
            try:
                code, said = self._child.run(
                    self.command(Path(folder)), hear=self._hear, stdout=subprocess.PIPE
                )
                if code == 0:
                    self._tell(result_of(said))
                    return 0
                error = self._error(code)
            except NanochatError as raised:
                error = raised
            return fail(error, stage=self.stage, run=self.state.run, tell=self._pod.annotate_cause)

    def command(self, folder: Path) -> list[str]:
        """Write the run's spec below `folder`; returns the command that submits the stage."""
        spec = folder / "run.yaml"
        write_json(spec, self.parameters.run_spec(self._pod.namespace))  # JSON is YAML
        command = [*CLI, "submit", "--spec", str(spec), "--stage", self.stage, "--lease", "--json"]
        owner = self._pod.workflow
        if owner is not None and self.state.namespace == self._pod.namespace:
            command += ["--owner", owner]  # an owner in another namespace would end the job at once
        if self.parameters.wait_for_nodes:
            command.append("--wait-for-nodes")
        return command

    def _tell(self, result: Mapping[str, Any]) -> None:
        """Write the outputs from the record on the volume, else from what the job said last."""
        identity = result.get("record")
        if self._mounted or identity is None:
            tell_outputs(self.stage, self._input, self.parameters, expected=identity)
            return
        said = Record(
            stage=self.stage,
            config={},
            config_hash="",
            metrics=result.get("metrics") or {},
            wall_s=result.get("work_s") or 0.0,
            attempts=result.get("attempts") or 1,
        )
        run, claim = self.state.run, self.parameters.claim
        write_outputs(self._input, Home(Path(HOME)), said, run=run, claim=claim, identity=identity)

    def _hear(self, line: str) -> None:
        say(line)
        if line.startswith(("error: ", "hint: ")):
            self._errors.append(line)

    def _error(self, code: int) -> NanochatError:
        """Return what the child said last before it ended with a code."""
        message = next((e for e in reversed(self._errors) if e.startswith("error: ")), "")
        hint = next((e for e in reversed(self._errors) if e.startswith("hint: ")), "")
        error = NanochatError(
            message.removeprefix("error: ") or f"submitting stage `{self.stage}` ended with {code}",
            hint=hint.removeprefix("hint: ") or None,
        )
        error.exit_code = code
        return error

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        self._child.kill()
        problems = cancel(self.state, timeout_s=CANCEL_TIMEOUT_S, transport=self._transport)
        error = interrupted(signum, "; ".join(problems) or f"the jobs of stage `{self.stage}` are deleted")
        fail(error, stage=self.stage, run=self.state.run)
        os._exit(error.exit_code)


def result_of(text: str) -> dict[str, Any]:
    """Return what `nanochat submit --json` says of the stage; empty where it says nothing."""
    try:
        found = json.loads(text)["stages"][-1]
    except (ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    sys.exit(main())

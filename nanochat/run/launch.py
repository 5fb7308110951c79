"""The one launcher: `python -m nanochat.run.launch --config runs/<run>/<stage>/config.json`.

Takes the run's lock, decides from the record whether there is work, starts the
ranks, forwards signals, watches for hangs, and ends with the exit code and the
reason of what happened. Knows nothing of what a stage does, and imports no torch
where one rank is enough.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import HangError, Interrupted, NanochatError, RankLostError
from nanochat.files import no_permission
from nanochat.run.config import StageConfig
from nanochat.run.events import EventLog, read_events
from nanochat.run.lock import run_lock
from nanochat.run.progress import progress
from nanochat.run.ranks import Ranks, plan_ranks
from nanochat.run.reason import Reasons
from nanochat.run.record import Record, find_inputs
from nanochat.run.setup import judge, load_config, stage_folder
from nanochat.run.signals import STOP_SIGNALS, die_with_parent
from nanochat.run.single import Ended, Limits, run_single
from nanochat.run.stage import Stage
from nanochat.run.stage import stage as find_stage
from nanochat.settings import termination_log


def main(argv: list[str] | None = None) -> int:
    """Run one stage to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nanochat.run.launch", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="runs/<run>/<stage>/config.json")
    parser.add_argument("--parent", type=int, help="process whose end ends this one")
    parser.add_argument("--hang-s", type=float, default=1800.0, help="seconds without an event before 202")
    parser.add_argument("--grace-s", type=float, default=300.0, help="seconds to stop in after a signal")
    args = parser.parse_args(argv)
    # Blocked until children and handlers exist; every waiting place unblocks them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if args.parent is not None:
        die_with_parent(args.parent)
    try:
        launch(args.config, Limits(hang_s=args.hang_s, grace_s=args.grace_s))
    except NanochatError as error:
        return _fail(error)
    except PermissionError as error:
        return _fail(no_permission(error))
    return 0


def _fail(error: NanochatError) -> int:
    print(error.render(), file=sys.stderr, flush=True)
    leave_reason(error)
    return error.exit_code


def leave_reason(error: NanochatError) -> None:
    """Write the reason where Kubernetes looks for a container's last words."""
    path = termination_log()
    if path is not None:
        with contextlib.suppress(OSError):
            path.write_text(error.render()[:4000], encoding="utf-8")


def launch(path: Path, limits: Limits) -> None:
    """Run the stage of a `config.json` unless its record says that it is finished.

    Raises:
        NanochatError: what ended it; its `exit_code` is the process's.
    """
    config = load_config(path)
    stage = find_stage(config.stage)
    where, folder = stage_folder(path, config)
    run_dir = where.run(config.spec.run)
    ranks = plan_ranks(stage, config.spec.nproc)
    attempt = _Attempt(path=path, config=config, stage=stage, folder=folder, ranks=ranks, limits=limits)
    if ranks.kind == "idle":
        return
    if not ranks.first:
        if judge(stage, config, folder, where, find_inputs(stage, run_dir)).action == "run":
            attempt.work(EventLog(None))
        return
    shown = progress(sys.stderr, stage.name)
    with run_lock(run_dir, stage.name), EventLog(folder / "events.jsonl", [shown]) as events:
        verdict = judge(stage, config, folder, where, find_inputs(stage, run_dir))
        if verdict.notice:
            print(f"notice: {verdict.notice}", file=sys.stderr, flush=True)
        if verdict.action == "skip":
            events.emit("stage", stage=stage.name, status="skip")
            return
        attempt.begin(events)
        attempt.work(events)


@dataclass(slots=True, kw_only=True)
class _Attempt:
    path: Path
    config: StageConfig
    stage: Stage
    folder: Path
    ranks: Ranks
    limits: Limits
    number: int = 0
    """Among the attempts at this stage, from 1; the number in `owner` counts those at the whole run."""

    def begin(self, events: EventLog) -> None:
        """Withdraw an old record and say that an attempt begins."""
        (self.folder / "record.json").unlink(missing_ok=True)
        earlier = list(read_events(self.folder / "events.jsonl", "run", "stage"))
        self.number = 1 + sum(event["event"] == "run" for event in earlier)
        unfinished = bool(earlier) and earlier[-1].get("status") not in ("done", "skip")
        if unfinished:
            after = earlier[-1].get("reason") or "the process was killed"
            events.emit("restart", stage=self.stage.name, attempt=self.number, after=after)
        spec = self.config.spec
        events.emit(
            "run",
            run=spec.run,
            stage=self.stage.name,
            attempt=self.number,
            settings=spec.relevant(self.stage),
        )
        status = "resume" if unfinished else "start"
        events.emit("stage", stage=self.stage.name, status=status, attempt=self.number)

    def work(self, events: EventLog) -> None:
        """Start the ranks and wait for their end.

        Raises:
            NanochatError: the stage is not finished.
        """
        ranks = self.ranks
        with Reasons(self.folder, slots=ranks.slots, rank=ranks.rank) as reasons:
            arguments = ["--config", str(self.path), "--attempt", str(self.number)]
            arguments += ["--reason", str(reasons.path)]
            if ranks.kind == "agent":
                from nanochat.run.elastic import run_elastic

                ended = run_elastic(arguments, ranks, self.limits, watch=events.path)
            else:
                ended = run_single([*arguments, "--slot", "0"], self.limits, watch=events.path)
            error = self.error(ended, reasons)
        if error is None:
            events.emit("stage", stage=self.stage.name, status="done", attempt=self.number)
            return
        events.emit(
            "stage",
            stage=self.stage.name,
            status="failed",
            attempt=self.number,
            exit_code=error.exit_code,
            reason=error.message,
        )
        raise error

    def error(self, ended: Ended, reasons: Reasons) -> NanochatError | None:
        """Return what the end of the ranks means; None when the stage is finished."""
        name = self.stage.name
        if ended.hung_s is not None:
            return HangError(
                f"stage `{name}` showed no progress for {ended.hung_s:.0f} s and was killed",
                hint="the stacks of its threads are above; run the same command again to continue",
            )
        if ended.code == 0:
            finished = not self.ranks.first or Record.load(self.folder) is not None
            return None if finished else NanochatError(f"stage `{name}` ended without a record")
        if ended.code < 0:
            return _lost(ended, name)
        told = reasons.error(ended.code, ended.local_rank)
        if told is None:
            told = NanochatError(f"stage `{name}` ended with exit code {ended.code}; its last lines say why")
            told.exit_code = ended.code
        return told


def _lost(ended: Ended, stage: str) -> NanochatError:
    """Return the error of a rank that died by a signal."""
    signum = -ended.code
    name = signal.Signals(signum).name if signum in signal.valid_signals() else str(signum)
    if signum == ended.asked:  # it was told to stop before its own handler stood
        return Interrupted(
            signum,
            f"stopped by {name}: stage `{stage}` is not finished",
            hint=_AGAIN,
        )
    if ended.asked is not None and signum == signal.SIGKILL:
        why = "it did not stop in time" if not ended.impatient else "a second signal asked for it"
        return RankLostError(signum, f"stage `{stage}` was killed: {why}", hint=_AGAIN)
    memory = "; often the system's out-of-memory killer" if signum == signal.SIGKILL else ""
    return RankLostError(signum, f"rank {ended.rank} of stage `{stage}` died by {name}{memory}", hint=_AGAIN)


_AGAIN = "run the same command again to continue from the last checkpoint"


if __name__ == "__main__":
    sys.exit(main())

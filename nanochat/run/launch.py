"""The one launcher: `python -m nanochat.run.launch --config runs/<run>/<stage>/config.json`.

Takes the run's lock, decides from the record whether there is work, starts the
ranks, forwards signals, watches for hangs, and ends with the exit code and the
reason of what happened. NANOCHAT_CONFIG, where it is set, stands for the file, which
is then written here. Knows nothing of what a stage does, and imports no torch where
one rank is enough.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from nanochat.errors import (
    ConfigError,
    DataError,
    HangError,
    Interrupted,
    NanochatError,
    PeerLostError,
    RankLostError,
)
from nanochat.files import no_permission, write_json
from nanochat.run.config import StageConfig
from nanochat.run.events import EventLog, read_events
from nanochat.run.lock import run_lock
from nanochat.run.progress import progress
from nanochat.run.ranks import Ranks, plan_ranks
from nanochat.run.reason import LastWords, Reasons, flat_numbers, write_last_words
from nanochat.run.record import Record, find_inputs
from nanochat.run.setup import judge, load_config, stage_folder
from nanochat.run.signals import STOP_SIGNALS, die_with_parent
from nanochat.run.single import Ended, Limits, run_single
from nanochat.run.stage import Stage
from nanochat.run.stage import stage as find_stage
from nanochat.settings import Home, stage_config


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=self.format_usage().strip())


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    limits = Limits()
    parser = _Parser(prog="python -m nanochat.run.launch", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="runs/<run>/<stage>/config.json")
    parser.add_argument("--parent", type=int, help="process whose end ends this one")
    for name, default, text in (
        ("--hang-s", limits.hang_s, "seconds without an event before 202"),
        ("--grace-s", limits.grace_s, "seconds to stop in after a signal"),
        ("--gather-s", limits.gather_s, "seconds for the launchers of all nodes to come"),
        ("--peer-s", limits.peer_s, "seconds of silence after which another node counts as lost"),
    ):
        parser.add_argument(name, type=float, default=default, help=text)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run one stage to its end; returns the exit code."""
    # Blocked until children and handlers exist; every waiting place unblocks or fetches them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    path: Path | None = None
    try:
        args = _arguments(argv)
        path = args.config
        if args.parent is not None:
            die_with_parent(args.parent)
        words = launch(
            args.config,
            Limits(hang_s=args.hang_s, grace_s=args.grace_s, gather_s=args.gather_s, peer_s=args.peer_s),
        )
    except NanochatError as error:
        return _fail(error, path)
    except PermissionError as error:
        return _fail(no_permission(error), path)
    except Exception as error:
        traceback.print_exc()
        return _fail(NanochatError(f"the launcher failed: {type(error).__name__}: {error}"), path)
    if words is not None:
        write_last_words(words)
    return 0


def _fail(error: NanochatError, path: Path | None) -> int:
    print(error.render(), file=sys.stderr, flush=True)
    parts = path.absolute().parts[-4:] if path is not None else ()
    run, stage = parts[1:3] if len(parts) == 4 and parts[0] == "runs" else ("", "")
    write_last_words(
        LastWords(
            stage=stage,
            run=run,
            exit_code=error.exit_code,
            status="failed",
            message=error.message,
            hint=error.hint,
        )
    )
    return error.exit_code


def launch(path: Path, limits: Limits) -> LastWords | None:
    """Run the stage of a `config.json` unless its record says that it is finished.

    Returns the last words of the launcher that the stage belongs to; the others have none.

    Raises:
        NanochatError: what ended it; its `exit_code` is the process's.
    """
    given = stage_config()
    config = load_config(path, given)
    stage = find_stage(config.stage)
    where, folder = stage_folder(path, config)
    ranks = plan_ranks(stage, config.spec.nproc)
    attempt = _Attempt(
        path=path, config=config, stage=stage, where=where, folder=folder, ranks=ranks, limits=limits
    )
    if ranks.kind == "idle":
        return None
    if not ranks.first:
        inputs = find_inputs(stage, where.run(config.spec.run))
        if judge(stage, config, folder, where, inputs).action == "run":
            attempt.work(EventLog(None))
        return None
    return attempt.locked(write=given is not None)


@dataclass(slots=True, kw_only=True)
class _Attempt:
    path: Path
    config: StageConfig
    stage: Stage
    where: Home
    folder: Path
    ranks: Ranks
    limits: Limits
    number: int = 0
    """Among the attempts at this stage, from 1; the number in `owner` counts those at the whole run."""

    def locked(self, *, write: bool) -> LastWords:
        """Do, under the run's lock, what is left to do; `write`: the configuration came without its file."""
        stage, run_dir = self.stage, self.where.run(self.config.spec.run)
        shown = progress(sys.stderr, stage.name)
        with run_lock(run_dir, stage.name), EventLog(self.folder / "events.jsonl", [shown]) as events:
            verdict = judge(stage, self.config, self.folder, self.where, find_inputs(stage, run_dir))
            if verdict.notice:
                print(f"notice: {verdict.notice}", file=sys.stderr, flush=True)
            if write:
                write_json(run_dir / "spec.json", self.config.spec.model_dump(mode="json"))
                write_json(self.path, self.config.model_dump(mode="json"))
            if verdict.action == "skip":
                events.emit("stage", stage=stage.name, status="skip")
                return self.words("skip")
            self.begin(events)
            self.work(events)
            return self.words("done")

    def words(self, status: Literal["done", "skip"]) -> LastWords:
        """Return what is left to say of a finished stage."""
        record = Record.load(self.folder)
        if record is None:
            raise DataError(f"the record of stage `{self.stage.name}` is gone", hint=_AGAIN)
        return LastWords(
            stage=self.stage.name,
            run=self.config.spec.run,
            exit_code=0,
            status=status,
            record=record.hash,
            config=record.config_hash,
            wall_s=record.wall_s,
            metrics=flat_numbers(record.metrics),
        )

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
        with Reasons(self.folder, slots=self.ranks.slots, rank=self.ranks.rank) as reasons:
            error = self._ranks(reasons, watch=events.path)
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

    def _ranks(self, reasons: Reasons, *, watch: Path | None) -> NanochatError | None:
        arguments = ["--config", str(self.path), "--attempt", str(self.number)]
        arguments += ["--reason", str(reasons.path)]
        if self.ranks.kind != "agent":
            ended = run_single([*arguments, "--slot", "0"], self.limits, watch=watch)
            return self.error(ended, reasons)
        from nanochat.run.elastic import run_elastic

        return run_elastic(
            arguments,
            self.ranks,
            self.limits,
            lambda ended: self.error(ended, reasons),
            reasons=reasons,
            facts={"run": self.config.spec.run, "stage": self.stage.name, "configuration": self.config.hash},
            watch=watch,
        )

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
        if isinstance(told, PeerLostError) and ended.asked is not None:
            return _stopped(ended.asked, name)
        return told


def _lost(ended: Ended, stage: str) -> NanochatError:
    """Return the error of a rank that died by a signal."""
    signum = -ended.code
    if signum == ended.asked:  # it was told to stop before its own handler stood
        return _stopped(signum, stage)
    if ended.yielded and signum == signal.SIGKILL:
        return PeerLostError(
            f"the ranks of stage `{stage}` were killed here: another node failed", hint=_AGAIN
        )
    if ended.asked is not None and signum == signal.SIGKILL:
        why = "it did not stop in time" if not ended.impatient else "a second signal asked for it"
        return RankLostError(signum, f"stage `{stage}` was killed: {why}", hint=_AGAIN)
    name = _name(signum)
    memory = "; often the system's out-of-memory killer" if signum == signal.SIGKILL else ""
    return RankLostError(signum, f"rank {ended.rank} of stage `{stage}` died by {name}{memory}", hint=_AGAIN)


def _stopped(signum: int, stage: str) -> Interrupted:
    return Interrupted(signum, f"stopped by {_name(signum)}: stage `{stage}` is not finished", hint=_AGAIN)


def _name(signum: int) -> str:
    return signal.Signals(signum).name if signum in signal.valid_signals() else str(signum)


_AGAIN = "run the same command again to continue from the last checkpoint"


if __name__ == "__main__":
    code = main()
    if "torch" in sys.modules:
        # A thread may wait in torch for a node that is gone, and Python's own end would abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

"""One rank of one stage: `python -m nanochat.run.worker --config F`, started by the launcher alone.

Imports the stage's module, calls its `run(context)`, and on rank 0 writes the
record. Knows nothing of the other ranks beyond its own number. torch is imported
by stage modules, never here.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path

from nanochat.errors import ConfigError, NanochatError, PeerLostError
from nanochat.files import storage_errors
from nanochat.run.config import StageConfig
from nanochat.run.context import StageContext, StageResult
from nanochat.run.events import EventLog, read_events, spent_s
from nanochat.run.progress import progress
from nanochat.run.reason import tell
from nanochat.run.record import Record, code_revision, find_inputs, hardware, hash_outputs
from nanochat.run.setup import load_config, stage_folder
from nanochat.run.signals import STOP_SIGNALS, StopFlag, StopNow, die_with_parent, interrupted
from nanochat.run.stage import Stage
from nanochat.run.stage import stage as find_stage
from nanochat.settings import Topology, stage_config, topology


def main(argv: list[str] | None = None) -> int:
    """Run one rank to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nanochat.run.worker")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--reason", type=Path, help="file for the reason of a failure")
    parser.add_argument("--slot", type=int, help="place in that file; the local rank without it")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    slot, place = args.slot or 0, Topology()
    try:
        place = topology()
        slot = place.local_rank if args.slot is None else args.slot
        _run(args.config, args.attempt, place)
    except NanochatError as error:
        return _fail(error, args.reason, slot)
    except Exception as error:
        told = _translate(error, place.rank)
        if not isinstance(told, PeerLostError):  # the rank that is gone has a reason, this one has none
            traceback.print_exc()
        return _fail(told, args.reason, slot)
    finally:
        # Python takes its own handlers down early; a late signal must not hide the exit code.
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
    return 0


def _fail(error: NanochatError, reason: Path | None, slot: int) -> int:
    """Hand the reason to the launcher, which prints it once for all ranks; returns the exit code."""
    if reason is None or not tell(reason, slot, error):
        print(error.render(), file=sys.stderr)
    return error.exit_code


_LOST_CONNECTION = {"DistBackendError", "DistNetworkError", "DistStoreError"}
"""torch's errors of a rank whose peers are gone; gloo raises a bare RuntimeError with its own name in it."""


def _translate(error: Exception, rank: int) -> NanochatError:
    """Return an error that is not ours as one sentence; torch's are known by name, as it is not imported."""
    kind = type(error).__name__
    if kind in _LOST_CONNECTION or (kind == "RuntimeError" and "gloo" in str(error).lower()):
        said = re.sub(r"^\[[^\]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        return PeerLostError(
            f"rank {rank} lost the connection to the other ranks: {said}",
            hint="run the same command again to continue from the last checkpoint",
        )
    if kind == "OutOfMemoryError":
        return ConfigError(
            f"the device has too little memory: {str(error).splitlines()[0]}",
            hint="halve `--device-batch-size`; the total batch, and so the result, stays the same",
        )
    return NanochatError(f"{kind}: {error}")


def _run(path: Path, attempt: int, place: Topology) -> None:
    config = load_config(path, stage_config())
    home, folder = stage_folder(path, config)
    stage = find_stage(config.stage)
    place = place if stage.ranks else Topology()
    first = place.rank == 0
    listeners = [progress(sys.stderr, stage.name)] if first else []
    stop = StopFlag()
    with EventLog(folder / "events.jsonl" if first else None, listeners) as events:
        context = StageContext(
            config=config, home=home, dir=folder, events=events, topology=place, stop=stop, attempt=attempt
        )
        try:
            stop.install()
            context.inputs = find_inputs(stage, context.run_dir)
            began = time.monotonic()
            with storage_errors(folder):
                result = _call(stage, context)
                if first:
                    _finish(stage, context, result, time.monotonic() - began)
        except StopNow as stopped:
            raise interrupted(stopped.signum, f"stage `{stage.name}` is not finished") from None
        except KeyboardInterrupt:
            raise interrupted(signal.SIGINT, f"stage `{stage.name}` is not finished") from None


def _call(stage: Stage, context: StageContext) -> StageResult:
    try:
        module = importlib.import_module(stage.module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"stage `{stage.name}` needs the module `{error.name}`, which is not installed",
            hint="install `nanochat-platform[train]`",
        ) from error
    result = module.run(context)
    if not isinstance(result, StageResult):
        raise TypeError(f"{stage.module}.run returned {type(result).__name__}, not StageResult")
    return result


def _finish(stage: Stage, context: StageContext, result: StageResult, took_s: float) -> None:
    config: StageConfig = context.config
    settings = config.spec.relevant(stage)
    history = list(read_events(context.dir / "events.jsonl"))
    finished = time.time()
    record = Record(
        stage=stage.name,
        config=settings,
        config_hash=config.hash,
        inputs={name: record.hash for name, record in context.inputs.items()},
        revision=code_revision(),
        outputs=hash_outputs(result.outputs, context.home),
        metrics=result.metrics,
        wall_s=round(max(spent_s(history), took_s), 3),
        attempts=max(1, sum(event["event"] == "run" for event in history)),
        started=round(min([event["time"] for event in history] + [finished - took_s]), 3),
        finished=round(finished, 3),
        hardware=hardware(),
    )
    record.save(context.dir)
    context.emit("record", stage=stage.name, hash=record.hash, wall_s=record.wall_s)


if __name__ == "__main__":
    code = main()
    if code:
        # torch may abort when it takes connections to dead peers down, and hide why this rank ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

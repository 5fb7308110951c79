"""Several ranks: torch elastic as a library, with the same worker as its entry point.

One attempt, no restarts inside: a restart is a new launcher, which continues from
the last checkpoint. Knows nothing of stages.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from types import FrameType

from nanochat.run.ranks import Ranks
from nanochat.run.signals import STOP_SIGNALS, StopNow, forwarded, handled_signals
from nanochat.run.single import WORKER, Ended, Limits, Watch


def _stop(signum: int, frame: FrameType | None) -> None:
    raise StopNow(forwarded(signum))


def run_elastic(arguments: list[str], ranks: Ranks, limits: Limits, *, watch: Path | None) -> Ended:
    """Run the local ranks to their end; torch's agent forwards signals to them."""
    for signum in handled_signals():
        signal.signal(signum, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    ended = Ended(code=0)
    done = threading.Event()
    guard = threading.Thread(
        target=_guard, args=(ended, Watch(watch, limits.hang_s), limits, done), daemon=True
    )
    try:
        _agent(arguments, ranks, limits, ended, guard)
    except StopNow as stopped:
        ended.code, ended.asked = -stopped.signum, stopped.signum
    finally:
        done.set()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    return ended


def _agent(arguments: list[str], ranks: Ranks, limits: Limits, ended: Ended, guard: threading.Thread) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    elastic = ranks.elastic
    config = LaunchConfig(
        min_nodes=elastic.nodes,
        max_nodes=elastic.nodes,
        nproc_per_node=_local_ranks(ranks),
        run_id=elastic.run_id or uuid.uuid4().hex,
        rdzv_backend=elastic.backend,
        rdzv_endpoint=elastic.endpoint,
        rdzv_configs={"rank": elastic.node_rank, "timeout": 900},
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="127.0.0.1" if elastic.nodes == 1 else None,
        shutdown_timeout=max(1, round(limits.grace_s)),
    )
    guard.start()
    try:
        elastic_launch(config, sys.executable)("-m", WORKER, "--parent", str(os.getpid()), *arguments)
    except SignalException as stopped:
        ended.asked = int(stopped.sigval)
        ended.code = 130 if ended.asked == signal.SIGINT else 143
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        ended.code, ended.rank, ended.local_rank = failure.exitcode, rank, failure.local_rank


def _local_ranks(ranks: Ranks) -> int:
    if ranks.elastic.local_ranks is not None:
        return ranks.elastic.local_ranks
    import torch

    return max(1, torch.cuda.device_count())


def _guard(ended: Ended, watch: Watch, limits: Limits, done: threading.Event) -> None:
    """Kill ranks that show no progress; the agent sees it as a failure."""
    while not done.wait(limits.poll_s):
        stalled = watch.stalled_s()
        if stalled is None:
            continue
        ended.hung_s = stalled
        for signum in (signal.SIGUSR1, signal.SIGKILL):
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            done.wait(1.0)
        return


def _children() -> list[int]:
    pids: list[int] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in file.read_text(encoding="ascii").split()]
    return pids

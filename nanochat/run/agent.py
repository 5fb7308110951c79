"""The local ranks as processes of torch elastic's agent, which starts them and notices how they end.

torch numbers the ranks; signals, limits and the other nodes are ours (`guard`,
`nodes`), and so is which of several failures counts. Knows nothing of stages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator

from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.distributed.launcher.api import LaunchConfig

from nanochat.run.guard import Guard
from nanochat.run.nodes import Nodes
from nanochat.run.reason import Reasons
from nanochat.run.single import WORKER, Ended
from nanochat.settings import tell_libraries

_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


class _Met(RendezvousHandler):
    """Tells the agent what `Nodes.gather` found, so that the agent waits for nobody."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        place, (host, port) = self._nodes.place, self._nodes.address
        store = PrefixStore("agent", self._nodes.store)
        return RendezvousInfo(store, place.node_rank, place.nodes, RendezvousStoreInfo(host, port))

    def get_backend(self) -> str:
        return "nanochat"

    def get_run_id(self) -> str:
        return "nanochat"

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True


class _Agent(LocalElasticAgent):
    def _exit_barrier(self) -> None:
        """Nodes wait for each other in `Nodes.settle`, which knows when one of them failed."""

    def pids(self) -> Iterator[int]:
        """Yield the processes of the ranks that run: never an id that the system may have given away."""
        for worker in self.get_worker_group().workers:
            with contextlib.suppress(ChildProcessError):
                if worker.id is not None and os.waitid(os.P_PID, int(worker.id), _LOOK) is None:
                    yield int(worker.id)


def run_agent(arguments: list[str], count: int, nodes: Nodes, guard: Guard, reasons: Reasons) -> None:
    """Run `count` workers to their end and leave in `guard.ended` how they ended."""
    tell_libraries(TORCH_ELASTIC_WORKER_IDENTICAL="1")  # `gather` compared the counts: no need to ask again
    # The agent would say in ten lines of its own what we say in one.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    defaults = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=count)
    spec = WorkerSpec(
        role="rank",
        local_world_size=count,
        rdzv_handler=_Met(nodes),
        entrypoint=sys.executable,
        args=("-m", WORKER, "--parent", str(os.getpid()), *arguments),
        max_restarts=0,
        monitor_interval=0.1,
        numa_options=defaults.numa_options,
    )
    agent = _Agent(spec, logs_specs=defaults.logs_specs or DefaultLogsSpecs())
    guard.pids = agent.pids
    try:
        result = agent.run()
    finally:
        guard.pids = tuple
    _read(result, guard.ended, reasons)


def _read(result: RunResult, ended: Ended, reasons: Reasons) -> None:
    """Of all ranks that failed, find the one that tells why."""
    if not result.is_failed():
        return

    def weight(rank: int, failure: ProcessFailure) -> tuple[int, int, int]:
        code = failure.exitcode
        if reasons.lost(failure.local_rank):
            kind = 4
        elif code in (130, 143, -signal.SIGTERM, -signal.SIGINT):
            kind = 3
        elif code < 0:
            kind = 0
        else:
            kind = 2 if code == 1 else 1
        return kind, failure.timestamp, rank

    rank, failure = min(result.failures.items(), key=lambda item: weight(*item))
    ended.code, ended.rank, ended.local_rank = failure.exitcode, rank, failure.local_rank

"""Several ranks, on one node or many: torch elastic as a library, with the same worker as its entry point.

One attempt, no restarts inside: a restart is a new launcher, which continues from
the last checkpoint. torch is imported once all nodes are on their way. Knows nothing
of stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nanochat.errors import NanochatError
from nanochat.run.guard import Guard
from nanochat.run.nodes import Nodes
from nanochat.run.ranks import Ranks
from nanochat.run.reason import Reasons
from nanochat.run.signals import StopNow
from nanochat.run.single import Ended, Limits, Watch

Verdict = Callable[[Ended], NanochatError | None]


def run_elastic(
    arguments: list[str],
    ranks: Ranks,
    limits: Limits,
    verdict: Verdict,
    *,
    reasons: Reasons,
    facts: Mapping[str, Any],
    watch: Path | None,
) -> NanochatError | None:
    """Run this node's ranks to their end; returns why the attempt is not finished, on whichever node.

    Args:
        arguments: of the worker.
        ranks: what to start.
        limits: how long to wait for what.
        verdict: what the end of the ranks of this node means.
        reasons: what the ranks left.
        facts: must be the same on all nodes.
        watch: file that grows with progress.
    """
    ended = Ended(code=0)
    count = ranks.elastic.local_ranks or _gpus()
    nodes = Nodes(ranks.elastic, {**facts, "ranks of a node": count}, limits)
    with Guard(ended, nodes, Watch(watch, limits.hang_s), limits) as guard:
        try:
            nodes.gather(guard.check)
            from nanochat.run.agent import run_agent

            run_agent(arguments, count, nodes, guard, reasons)
            error = verdict(ended)
        except StopNow as stopped:
            ended.code = -stopped.signum
            error = verdict(ended)
        except NanochatError as failed:
            error = failed
        error = nodes.settle(error, until=lambda: guard.deadline)
        nodes.leave()
    return error


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())

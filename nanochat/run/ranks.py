"""How many processes this launcher starts, and as part of what. Pure; knows nothing of processes.

single  one worker, started directly
agent   several ranks or nodes: torch elastic in this process starts the local ones
member  torchrun started this launcher as one of its ranks: one worker with torchrun's variables
idle    the stage needs rank 0 alone, and this is another rank or node
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nanochat.run.stage import Stage
from nanochat.settings import Elastic, elastic, topology, under_torchrun


@dataclass(frozen=True, slots=True)
class Ranks:
    """What this launcher starts."""

    kind: Literal["single", "agent", "member", "idle"]
    first: bool = True
    """True on the one launcher that holds the lock and writes events and the record."""
    rank: int = 0
    """Number of this launcher among those of the stage."""
    elastic: Elastic = field(default_factory=Elastic)

    @property
    def slots(self) -> int:
        """Upper bound of the local ranks."""
        return 1 if self.kind != "agent" else self.elastic.local_ranks or 64


def plan_ranks(stage: Stage, nproc: int) -> Ranks:
    """Return what to start for `stage`, from torchrun's variables, PET_* variables, or `nproc` ranks here."""
    if under_torchrun():
        rank = topology().rank
        if stage.ranks:
            return Ranks("member", first=rank == 0, rank=rank)
        return Ranks("single" if rank == 0 else "idle", first=rank == 0, rank=rank)
    found = elastic(nproc)
    first = found.node_rank == 0
    if not stage.ranks:
        return Ranks("single" if first else "idle", first=first, rank=found.node_rank)
    alone = found.nodes == 1 and found.local_ranks == 1
    return Ranks("single" if alone else "agent", first=first, rank=found.node_rank, elastic=found)

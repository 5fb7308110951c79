"""Agreement among the ranks of a process group, so that no rank goes on alone after a failure.

Two calls, both of which are also barriers. Knows nothing of files.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Group(Protocol):
    """The ranks that save and load together."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        ...

    def agree(self, ok: bool) -> bool:
        """Return whether every rank said True."""
        ...

    def share(self, number: int) -> int:
        """Return rank 0's number."""
        ...


class Alone:
    """One rank."""

    rank = 0

    def agree(self, ok: bool) -> bool:
        """Return `ok`."""
        return ok

    def share(self, number: int) -> int:
        """Return `number`."""
        return number


class Distributed:
    """The default process group of `torch.distributed`."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        import torch.distributed as dist

        return int(dist.get_rank())

    def agree(self, ok: bool) -> bool:
        """Return whether every rank said True."""
        import torch.distributed as dist

        flag = self._tensor(int(ok))
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def share(self, number: int) -> int:
        """Return rank 0's number."""
        import torch.distributed as dist

        value = self._tensor(number)
        dist.broadcast(value, src=0)
        return int(value.item())

    def _tensor(self, number: int) -> Any:
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return torch.tensor(number, dtype=torch.int64, device=device)


def current() -> Group:
    """Return the process group where one is initialised, else one rank alone."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Distributed()
    return Alone()

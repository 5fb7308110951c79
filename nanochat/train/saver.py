"""When to save, and what to do when it fails: retry later, count, give up after five misses.

Knows nothing of the format: `nanochat.checkpoint` commits what it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from nanochat.errors import StorageError
from nanochat.settings import Topology

MAX_MISSES = 5
FIRST_BACKOFF_S = 10.0


class Store(Protocol):
    """The part of `nanochat.checkpoint.commit.CheckpointStore` that saving needs."""

    def save(
        self,
        step: int,
        *,
        model: Mapping[str, Tensor],
        optim: Mapping[str, Tensor],
        state: dict[str, Any],
        topology: Topology | None = None,
    ) -> int: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint holds."""

    step: int
    model: Mapping[str, Tensor]
    optim: Mapping[str, Tensor]
    state: dict[str, Any]


class Saver:
    """Saves every so many steps and every so many seconds.

    `due` reads the clock, so one rank alone decides and tells the others; `periodic`
    and `final` are called by every rank alike.
    """

    def __init__(
        self,
        store: Store,
        *,
        every_steps: int | None,
        every_s: float,
        topology: Topology,
        clock: Callable[[], float],
        emit: Callable[..., None],
    ) -> None:
        self._store = store
        self._every_steps = every_steps
        self._every_s = every_s
        self._topology = topology
        self._clock = clock
        self._emit = emit
        self._misses = 0
        self._next_s = clock() + every_s
        self.saved: int | None = None
        """The last step that is on disk."""

    def due(self, step: int) -> bool:
        """Return whether the state after `step` steps is to be saved now."""
        if self._misses:
            return self._clock() >= self._next_s
        by_step = self._every_steps is not None and step % self._every_steps == 0
        return by_step or self._clock() >= self._next_s

    def periodic(self, snapshot: Snapshot) -> None:
        """Save; a failure is counted and tried again after a pause that doubles.

        Raises:
            StorageError: the fifth failure in a row.
        """
        try:
            self.final(snapshot)
        except StorageError as error:
            self._misses += 1
            self._next_s = self._clock() + FIRST_BACKOFF_S * 2 ** (self._misses - 1)
            self._emit("checkpoint", step=snapshot.step, error=error.message, misses=self._misses)
            if self._misses >= MAX_MISSES:
                raise StorageError(
                    f"checkpoint of step {snapshot.step} failed, the {self._misses}th time in a row:"
                    f" {error.message}",
                    hint=error.hint,
                ) from error
            if self._topology.rank == 0:
                print(
                    f"warning: checkpoint of step {snapshot.step} failed ({self._misses} of {MAX_MISSES}),"
                    f" training goes on: {error.message}",
                    file=sys.stderr,
                )

    def final(self, snapshot: Snapshot) -> None:
        """Save what must not be lost; no second try.

        Raises:
            StorageError: the volume refuses it.
        """
        began = self._clock()
        size = self._store.save(
            snapshot.step,
            model=snapshot.model,
            optim=snapshot.optim,
            state=snapshot.state,
            topology=self._topology,
        )
        now = self._clock()
        self._misses = 0
        self._next_s = now + self._every_s
        self.saved = snapshot.step
        self._emit("checkpoint", step=snapshot.step, bytes=size, dt_s=round(now - began, 3))

"""The state of one server: ready, draining, how much is in flight, and whether the engine moves.

Knows nothing of HTTP. Used on the event loop only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nanochat.serve.refusals import refusal

_RETRY_MAX_S = 60.0


class Ticking(Protocol):
    """An engine's liveness signal."""

    @property
    def ticks(self) -> int: ...

    @property
    def busy(self) -> bool: ...


class Serving:
    """Admission, readiness and liveness."""

    def __init__(
        self,
        engine: Ticking,
        *,
        capacity: int,
        slots: int,
        clock: Callable[[], float],
        stuck_s: float,
    ) -> None:
        """`capacity`: sequences that may be in flight; `slots`: how many of them run at once."""
        self._engine = engine
        self._clock = clock
        self._stuck_s = stuck_s
        self.capacity = capacity
        self.slots = slots
        self.in_flight = 0
        """Sequences queued or running for requests that are not answered yet."""
        self.requests = 0
        """HTTP requests among them."""
        self.warm = False
        """Weights are verified and a first token was made."""
        self.leaving = False
        """SIGTERM came: /ready says so, and every answer asks its client to connect elsewhere."""
        self.draining = False
        """New work is refused."""
        self.refused: str | None = None
        """Why another model was not taken in this one's place; /ready shows it."""
        self.on_idle: Callable[[], None] | None = None
        """Called when the last request in flight is answered; the drain waits for it."""
        self._seen = (-1, 0.0)  # ticks, and when they were first seen
        self._mean_s = 1.0  # of recent requests

    @property
    def ready(self) -> bool:
        """Whether new work is welcome."""
        return self.warm and not self.leaving and not self.draining

    def admit(self, sequences: int, *, kept: bool = False) -> None:
        """Take work in; `kept`: on a connection whose client could not know that the server leaves.

        Raises:
            RequestError: 503 before the warm-up and while draining, 429 when the queue is full.
        """
        if self.draining and not kept:
            raise refusal(503, "the server is shutting down", code="draining", retry_after_s=1.0)
        if not self.warm:
            raise refusal(503, "the model is still loading", code="not_ready", retry_after_s=1.0)
        if self.in_flight + sequences > self.capacity:
            rounds = self.in_flight / max(1, self.slots)
            raise refusal(
                429,
                f"{self.in_flight} completions are queued or running, at most {self.capacity} may be",
                code="rate_limit_exceeded",
                retry_after_s=min(_RETRY_MAX_S, max(1.0, rounds * self._mean_s / 2)),
            )
        if self.in_flight == 0:
            self._seen = (self._engine.ticks, self._clock())
        self.in_flight += sequences
        self.requests += 1

    def release(self, sequences: int, seconds: float) -> None:
        """Give back what `admit` took; `seconds`: how long the request lasted."""
        self.in_flight -= sequences
        self.requests -= 1
        self._mean_s += 0.1 * (seconds - self._mean_s)
        if self.requests == 0 and self.on_idle is not None:
            self.on_idle()

    def stuck_for(self) -> float:
        """Return the seconds that work has waited without an engine step; 0 when all is well.

        The web thread answers even when the engine hangs, so health must look at the engine's steps.
        """
        now, ticks = self._clock(), self._engine.ticks
        if ticks != self._seen[0] or not (self._engine.busy or self.in_flight):
            self._seen = (ticks, now)
            return 0.0
        waited = now - self._seen[1]
        return waited if waited > self._stuck_s else 0.0

"""Which tokens are computed in the next step, and for whom.

Knows requests and slots, neither torch nor tokens' meaning: the step function and
what a drawn token leads to come in as parameters. One thread calls it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nanochat.engine.request import FinishReason, Request, Sampled
from nanochat.errors import ConfigError


@dataclass(slots=True)
class Work:
    """Compute `request.tokens[start : start + count]`; draw the next token if that is all of them."""

    request: Request
    start: int
    count: int
    draws: bool


class Slots(Protocol):
    """Where keys and values live; only the scheduler acquires and releases."""

    def acquire(self, tokens: int) -> int | None:
        """Return a slot for a request that will never hold more than `tokens` tokens; None when full."""

    def release(self, slot: int) -> None:
        """Take the slot back."""


StepBatch = Callable[[Sequence[Work]], Sequence[Sampled | None]]
"""Compute the works; one entry each, None where the work does not draw."""
Accept = Callable[[Request, Sampled], None]
"""Append the token and what follows from it; sets `finish_reason` when it is the last."""
End = Callable[[Request, FinishReason], None]
"""Finish a request without a token."""


class Scheduler:
    """First come, first served; every running request draws one token a step.

    Decoding rows come first, so a long prompt never stalls them for more than the rest of the token
    budget. Prompts are computed in chunks whose bounds depend on the prompt alone: the same request
    meets the same matrix shapes whoever shares its steps.
    """

    def __init__(
        self,
        step_batch: StepBatch,
        slots: Slots,
        *,
        accept: Accept,
        end: End,
        max_running: int,
        max_step_tokens: int,
        prefill_chunk: int,
    ) -> None:
        if max_running < 1 or prefill_chunk < 1:
            raise ConfigError(
                f"max_running is {max_running} and prefill_chunk is {prefill_chunk}: both must be at least 1"
            )
        if max_step_tokens < max_running + prefill_chunk:
            raise ConfigError(
                f"max_step_tokens is {max_step_tokens}: a full batch of {max_running} beside one chunk of "
                f"{prefill_chunk} would starve the chunk",
                hint=f"use at least {max_running + prefill_chunk}",
            )
        self.step_batch = step_batch
        self.slots = slots
        self.accept = accept
        self.end = end
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.ticks = 0

    @property
    def busy(self) -> bool:
        """True while any request waits or runs."""
        return bool(self.waiting or self.running)

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def step(self) -> bool:
        """Admit, compute one batch, hand out the tokens, retire. False when there was nothing to do."""
        self.ticks += 1
        self._drop_cancelled()
        self._admit()
        if not self.running:
            return False
        works = self.plan()
        for work, sampled in zip(works, self.step_batch(works), strict=True):
            work.request.computed += work.count
            if sampled is not None and not work.request.cancelled:
                self.accept(work.request, sampled)
        self._retire()
        return True

    def plan(self) -> list[Work]:
        """Return this step's work: all decoding rows, then whole prompt chunks while the budget lasts."""
        decoding: list[Work] = []
        chunks: list[Work] = []
        for request in self.running:
            left = len(request.tokens) - request.computed
            count = min(left, self.prefill_chunk)
            (decoding if left == 1 else chunks).append(Work(request, request.computed, count, count == left))
        budget = self.max_step_tokens - len(decoding)
        works = decoding
        for chunk in chunks:
            if chunk.count <= budget:
                budget -= chunk.count
                works.append(chunk)
        return works

    def abort(self, reason: FinishReason) -> None:
        """End every request now, e.g. after a failed step."""
        for request in [*self.running, *self.waiting]:
            self.end(request, reason)
        self.waiting.clear()
        self._retire()

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            slot = self.slots.acquire(self.waiting[0].limit)
            if slot is None:
                return
            request = self.waiting.popleft()
            request.slot = slot
            self.running.append(request)

    def _drop_cancelled(self) -> None:
        gone = [r for r in (*self.running, *self.waiting) if r.cancelled]
        if not gone:
            return
        for request in gone:
            self.end(request, "cancelled")
        self.waiting = deque(r for r in self.waiting if not r.cancelled)
        self._retire()

    def _retire(self) -> None:
        still = []
        for request in self.running:
            if request.finish_reason is None:
                still.append(request)
            else:
                self.slots.release(request.slot)
                request.slot = -1
        self.running = still

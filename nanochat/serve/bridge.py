"""The hand-off from the engine's thread to the event loop: one wake-up per engine step, not per token.

`Channel.put` runs on the engine's thread and only appends; `Bridge.flush`, called by the engine once
after each step, wakes the loop; everything else runs on the loop. Knows nothing of HTTP or JSON.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nanochat.engine.request import Delta, SamplingParams, Sink

PING_S = 15.0
"""A stream without output for this long gets a comment line, so that proxies keep it open."""


class EngineLimits(Protocol):
    """The part of the engine's limits that the server reads."""

    @property
    def max_running(self) -> int: ...


class EngineStats(Protocol):
    """The part of the engine's statistics that /metrics shows."""

    @property
    def ticks(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def kv_total_tokens(self) -> int: ...
    @property
    def kv_used_tokens(self) -> int: ...
    @property
    def kv_intact(self) -> bool: ...
    @property
    def failures(self) -> int: ...


class Engine(Protocol):
    """What the server needs of an engine: `nanochat.engine.engine.Engine`, or the stub."""

    on_flush: Callable[[], None] | None

    @property
    def limits(self) -> EngineLimits: ...
    @property
    def ticks(self) -> int: ...
    @property
    def busy(self) -> bool: ...

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, sink: Sink) -> Any:
        """Queue one completion and return its handle, which has a `finish_reason`."""

    def cancel(self, request: Any) -> None:
        """End a request within one step."""

    def stats(self) -> EngineStats:
        """Return counters and state."""

    def close(self) -> None:
        """Cancel what is left and stop the thread."""


class Channel:
    """Where the engine puts the deltas of one choice."""

    __slots__ = ("_arrived", "index", "job")

    def __init__(self, job: Job, index: int, arrived: deque[tuple[Channel, Delta]]) -> None:
        self.job = job
        self.index = index
        self._arrived = arrived

    def put(self, delta: Delta, /) -> None:
        self._arrived.append((self, delta))


class Job:
    """The choices of one HTTP request on their way. Used on the event loop only."""

    __slots__ = (
        "_loop",
        "_ready",
        "_steps",
        "_timer",
        "_waiter",
        "eager",
        "gone",
        "open",
        "pinging",
        "requests",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, choices: int, *, eager: bool) -> None:
        """`eager`: wake for every step (a stream) instead of once at the end."""
        self._loop = loop
        self._ready: list[tuple[int, Delta]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._steps = 0
        self._timer = loop.call_later(PING_S, self._ping, 0) if eager else None
        self.eager = eager
        self.open = choices
        self.gone = False
        """The client closed the connection."""
        self.pinging = False
        self.requests: list[Any] = []

    def feed(self, index: int, delta: Delta) -> None:
        """Take one delta of one choice."""
        self._ready.append((index, delta))
        if delta.finish_reason is not None:
            self.open -= 1
        if self.eager or self.open == 0:
            self._wake()

    def abandon(self) -> None:
        """Note that the client went away."""
        self.gone = True
        self._wake()

    async def wait(self) -> list[tuple[int, Delta]]:
        """Return what arrived since the last call; nothing when the client is gone or a ping is due."""
        if not (self._ready and (self.eager or self.open == 0)) and not self.gone:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._steps += 1
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Stop the ping timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _ping(self, steps_before: int) -> None:
        """Ask for a ping after a silent interval. One timer a stream: one a token would cost more than it."""
        if self._steps == steps_before:
            self.pinging = True
            self._wake()
        self._timer = self._loop.call_later(PING_S, self._ping, self._steps)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Bridge:
    """Connects one engine with one event loop."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._arrived: deque[tuple[Channel, Delta]] = deque()
        engine.on_flush = self.flush

    def flush(self) -> None:
        """Wake the loop. Called on the engine's thread once per step that made something."""
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed: the process is on its way out
            self._engine.on_flush = None

    def _deliver(self) -> None:
        arrived = self._arrived
        while arrived:
            channel, delta = arrived.popleft()
            channel.job.feed(channel.index, delta)

    def submit(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], *, eager: bool
    ) -> Job:
        """Queue one choice for each of `prompts`; all of them or none.

        Raises:
            RequestError: the engine refuses one; those queued before it are cancelled.
        """
        job = Job(self._loop, len(prompts), eager=eager)
        try:
            for index, (prompt, how) in enumerate(zip(prompts, params, strict=True)):
                job.requests.append(self._engine.submit(prompt, how, Channel(job, index, self._arrived)))
        except BaseException:
            self.end(job)
            raise
        return job

    def end(self, job: Job) -> None:
        """End a job: the slots of its unfinished choices are free within one engine step."""
        job.close()
        for request in job.requests:
            if request.finish_reason is None:
                self._engine.cancel(request)

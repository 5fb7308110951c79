"""The engine's front: submit, cancel, step, a thread, statistics, offline generation.

Knows nothing of HTTP or asyncio: results leave through sinks, and `on_flush` is called once
after every step that put something, so that a server can wake its event loop once per step:

    class Stream:                                  # one per request; put() runs on the engine's thread
        def put(self, delta: Delta) -> None:
            ready.append((self, delta))            # a deque: append is atomic

    engine = Engine(model, tokenizer, on_flush=lambda: loop.call_soon_threadsafe(deliver))
    engine.run_thread()
    request = engine.submit(prompt_ids, SamplingParams(max_tokens=64), Stream())
    engine.cancel(request)                         # any thread; the slot is free within one step
    engine.close()
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from torch import nn

from nanochat.engine.limits import Limits, Stats
from nanochat.engine.output import EngineTokenizer, Output, OutputFactory
from nanochat.engine.packed import pack as pack_linears
from nanochat.engine.request import Completion, Delta, FinishReason, Request, Sampled, SamplingParams, Sink
from nanochat.engine.runner import CachedModel, Runner, make_pool, set_threads
from nanochat.engine.sampler import uniform_stream
from nanochat.engine.scheduler import Scheduler
from nanochat.errors import RequestError
from nanochat.tools import calculator

__all__ = ["Engine", "Limits", "Stats"]

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model. All methods but `step` may be called from any thread.

    A request's tokens, text and log probabilities are the same to the last bit whoever shares its steps.
    """

    def __init__(
        self,
        model: CachedModel,
        tokenizer: EngineTokenizer,
        *,
        limits: Limits | None = None,
        pack: bool = False,
        on_flush: Callable[[], None] | None = None,
        evaluate: Callable[[str], str | None] = calculator.evaluate,
        clock: Callable[[], float] = time.monotonic,
        new_seed: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        """Take the model as it is (device, dtype) and allocate the KV pool.

        `pack` lays a CPU model's matrices out for the batch: a third faster at 8 rows, but the model can no
        longer be saved. `on_flush` runs on the engine's thread.

        Raises:
            ConfigError: the limits cannot work.
        """
        self.limits = limits = limits or Limits()
        self.on_flush = on_flush
        self.clock = clock
        self.new_seed = new_seed
        self.pool = make_pool(model, limits)
        self.context = self.pool.capacity
        if pack and isinstance(model, nn.Module):
            pack_linears(model)
        self.runner = Runner(model, self.pool)
        self.outputs = OutputFactory(tokenizer, evaluate)
        self.scheduler = Scheduler(
            self.runner.step_batch,
            self.pool,
            accept=self._accept,
            end=self._end,
            max_running=limits.max_running,
            max_step_tokens=limits.max_step_tokens,
            prefill_chunk=limits.prefill_chunk,
        )
        self.failure: str | None = None
        """The last step's exception, for the log and the health page; None when all went well."""
        self._ids = count(1)
        self._inbox: deque[Request] = deque()
        self._wake = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None
        self._closing = False
        self._dirty = False
        self._intact = True
        self._last_tick = clock()
        self._counts = {"prompt": 0, "completion": 0, "tools": 0, "failures": 0}
        self._finished: dict[str, int] = {"stop": 0, "length": 0, "cancelled": 0, "error": 0}

    # -- for callers, any thread ------------------------------------------------------------------

    @property
    def ticks(self) -> int:
        """Steps begun: the liveness signal, advances while work waits."""
        return self.scheduler.ticks

    @property
    def busy(self) -> bool:
        """True while any request waits or runs."""
        return self._busy

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, sink: Sink) -> Request:
        """Queue one completion and return at once.

        Raises:
            RequestError: 400 `context_length_exceeded` for a prompt that leaves no room for one token;
                429 when the queue is full; 503 while draining or after `close`.
        """
        if self._closing:
            raise _closing()
        if len(self._inbox) + len(self.scheduler.waiting) >= self.limits.max_waiting:
            raise RequestError(
                f"{self.limits.max_waiting} requests are waiting already",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=1.0,
            )
        return self._enqueue(prompt_ids, params, sink)

    def cancel(self, request: Request) -> None:
        """End a request; its sink gets a last delta with "cancelled" within one step. Harmless twice."""
        request.cancelled = True
        with self._wake:
            self._wake.notify()

    def stats(self) -> Stats:
        """Return counters and state; cheap enough for every scrape."""
        used, total = self.pool.used_tokens, self.pool.total_tokens
        return Stats(
            ticks=self.ticks,
            last_tick_s=self._last_tick,
            waiting=len(self._inbox) + len(self.scheduler.waiting),
            running=len(self.scheduler.running),
            kv_total_tokens=total,
            kv_used_tokens=used,
            kv_free_tokens=self.pool.free_tokens,
            kv_intact=self._intact,
            prompt_tokens=self._counts["prompt"],
            completion_tokens=self._counts["completion"],
            requests_finished=dict(self._finished),
            tool_calls=self._counts["tools"],
            failures=self._counts["failures"],
        )

    # -- driving it -------------------------------------------------------------------------------

    def run_thread(self, *, threads: int | None = 1) -> None:
        """Start the thread that steps while there is work.

        `threads`: compute threads, None: cores - 1; with a second busy thread on the same cores
        an OpenMP barrier waits for a scheduler slice, 6 ms become 380 (2 cores, 2026-09).
        """
        if self._thread is not None:
            raise RuntimeError("the engine's thread runs already")
        self._thread = threading.Thread(target=self._loop, args=(threads,), name="engine", daemon=True)
        self._thread.start()

    def step(self) -> bool:
        """Do one step; False when idle. For the engine's own thread, or a caller that started none."""
        while self._inbox:
            self.scheduler.submit(self._inbox.popleft())
        self._last_tick = self.clock()
        worked = self.scheduler.step()
        self._flush()
        if not worked:
            self._intact = self._intact and self.pool.intact(idle=True)
            with self._wake:
                if not self._inbox:
                    self._busy = False
        return worked

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Refuse new requests, cancel what is left, stop the thread. Harmless twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None
        else:
            self._abort("cancelled")

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Complete all prompts and return them in order; batched, on this thread unless one runs already.

        Raises:
            RequestError: a prompt is too long.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        for prompt in prompts:
            self._check_length(prompt)
        sinks = [_Collector() for _ in prompts]
        requests = [self._enqueue(p, q, c) for p, q, c in zip(prompts, each, sinks, strict=True)]
        if self._thread is None:
            while self.step():
                pass
        for request, sink in zip(requests, sinks, strict=True):
            sink.ended.wait()
            done = sink.completion
            done.prompt_tokens = request.prompt_tokens
            forced = frozenset(request.forced)
            done.forced = [request.prompt_tokens + i in forced for i in range(done.completion_tokens)]
        return [sink.completion for sink in sinks]

    # -- inside -----------------------------------------------------------------------------------

    def _check_length(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise RequestError("the prompt is empty", param="messages", code="invalid_value")
        if len(prompt_ids) >= self.context:
            raise RequestError(
                f"this model's context is {self.context} tokens and the prompt has {len(prompt_ids)}: "
                "shorten the messages so that at least one token is left for the answer",
                param="messages",
                code="context_length_exceeded",
            )

    def _enqueue(self, prompt_ids: Sequence[int], params: SamplingParams, sink: Sink) -> Request:
        self._check_length(prompt_ids)
        room = self.context - len(prompt_ids)
        seed = self.new_seed() if params.seed is None else params.seed
        request = Request(
            id=next(self._ids),
            prompt_tokens=len(prompt_ids),
            params=params,
            sink=sink,
            tokens=list(prompt_ids),
            limit=len(prompt_ids) + min(room, params.max_tokens or room),
            uniform=uniform_stream(seed),
            state=self.outputs.start(params),
        )
        with self._wake:
            if self._closing:
                raise _closing()
            self._busy = True
            self._inbox.append(request)
            self._counts["prompt"] += request.prompt_tokens
            self._wake.notify()
        return request

    def _accept(self, request: Request, sampled: Sampled) -> None:
        output: Output = request.state
        self._put(request, output.accept(request, sampled))

    def _end(self, request: Request, reason: FinishReason) -> None:
        output: Output = request.state
        delta = output.end(request, reason)
        if reason == "error":
            delta.error = "the engine failed while it worked on this request"
        self._put(request, delta)

    def _put(self, request: Request, delta: Delta) -> None:
        self._dirty = True
        self._counts["completion"] += len(delta.token_ids)
        self._counts["tools"] += len(delta.tool_calls)
        if delta.finish_reason is not None:
            self._finished[delta.finish_reason] += 1
        request.sink.put(delta)

    def _flush(self) -> None:
        if self._dirty and self.on_flush is not None:
            self.on_flush()
        self._dirty = False

    def _abort(self, reason: FinishReason) -> None:
        while self._inbox:
            self.scheduler.submit(self._inbox.popleft())
        self.scheduler.abort(reason)
        self._flush()
        self._busy = False

    def _loop(self, threads: int | None) -> None:
        set_threads(threads)
        while not self._closing:
            try:
                worked = self.step()
            except Exception as error:  # a thread boundary: one bad step must not end the server
                log.exception("event=step_failed running=%d", len(self.scheduler.running))
                self.failure = f"{type(error).__name__}: {error}"
                self._counts["failures"] += 1
                self._abort("error")
                continue
            if not worked:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self._inbox)
        self._abort("cancelled")


def _closing() -> RequestError:
    return RequestError("the server is shutting down", status=503, kind="server_error", retry_after_s=1.0)


class _Collector:
    """A sink that gathers a completion and says when it is whole."""

    def __init__(self) -> None:
        self.completion = Completion()
        self.ended = threading.Event()

    def put(self, delta: Delta) -> None:
        self.completion.put(delta)
        if delta.finish_reason is not None:
            self.ended.set()

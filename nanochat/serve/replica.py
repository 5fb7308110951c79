"""An ASGI application whose model can be replaced while it serves.

A swap makes the new model ready beside the old one, sends new requests to it, and lets those that run
finish where they began. Knows nothing of signals, sockets, or of who asks for the swap.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.serve.app import create_app
from nanochat.serve.completions import Context
from nanochat.serve.http import Receive, Reply, Scope, Send, request_id
from nanochat.serve.keys import Keys
from nanochat.serve.limits import Limits
from nanochat.serve.loading import Loaded
from nanochat.serve.metrics import Metrics
from nanochat.serve.refusals import refusal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that already made a token, and how it is to be served."""

    loaded: Loaded
    keys: Keys | None = None
    limits: Limits
    aliases: Sequence[str] = ()


class _Live:
    """One model's application and the requests inside it, from their first byte to their last."""

    def __init__(self, offer: Offer, metrics: Metrics | None) -> None:
        loaded = offer.loaded
        self.app = create_app(
            loaded.engine,
            loaded.prompts,
            model_id=loaded.id,
            created=loaded.created,
            keys=offer.keys,
            limits=offer.limits,
            aliases=offer.aliases,
            metrics=metrics,
        )
        self.context: Context = self.app.state.context
        self.idle = asyncio.Event()
        self.idle.set()
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open += 1
        self.idle.clear()
        try:
            # FastAPI writes the app into the scope, and an idle connection keeps its last request's scope.
            await self.app(dict(scope), receive, send)
        finally:
            self._open -= 1
            if self._open == 0:
                self.idle.set()


class Replica:
    """One process that serves one model at a time. Used on one event loop."""

    def __init__(self, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._live: _Live | None = None
        self._old: _Live | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._swapping = asyncio.Lock()

    @property
    def model_id(self) -> str | None:
        """The model that new requests get; None before the first one."""
        return None if self._live is None else self._live.context.model_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif self._live is not None:
            await self._live(scope, receive, send)
        elif scope["type"] == "http":
            error = refusal(503, "the model is still loading", code="not_ready", retry_after_s=1.0)
            await Reply(send, request_id(scope)).refuse(error)

    async def swap(self, make: Callable[[], Offer]) -> None:
        """Serve what `make` returns; it runs on a thread and raises when there is nothing to offer.

        Waits until the model before the present one is gone: never more than two are in memory. When
        `make` raises, the present model stays.
        """
        async with self._swapping:
            if self._retiring is not None:
                await self._retiring
            begun = self._timer()
            offer = await asyncio.to_thread(make)
            metrics = None if self._live is None else self._live.context.metrics
            self._old, self._live = self._live, _Live(offer, metrics)
            log.info("event=model model=%s seconds=%.2f", self.model_id, self._timer() - begun)
            if self._old is not None:
                self._live.context.metrics.swaps.labels("taken").inc()
                self._retiring = asyncio.create_task(self._retire())

    def refuse(self, reason: str) -> None:
        """Tell by /ready and the metrics why the present model was not replaced."""
        if self._live is not None:
            self._live.context.serving.refused = reason
            self._live.context.metrics.swaps.labels("refused").inc()

    def settle(self) -> None:
        """Take back a refusal: the present model is the one that is wanted."""
        if self._live is not None:
            self._live.context.serving.refused = None

    def stuck_for(self) -> float:
        """Return the seconds that work has waited without an engine step, 0 when all is well."""
        lives = (self._live, self._old)
        return max((live.context.serving.stuck_for() for live in lives if live is not None), default=0.0)

    async def close(self) -> None:
        """Refuse new requests, end what still runs, stop the engines. Harmless twice."""
        for live in (self._live, self._old):
            if live is not None:
                live.context.serving.draining = True
                await asyncio.to_thread(live.context.engine.close)

    async def _retire(self) -> None:
        old = self._old
        if old is None:
            return
        model_id = old.context.model_id
        await old.idle.wait()
        await asyncio.to_thread(old.context.engine.close)
        self._old = None
        del old.app.state.context  # the last that the routes hold of the model
        del old
        await asyncio.to_thread(_collect)
        log.info("event=model_gone model=%s", model_id)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


def _collect() -> None:
    """Free a model's memory now: an engine is full of cycles, and Ray Serve freezes the collector."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()

"""The chat server as one Ray Serve deployment: `nanochat_platform.ray_serve:app`.

The ASGI application and its engine live in one replica, so no token crosses a process that is not HAProxy;
batching, admission, keys and metrics are those of `nanochat serve`. Knows nothing of Kubernetes. Importing
it loads neither torch nor Ray: `app` is built when it is asked for, and a replica loads what its
`user_config` names.

Try it: `env $(python -m nanochat_platform.ray_serve) serve run nanochat_platform.ray_serve:app`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from nanochat.errors import ConfigError, NanochatError
from nanochat.run.config import Frozen, parse
from nanochat.serve.http import Message, Receive, Scope, Send
from nanochat.serve.limits import Limits
from nanochat.serve.replica import Offer, Replica

if TYPE_CHECKING:
    from ray.serve import Deployment

log = logging.getLogger("ray.serve")  # the one logger that Serve writes to a replica's log

DEFAULT_RUN = "tiny"
GRACE_S = 300
"""A replica that stops lets its requests run this long: a whole context at 7 tokens a second."""
DRAIN_S = 10
"""Seconds in which a stopping replica is still reachable, until every HAProxy has forgotten it."""
MAX_ONGOING_REQUESTS = 1024
"""Requests that Serve lets into a replica: far above what the server admits, so that every refusal is ours
(429, OpenAI's shape, Retry-After) and slow uploads hold up nobody."""
ENVIRONMENT = {
    # A streamed chunk costs 41 us of CPU, not the 430 of Serve's own proxy; a request 0.4 ms, not 5
    # (64 streams, 16 connections, 2 cores, 2026-11; `nanochat serve`: 23 us and 0.12 ms).
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Requests run on the replica's own event loop: no queue between two threads for every chunk.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Any change of replicas reloads HAProxy; after this its old process cuts the streams it still carries.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(GRACE_S + 30),
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    # Time to send a request's head, instead of an hour; an answer may take longer, whole or streamed.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # A hung engine never drains: kill it, or it would hold its device for the whole grace period.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # Importing Ray takes a busy or half-core pod more than the default of 5 s; after three it is killed.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What every process of the Ray cluster must have in its environment: `ray start`, deployer and pods."""


class UserConfig(Frozen):
    """What a replica serves. Every change of it is applied without a restart."""

    run: str | None = None
    """Serve this run's newest chat model, else its newest model; the default is `tiny`."""
    model: str | None = None
    """Serve exactly this one: `<run>/<stage>-<step>`, or a model folder's absolute path."""
    name: str | None = Field(default=None, min_length=1, max_length=200)
    """What clients may call the model whatever its id is; it outlives a change of the model."""
    max_running: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests that are decoded at once."""
    api_keys: Path | None = None
    """File of sha256 hashes of the allowed keys; None: open."""
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _admits_less_than_serve_does(self) -> UserConfig:
        admitted = self.max_running + self.limits.max_waiting
        if admitted >= MAX_ONGOING_REQUESTS:
            raise ValueError(
                f"max_running + limits.max_waiting is {admitted}, it must stay below {MAX_ONGOING_REQUESTS}"
            )
        if self.run is not None and self.model is not None:
            raise ValueError("give `run` or `model`, not both")
        return self


def load(config: UserConfig) -> Offer:
    """Load and verify the model that a configuration names, and let it make a token.

    Raises:
        ConfigError: no such model, or the key file cannot be used.
        DataError: a file of the model does not match its manifest, or it makes no token.
    """
    from nanochat import settings
    from nanochat.serve.keys import Keys
    from nanochat.serve.loading import load_engine

    keys = None if config.api_keys is None else Keys.load(config.api_keys)
    run = None if config.model else config.run or DEFAULT_RUN
    loaded = load_engine(settings.home(), run=run, model=config.model, max_running=config.max_running)
    aliases = () if config.name is None else (config.name,)
    return Offer(loaded=loaded, keys=keys, limits=config.limits, aliases=aliases)


class Chat:
    """One replica: one engine on one device, and the API in front of it."""

    def __init__(self, loader: Callable[[UserConfig], Offer] = load) -> None:
        self._loader = loader
        self._replica = Replica()
        self._served: UserConfig | None = None
        self._wanted: UserConfig | None = None
        self._swapping: asyncio.Task[None] | None = None
        _log_to_serve()

    def __serve_build_asgi_app__(self) -> Callable[..., Any]:
        """Return the application; Serve asks for it once, after the constructor."""
        return _without_request_id(self._replica)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve what `user_config` (see `UserConfig`) asks for.

        The first call loads the model and raises what is wrong with it: the replica does not start.
        Later ones return at once, since Serve sends no request to a replica that reconfigures: the new
        model is loaded, verified and warmed beside the present one and then takes its place, while
        running requests finish on the old one. What cannot be served is refused: the present model
        stays, and the log, /ready and `nanochat_model_swaps_total` tell why. It does not raise then,
        because Serve stops a replica that does, and with it the last good model.

        Raises:
            ConfigError: the first configuration is wrong.
            DataError: the first model is damaged.
        """
        if self._served is None:
            await self._serve(_checked(user_config))
            return
        try:
            self._wanted = _checked(user_config)
        except ConfigError as error:
            self._refuse(error)
            return
        if self._swapping is None or self._swapping.done():
            self._swapping = asyncio.create_task(self._follow())

    async def check_health(self) -> None:
        """Raise when work waits and the engine does not step: Serve replaces the replica.

        Raises:
            RuntimeError: says for how long.
        """
        if waited := self._replica.stuck_for():
            raise RuntimeError(f"work has waited {waited:.0f} s without an engine step")

    async def _serve(self, config: UserConfig) -> None:
        await self._replica.swap(lambda: self._loader(config))
        self._served = config

    async def _follow(self) -> None:
        """Swap until what is served is what is wanted, or cannot be had."""
        tried = None
        while (wanted := self._wanted) is not None and wanted not in (self._served, tried):
            tried = wanted
            try:
                await self._serve(wanted)
            except NanochatError as error:
                self._refuse(error)
            except Exception as error:  # a task's boundary: the present model must outlive any failure here
                log.exception("event=swap_failed")
                self._refuse(error)
        if self._wanted == self._served:
            self._replica.settle()

    def _refuse(self, error: Exception) -> None:
        hint = getattr(error, "hint", None)
        reason = f"{error}; hint: {hint}" if hint else str(error)
        log.error("event=swap_refused serving=%s reason=%r", self._replica.model_id, reason)
        self._replica.refuse(reason)


def _checked(user_config: dict[str, Any]) -> UserConfig:
    config: UserConfig = parse(UserConfig, user_config, what="user_config")
    return config


def _without_request_id(app: Replica) -> Callable[[Scope, Receive, Send], Any]:
    """Leave `x-request-id` to Serve's server, which adds the same one: twice would read as `id, id`."""

    async def serve_once(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await app(scope, receive, send_once)

    return serve_once


def _log_to_serve() -> None:
    """Write this package's events to the replica's log, which is that of Serve's own logger."""
    ours = logging.getLogger("nanochat")
    ours.setLevel(logging.INFO)
    ours.handlers = [_Forward()]


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.handle(record)


def deployment() -> Deployment:
    """Return the deployment `Chat`; its options are defaults that a Serve config may override."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    chat: Deployment = serve.deployment(
        name="Chat",
        user_config={},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=GRACE_S,
        graceful_shutdown_wait_loop_s=1,
        health_check_period_s=10,
        health_check_timeout_s=30,
        logging_config=LoggingConfig(enable_access_log=False),  # a line a request costs more than the request
    )(serve.ingress()(Chat))
    return chat


def __getattr__(name: str) -> Any:
    if name == "app":
        return deployment().bind()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in ENVIRONMENT.items()))

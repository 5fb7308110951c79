"""`nanochat serve`: bind, load, verify, warm up, serve, drain.

Knows model folders, sockets and signals; the routes are in `app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import uvicorn
from fastapi import FastAPI

from nanochat.errors import ConfigError, ForbiddenError, TakenError
from nanochat.serve.limits import Limits
from nanochat.serve.protocol import limited

if TYPE_CHECKING:
    from nanochat.serve.keys import Keys
    from nanochat.serve.loading import Loaded
    from nanochat.serve.serving import Serving
    from nanochat.settings import Home

log = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
GRACE_S = 25.0
"""Requests in flight may take this long after SIGTERM; below Kubernetes' default of 30 s."""
_LINGER_S = 5
_SETTLE_S = 0.25
"""A client that has just read its answer's end sends the next request well within this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A listening socket and how to reach it."""

    sock: socket.socket
    url: str
    port: int


def bind(host: str, port: int) -> Address:
    """Listen on `host:port`; port 0 takes a free one.

    Listening starts before the model loads: a second server on the port fails at once, and early
    requests wait in the backlog.

    Raises:
        TakenError: the port is in use.
        ForbiddenError: the system does not let this user have the port.
        ConfigError: the host is not an address of this machine.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"--port is {port}: must be from 0 (any free port) to 65535")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host `{host}` is not an address: {error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise _bind_error(error, host, port) from error
    taken = sock.getsockname()[1]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return Address(sock=sock, url=f"http://{reachable}:{taken}", port=taken)


def _bind_error(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return TakenError(
            f"port {port} on {host} is in use",
            hint="add `--port 0` to take a free port, or stop the process that listens there",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ForbiddenError(
            f"port {port} on {host} is not allowed for this user", hint="use a port from 1024 up"
        )
    return ConfigError(f"--host `{host}` cannot be bound: {error.strerror}")


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: it ends by the signal it was sent, we end with 0 after a drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    app: FastAPI,
    address: Address,
    *,
    limits: Limits | None = None,
    grace_s: float = GRACE_S,
    lame_duck_s: float = 0.0,
) -> None:
    """Serve until SIGTERM or SIGINT, drain, return.

    The first `lame_duck_s` seconds after the signal /ready answers 503 and every answer closes its
    connection, but nothing is refused: load balancers that still send clients here get time to stop.
    Then new connections' completions answer 503 and running ones finish within `grace_s`; what is left
    ends with an error. A connection that the client was told to keep gets one more answer, which tells it
    otherwise. A second signal ends at once.
    """
    config = uvicorn.Config(
        app,
        http=limited(limits or Limits()),
        loop="auto",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=int((limits or Limits()).keep_alive_s),
        timeout_graceful_shutdown=_LINGER_S,
    )
    server = _Server(config)
    runner = asyncio.Runner(loop_factory=config.get_loop_factory())
    with runner:
        runner.run(_serve(server, app, address, grace_s, lame_duck_s))


async def _serve(server: _Server, app: FastAPI, address: Address, grace_s: float, lame_duck_s: float) -> None:
    loop = asyncio.get_running_loop()
    drains: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if drains:
            server.force_exit = server.should_exit = True
        else:
            drains.append(loop.create_task(_drain(server, app, grace_s, lame_duck_s)))

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    await server.serve(sockets=[address.sock])


async def _drain(server: _Server, app: FastAPI, grace_s: float, lame_duck_s: float) -> None:
    context = app.state.context
    serving = context.serving
    serving.leaving = True
    for connection in list(server.server_state.connections):
        connection.leave()  # type: ignore[union-attr]
    await asyncio.sleep(lame_duck_s)
    serving.draining = True
    log.info("event=drain requests=%d grace_s=%g", serving.requests, grace_s)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_settled(server, serving), grace_s)
    if serving.requests:
        log.warning("event=drain_cut requests=%d", serving.requests)
        await asyncio.to_thread(context.engine.close)  # their clients get an error, not silence
    server.should_exit = True


async def _settled(server: _Server, serving: Serving) -> None:
    """Wait until nothing is in flight and no kept connection has brought a request for a moment."""
    state = server.server_state
    while True:
        if serving.requests:
            idle = asyncio.Event()
            serving.on_idle = idle.set
            await idle.wait()
        answered = state.total_requests
        if not state.connections:
            return
        await asyncio.sleep(_SETTLE_S)
        if not serving.requests and state.total_requests == answered:
            return


def announce(address: Address, model_id: str, *, keys: bool, as_json: bool, out: TextIO) -> None:
    """Print where the server is: the URL and a `curl` that works as it stands, or one JSON line."""
    body = json.dumps(
        {"model": model_id, "messages": [{"role": "user", "content": "Who are you?"}], "stream": True}
    )
    lock = ' -H "authorization: Bearer $NANOCHAT_API_KEY"' if keys else ""
    quoted = body.replace("'", "'\\''")
    curl = (
        f"curl -N {address.url}/v1/chat/completions -H 'content-type: application/json'{lock} -d '{quoted}'"
    )
    if as_json:
        line = {"url": address.url, "port": address.port, "model": model_id, "curl": curl}
        print(json.dumps(line), file=out, flush=True)
    else:
        print(f"{model_id} answers at {address.url} (chat page and API)\n\n{curl}\n", file=out, flush=True)


def run_server(
    home: Home,
    *,
    run: str,
    model: str | None = None,
    name: str | None = None,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    api_keys: Path | None = None,
    max_running: int = 8,
    limits: Limits | None = None,
    grace_s: float = GRACE_S,
    lame_duck_s: float = 0.0,
    as_json: bool = False,
    out: TextIO = sys.stdout,
) -> None:
    """Serve `model`, or a run's newest chat model (else its newest model), until a signal, then drain.

    `name` is what clients may call the model whatever its id is.

    Raises:
        TakenError: the port is in use.
        ConfigError: no such run or model, a bad key file, host or port.
        DataError: the model's files do not match its manifest.
    """
    from nanochat.serve.keys import Keys

    _log_to_stderr()
    keys = None if api_keys is None else Keys.load(api_keys)
    _check_times(grace_s, lame_duck_s)
    address = bind(host, port)
    try:
        loaded = _load(home, run=run, model=model, max_running=max_running)
        app = _app(loaded, name=name, keys=keys, limits=limits)
        if keys is None and host not in ("127.0.0.1", "::1", "localhost"):
            log.warning(
                'event=open host=%s hint="anyone who reaches this port can use it: add --api-keys FILE"', host
            )
        announce(address, app.state.context.model_id, keys=keys is not None, as_json=as_json, out=out)
        serve(app, address, limits=limits, grace_s=grace_s, lame_duck_s=lame_duck_s)
        app.state.context.engine.close()
    finally:
        address.sock.close()


def _check_times(grace_s: float, lame_duck_s: float) -> None:
    for option, seconds in (("--grace-s", grace_s), ("--lame-duck-s", lame_duck_s)):
        if not 0 <= seconds < float("inf"):
            raise ConfigError(f"{option} is {seconds:g}: must be 0 or more seconds")


def _log_to_stderr() -> None:
    """One event a line; uvicorn's own chatter only from warnings up."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s level=%(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _load(home: Home, *, run: str, model: str | None, max_running: int) -> Loaded:
    from nanochat.serve.loading import load_engine

    begun = time.monotonic()
    loaded = load_engine(home, run=run, model=model, max_running=max_running)
    log.info("event=warm model=%s seconds=%.2f", loaded.id, time.monotonic() - begun)
    return loaded


def _app(loaded: Loaded, *, name: str | None, keys: Keys | None, limits: Limits | None) -> FastAPI:
    from nanochat.serve.app import create_app

    return create_app(
        loaded.engine,
        loaded.prompts,
        model_id=loaded.id,
        created=loaded.created,
        keys=keys,
        limits=limits,
        aliases=() if name is None else (name,),
    )

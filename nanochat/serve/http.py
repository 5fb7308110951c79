"""The thin layer over ASGI: read a bounded body, send a reply, refuse in OpenAI's shape.

Knows HTTP and nothing of completions. The hot routes talk ASGI through this
module directly, because a framework's request and response objects cost more
than the rest of the route.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from nanochat.errors import RequestError
from nanochat.serve.limits import Limits
from nanochat.serve.refusals import error_body, refusal

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

KEPT = "kept"
"""In a scope's state: this client was never told that its connection ends."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_JSON = (b"content-type", b"application/json")
_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


def header(scope: Scope, name: bytes) -> bytes:
    """Return the first header of that lower-case name; empty without one."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def request_id(scope: Scope) -> bytes:
    """Return the client's own request id where it is harmless, else a fresh one."""
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else b"req_" + secrets.token_hex(12).encode()


class Reply:
    """One response on its way out. `started` tells whether an error can still have a status."""

    __slots__ = ("_id", "_send", "started", "status")

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._id = request_id
        self.started = False
        self.status = 0

    async def whole(self, status: int, body: bytes, headers: Headers = (_JSON,)) -> None:
        """Send a complete response."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [*headers, length])
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, error: RequestError, headers: Headers = ()) -> None:
        """Send an error response."""
        extra = list(headers)
        if error.retry_after_s is not None:
            extra.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
        if error.status == 401:
            extra.append((b"www-authenticate", b"Bearer"))
        if error.status in (408, 413, 431) or error.code == "draining":
            extra.append((b"connection", b"close"))  # nothing more is worth reading from it
        await self.whole(error.status, error_body(error), [_JSON, *extra])

    async def open_events(self) -> None:
        """Start a stream of server-sent events."""
        await self._start(200, _SSE)

    async def events(self, data: bytes) -> None:
        """Send the bytes of one or more events."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def close(self, data: bytes = b"") -> None:
        """End a stream."""
        await self._send({"type": "http.response.body", "body": data})

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"x-request-id", self._id)],
            }
        )


def check_json(scope: Scope) -> None:
    """Refuse a body that does not say it is plain JSON.

    A browser sends `application/json` across origins only after a preflight,
    which this server refuses: other sites cannot drive a server on loopback.

    Raises:
        RequestError: 415.
    """
    kind = header(scope, b"content-type").split(b";", 1)[0].strip().lower()
    if kind != b"application/json":
        shown = kind.decode("latin-1") or "missing"
        raise refusal(415, f"content-type is `{shown}`: send `content-type: application/json`")
    coding = header(scope, b"content-encoding").lower()
    if coding not in (b"", b"identity"):
        raise refusal(415, f"content-encoding `{coding.decode('latin-1')}` is not supported: send plain JSON")


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """Return the request body.

    Raises:
        RequestError: 413 above `max_body_bytes`, 408 when it is not complete in time.
        ClientGone: the connection closed first.
    """
    declared = header(scope, b"content-length")
    too_large = declared.isdigit() and int(declared) > limits.max_body_bytes
    if not too_large:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if not message.get("more_body", False):
            body = bytes(message.get("body", b""))
            if len(body) > limits.max_body_bytes:
                raise _too_large(limits)
            return body
    else:
        message = {"body": b"", "more_body": True}
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read_rest(message, receive, limits)
    except TimeoutError:
        raise refusal(408, f"the request body was not complete after {limits.body_timeout_s:g} s") from None


async def _read_rest(message: Message, receive: Receive, limits: Limits) -> bytes:
    chunks = [message.get("body", b"")]
    size = len(chunks[0])
    while message.get("more_body", False) and size <= limits.max_drain_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limits.max_body_bytes:
            chunks.append(chunk)
    if size > limits.max_body_bytes:
        raise _too_large(limits)
    return b"".join(chunks)


def _too_large(limits: Limits) -> RequestError:
    return refusal(413, f"the request body is larger than {limits.max_body_bytes:,} bytes")

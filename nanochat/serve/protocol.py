"""The HTTP/1.1 protocol with bounds that an ASGI application cannot set: heads, time, connections.

uvicorn's httptools protocol reads a request head of any length for any time; this one answers 431 and
408, in OpenAI's error shape like everything else. Knows no route.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from nanochat.errors import RequestError
from nanochat.serve.http import KEPT
from nanochat.serve.limits import Limits
from nanochat.serve.refusals import error_body, refusal


def limited(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol class with these limits."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})


class _LimitedProtocol(HttpToolsProtocol):
    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_bytes = 0  # of complete fields
        self._raw_bytes = 0  # of packets that did not complete the head
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._reason: RequestError | None = None
        self._kept = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        self._start_head_timer()

    def pause_writing(self) -> None:
        """The client reads slower than the model writes: it has `stall_s` to catch up."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.limits.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def leave(self) -> None:
        """Let the next head that is sent say that the connection ends with its answer.

        Closing without having said so loses what the client may be sending on a connection it was told to
        keep (RFC 9112, section 9.6): where the head in progress is out already, one more request is answered.
        """
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False
        else:
            self._kept = True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._raw_bytes += len(data)
            if self._raw_bytes > self.limits.max_header_bytes:
                self._refuse(self._too_large())
            elif self._head_timer is None:
                self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][KEPT] = self._kept
        self._in_head = True
        self._head_bytes = self._raw_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._reason or refusal(400, "the HTTP request is malformed", code="malformed_http"))

    def _count(self, more: int) -> None:
        self._head_bytes += more
        if self._head_bytes > self.limits.max_header_bytes:
            self._reason = self._too_large()
            raise ValueError("request head too large")  # the parser stops and `send_400_response` answers

    def _too_large(self) -> RequestError:
        return refusal(431, f"the request head is larger than {self.limits.max_header_bytes:,} bytes")

    def _refuse(self, error: RequestError) -> None:
        if self.cycle is None or self.cycle.response_complete:
            body = error_body(error)
            head = (
                b"content-type: application/json\r\ncontent-length: %d\r\n"
                b"x-request-id: req_%b\r\nconnection: close\r\n\r\n"
            ) % (len(body), secrets.token_hex(12).encode())
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.header_timeout_s, self._head_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if not self._in_head:  # connected and never spoke
            self.transport.close()
            return
        self._refuse(
            refusal(408, f"the request head was not complete after {self.limits.header_timeout_s:g} s")
        )

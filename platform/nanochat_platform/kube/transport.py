"""HTTP to one API server: pooled connections, whole answers and streams of lines.

Standard library only, because the lease guard and `cancel` must start within a few
tens of milliseconds. Knows nothing of Kubernetes objects, retries or our errors.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from nanochat_platform.kube.access import Access

USER_AGENT = "nanochat"
_MAX_ANSWER = 256 << 20
_IDLE = 4


class Unreachable(Exception):
    """The server did not answer: refused, reset, timed out, or broke off in the middle."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response, read to its end."""

    status: int
    body: bytes
    content_type: str = ""
    retry_after_s: float | None = None

    def json(self) -> dict[str, Any]:
        """Return the body as an object; an empty one where it is not JSON."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class _Connection(http.client.HTTPConnection):
    """Plain or TLS, direct or through a CONNECT proxy; verifies `tls_name` where it is given."""

    def __init__(self, access: Access, timeout_s: float) -> None:
        self._access = access
        target = urlsplit(access.server)
        self._target_host = target.hostname or ""
        port = target.port or (443 if target.scheme == "https" else 80)
        if access.proxy:
            proxy = urlsplit(access.proxy)
            super().__init__(proxy.hostname or "", proxy.port or 3128, timeout=timeout_s)
            self.set_tunnel(self._target_host, port)
        else:
            super().__init__(self._target_host, port, timeout=timeout_s)

    def connect(self) -> None:
        """Connect, through the tunnel where there is one, and start TLS."""
        super().connect()
        if self._access.tls is not None:
            name = self._access.tls_name or self._target_host
            self.sock = self._access.tls.wrap_socket(self.sock, server_hostname=name)

    def limit(self, timeout_s: float) -> None:
        """Bound every later read and write."""
        self.timeout = timeout_s
        if self.sock is not None:
            self.sock.settimeout(timeout_s)


class Stream:
    """Lines of an answer that goes on. Closing it, also from another thread, ends the reading."""

    def __init__(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self._connection = connection
        self._response = response

    def lines(self) -> Iterator[bytes]:
        """Yield whole lines without their ends, as they come.

        Raises:
            Unreachable: the connection broke, or nothing came within the time-out. A line that was
                cut by it is not yielded.
        """
        rest = b""
        try:
            while chunk := self._response.read1(65536):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(_words(error)) from None
        if rest:
            yield rest

    def answer(self) -> Answer:
        """Read the rest as one answer: what an error says."""
        try:
            return _answer(self._response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(_words(error)) from None

    def close(self) -> None:
        """Break the connection off."""
        with contextlib.suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _answer(response: http.client.HTTPResponse) -> Answer:
    after = response.headers.get("Retry-After", "")
    return Answer(
        response.status,
        response.read(_MAX_ANSWER),
        response.headers.get_content_type(),
        float(after) if after.isdigit() else None,
    )


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class Transport:
    """Requests to the server of an `Access`; safe to use from several threads."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_s: float = 30.0,
    ) -> Answer:
        """Send one request; returns the whole answer, whatever its status.

        Raises:
            Unreachable: there was none.
        """
        head, data = self._encode(body, content_type)
        target = self._target(path, query)
        answer = self._once(method, target, data, head, timeout_s)
        if answer.status == 401 and self.access.credentials.plugin is not None:
            head = {**head, **self._authorization(refresh=True)}
            answer = self._once(method, target, data, head, timeout_s)
        return answer

    def stream(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Stream:
        """Start a GET whose answer goes on; `timeout_s` bounds every single wait for more of it.

        Raises:
            Unreachable: there was no answer.
        """
        head, _ = self._encode(None, "")
        connection = _Connection(self.access, timeout_s)
        try:
            connection.request("GET", self._target(path, query), headers=head)
            return Stream(connection, connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(_words(error)) from None
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _authorization(self, *, refresh: bool = False) -> dict[str, str]:
        header = self.access.credentials.header(refresh=refresh)
        return {"Authorization": header} if header else {}

    def _encode(self, body: Any, content_type: str) -> tuple[dict[str, str], bytes | None]:
        head = {"User-Agent": USER_AGENT, "Accept": "application/json", **self._authorization()}
        if body is None:
            return head, None
        return {**head, "Content-Type": content_type}, json.dumps(body).encode()

    def _target(self, path: str, query: Mapping[str, str] | None) -> str:
        prefix = urlsplit(self.access.server).path.rstrip("/")
        return f"{prefix}{path}?{urlencode(query)}" if query else prefix + path

    def _once(
        self, method: str, target: str, data: bytes | None, head: dict[str, str], timeout_s: float
    ) -> Answer:
        connection = self._take(timeout_s)
        reused = connection.sock is not None
        try:
            return self._send(connection, method, target, data, head)
        except Unreachable:
            if not reused:
                raise
        # The server may close an idle connection at any moment; a fresh one decides.
        return self._send(_Connection(self.access, timeout_s), method, target, data, head)

    def _send(
        self, connection: _Connection, method: str, target: str, data: bytes | None, head: dict[str, str]
    ) -> Answer:
        try:
            connection.request(method, target, body=data, headers=head)
            response = connection.getresponse()
            answer = _answer(response)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(_words(error)) from None
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._put(connection)
        return answer

    def _take(self, timeout_s: float) -> _Connection:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            return _Connection(self.access, timeout_s)
        connection.limit(timeout_s)
        return connection

    def _put(self, connection: _Connection) -> None:
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        connection.close()

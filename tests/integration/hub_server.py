"""A data hub on loopback that serves files and on request cuts, stalls, corrupts, redirects, refuses.

Faults are queued per path, one a request. Knows ranges and ETags; nothing of what it serves.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Files by path, faults by path, and a log of (path, range) requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[tuple]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        self.sent: dict[str, int] = defaultdict(int)
        self.url = ""
        self.closing = threading.Event()
        self.stalled = threading.Event()

    def ranges(self, path: str) -> list[str | None]:
        return [wanted for asked, wanted in self.requests if asked == path]


def etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:16]}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.hub, self.path
        wanted = self.headers.get("Range")
        hub.requests.append((path, wanted))
        fault, *rest = hub.faults[path].pop(0) if hub.faults[path] else ("none",)
        if fault == "status":
            self._refuse(rest[0], rest[1] if len(rest) > 1 else {})
        elif fault == "redirect":
            self._refuse(302, {"Location": hub.url + rest[0], **rest[1]})
        elif path not in hub.files:
            self._refuse(404, {})
        else:
            self._serve(hub.files[path], wanted, fault, rest)

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, data: bytes, wanted: str | None, fault: str, rest: list) -> None:
        start, tag = 0, etag(data)
        condition = self.headers.get("If-Range")
        if wanted and fault != "ignore-range" and condition in (None, tag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(data):
            self._refuse(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        body = data[start:]
        if fault == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("cut", "stall"):
            body = body[: rest[0]]
        self.wfile.write(body)
        self.hub.sent[self.path] += len(body)
        if fault == "stall":
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.closing.wait(30)
        if fault in ("cut", "stall"):
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""A loopback proxy in front of the API server that kills its client, or the connection, at the k-th request.

The product has no hooks for this: to it the proxy is the API server.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from nanochat_platform.kube import access
from nanochat_platform.kube.transport import Transport

When = Literal["before", "after"]
Act = Callable[[int, When, str, str], bool]
"""Called before a request is passed on and after its answer came back, with number, method and path; True
when the connection must end there."""


class Cutter:
    """Passes requests on, one connection each, and lets `act` decide what happens to every one."""

    def __init__(
        self,
        kubeconfig: Path,
        act: Act = lambda *_: False,
        *,
        rewrite: Callable[[str], str] = lambda path: path,
    ) -> None:
        """`rewrite` changes the path of every request."""
        self.upstream = Transport(access.load(kubeconfig))
        self.count = 0
        self.act = act
        self.rewrite = rewrite
        self._lock = threading.Lock()
        cutter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a head and a body are two writes: 40 ms otherwise

            def log_message(self, *args: object) -> None:
                pass

            def _pass(self) -> None:
                cutter.handle(self)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)
        self.upstream.close()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig whose server is this proxy."""
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c"}}],
            "current-context": "c",
        }
        path.write_text(json.dumps(config))
        return path

    def handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Pass one request on."""
        with self._lock:
            self.count += 1
            number = self.count
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0)) or None
        request.close_connection = True
        if self.act(number, "before", request.command, request.path):
            return
        path = self.rewrite(request.path)
        if "watch=1" in path or "follow=true" in path:
            self._stream(request, number, path)
            return
        answer = self.upstream.request(
            request.command,
            path,
            body=json.loads(body) if body else None,
            content_type=request.headers.get("Content-Type", ""),
        )
        if self.act(number, "after", request.command, request.path):
            return
        request.send_response(answer.status)
        request.send_header("Content-Type", answer.content_type)
        request.send_header("Content-Length", str(len(answer.body)))
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(answer.body)

    def _stream(self, request: http.server.BaseHTTPRequestHandler, number: int, path: str) -> None:
        stream = self.upstream.stream(path, query={}, timeout_s=60)
        try:
            if self.act(number, "after", request.command, request.path):
                return
            request.send_response(stream.status)
            request.send_header("Connection", "close")
            request.end_headers()
            for line in stream.lines():
                request.wfile.write(line + b"\n")
                request.wfile.flush()
        finally:
            stream.close()

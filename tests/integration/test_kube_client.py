"""The client over real sockets: TLS, proxies, connections that break, servers that come back."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nanochat_platform.kube import access
from nanochat_platform.kube.access import Access, Credentials
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.logs import Reader
from nanochat_platform.kube.resources import LEASES, PODS
from nanochat_platform.kube.transport import Transport, Unreachable

from nanochat.errors import UnavailableError

Answering = Callable[[http.server.BaseHTTPRequestHandler], None]


def reply(request: http.server.BaseHTTPRequestHandler, value: Any, status: int = 200) -> None:
    data = json.dumps(value).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def chunks(request: http.server.BaseHTTPRequestHandler, *parts: bytes, whole: bool = True) -> None:
    """Send a chunked answer; broken off after the last part unless `whole`."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    for part in parts:
        request.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    if whole:
        request.wfile.write(b"0\r\n\r\n")
    request.close_connection = True


class Server:
    """An HTTP server on loopback whose answers a test gives."""

    def __init__(self, answer: Answering, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a head and a body are two writes: 40 ms otherwise

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def log_message(self, *args: object) -> None:
                pass

            def _answer(self) -> None:
                self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests.append((self.command, self.path, dict(self.headers)))
                answer(self)

            do_GET = do_POST = do_PATCH = do_DELETE = do_CONNECT = _answer

        class Threaded(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Threaded(("127.0.0.1", port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


@pytest.fixture
def closing() -> Iterator[list[Transport]]:
    made: list[Transport] = []
    yield made
    for transport in made:
        transport.close()


def transport_to(server: Server, made: list[Transport], **options: Any) -> Transport:
    made.append(Transport(Access(server=f"http://127.0.0.1:{server.port}", source="a test", **options)))
    return made[-1]


def test_one_connection_serves_many_requests(closing: list[Transport]) -> None:
    with Server(lambda request: reply(request, {"items": []})) as server:
        client = Client(transport_to(server, closing), "chat")
        for _ in range(5):
            assert client.items(PODS) == []
        assert server.connections == 1
        assert {path for _, path, _ in server.requests} == {"/api/v1/namespaces/chat/pods"}


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(closing: list[Transport]) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        reply(request, {"items": []})
        request.close_connection = True  # without saying so

    with Server(answer) as server:
        client = Client(transport_to(server, closing), "chat", patience_s=0.0)
        for _ in range(3):
            assert client.items(PODS) == []
        assert server.connections == 3


def test_a_server_that_restarts_is_waited_for(closing: list[Transport]) -> None:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        reply(request, {"items": [], "metadata": {}})

    with Server(answer) as first:
        port = first.port
        client = Client(transport_to(first, closing), "chat", patience_s=30.0)
        assert client.items(PODS) == []
    started = threading.Event()
    held: list[Any] = []

    def wait(seconds: float) -> None:
        if client.requests >= 4 and not started.is_set():  # after a few refused connections it comes back
            held.append(Server(answer, port=port).__enter__())
            started.set()

    client._wait = wait
    client.transport.close()
    try:
        assert client.items(PODS) == []
    finally:
        for server in held:
            server.__exit__()
    assert client.requests >= 5


def test_only_whole_lines_of_a_stream_that_breaks_are_taken(closing: list[Transport]) -> None:
    first = json.dumps({"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "5"}}})

    with Server(
        lambda request: chunks(request, first.encode() + b"\n", b'{"type": "ADD', whole=False)
    ) as server:
        client = Client(transport_to(server, closing), "chat")
        events = client.watch(PODS, "1")
        assert next(events)[1]["metadata"]["name"] == "a"
        with pytest.raises(Unreachable):
            next(events)
    assert "resourceVersion=1&timeoutSeconds=30" in server.requests[0][1]


def test_a_server_that_says_nothing_is_given_up(closing: list[Transport]) -> None:
    release = threading.Event()
    with Server(lambda request: release.wait(10) and None) as server:
        client = Client(transport_to(server, closing), "chat", patience_s=0.0)
        with pytest.raises(UnavailableError, match="no answer in time"):
            client.delete(PODS, "a", timeout_s=0.2)
        release.set()


def log_lines(count: int) -> list[str]:
    return [f"2026-11-25T03:00:{i // 10:02d}.{i % 10}00000001Z line {i}" for i in range(count)]


@pytest.mark.parametrize("cut", [1, 17, 100, 333, 1000])
def test_a_log_that_breaks_every_few_bytes_is_shown_once_and_whole(
    closing: list[Transport], cut: int
) -> None:
    lines = log_lines(30)
    sizes = iter(range(cut, 10**9, cut))

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if "/log" not in request.path:
            reply(request, {"metadata": {"name": "p", "uid": "u"}, "status": {"phase": "Succeeded"}})
            return
        since = request.path.partition("sinceTime=")[2].partition("&")[0].replace("%3A", ":")[:19]
        text = "".join(f"{line}\n" for line in lines if line[:19] >= since).encode()
        size = next(sizes)
        chunks(request, text[:size], whole=size >= len(text))

    pod = {"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [{"name": "train"}]}}
    shown: list[str] = []
    with Server(answer) as server:
        client = Client(transport_to(server, closing), "chat")
        reader = Reader(client, pod, lambda prefix, line: shown.append(f"{prefix} {line}"), follow=True)
        reader._stopped.wait = lambda timeout=None: False  # type: ignore[method-assign,assignment]
        reader.read()
    assert shown == [f"p/0 line {i}" for i in range(30)]


def authority(folder: Path, name: str) -> tuple[Path, Path]:
    """Return certificate and key of a self-signed server called `name`."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_certificates_of_server_and_user(tmp_path: Path, closing: list[Transport]) -> None:
    certificate, key = authority(tmp_path, "kubernetes")
    user_certificate, _ = authority(tmp_path, "ann")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(user_certificate)

    def load(**cluster: Any) -> Client:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{server.port}", **cluster}}],
            "users": [{"name": "u", "user": {"client-certificate": "ann.crt", "client-key": "ann.key"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (tmp_path / "config").write_text(json.dumps(config))
        client = Client.load(tmp_path / "config", patience_s=0.0)
        closing.append(client.transport)
        return client

    with Server(lambda request: reply(request, {"items": []}), tls=tls) as server:
        right = {"certificate-authority": "kubernetes.crt", "tls-server-name": "kubernetes"}
        assert load(**right).items(PODS) == []
        assert load(**{"insecure-skip-tls-verify": True}).items(PODS) == []
        with pytest.raises(UnavailableError, match=r"certificate verify failed"):
            load(**{"certificate-authority": "kubernetes.crt"}).items(PODS)
        with pytest.raises(UnavailableError, match=r"certificate verify failed"):
            load(**{"certificate-authority": "ann.crt", "tls-server-name": "kubernetes"}).items(PODS)


def test_a_proxy_gets_a_tunnel(closing: list[Transport]) -> None:
    def tunnel(request: http.server.BaseHTTPRequestHandler) -> None:
        host, _, port = request.path.partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            request.send_response(200)
            request.end_headers()
            asked = request.connection.recv(65536)
            upstream.sendall(asked)
            request.connection.sendall(upstream.recv(65536))
        request.close_connection = True

    with Server(lambda request: reply(request, {"items": []})) as server, Server(tunnel) as proxy:
        transport = transport_to(server, closing, proxy=f"http://127.0.0.1:{proxy.port}")
        assert Client(transport, "chat").items(PODS) == []
        assert [command for command, *_ in proxy.requests] == ["CONNECT"]


def test_a_refused_token_of_a_plugin_is_fetched_anew(tmp_path: Path, closing: list[Transport]) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(
        f"#!/bin/sh\necho >> {tmp_path}/count\n"
        f'echo \'{{"status": {{"token": "t\'$(wc -l < {tmp_path}/count)\'"}}}}\'\n'
    )
    plugin.chmod(0o755)

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        good = request.headers["Authorization"] == "Bearer t2"
        reply(request, {"items": []} if good else {"message": "Unauthorized"}, 200 if good else 401)

    with Server(answer) as server:
        credentials = Credentials(plugin={"command": str(plugin)})
        client = Client(transport_to(server, closing, credentials=credentials), "chat")
        assert client.items(PODS) == []
        assert [head["Authorization"] for *_, head in server.requests] == ["Bearer t1", "Bearer t2"]


def test_the_pod_reads_its_token_again_at_every_request(tmp_path: Path, closing: list[Transport]) -> None:
    certificate, key = authority(tmp_path, "localhost")
    (tmp_path / "ca.crt").write_bytes(certificate.read_bytes())
    (tmp_path / "namespace").write_text("chat\n")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with Server(lambda request: reply(request, {"spec": {}}), tls=tls) as server:
        env = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(server.port)}
        (tmp_path / "token").write_text("one")
        found = access.from_pod(env, tmp_path)
        client = Client(Transport(found), found.namespace)
        closing.append(client.transport)
        client.get(LEASES, "x")
        (tmp_path / "token").write_text("two")
        client.get(LEASES, "x")
        assert [head["Authorization"] for *_, head in server.requests] == ["Bearer one", "Bearer two"]
        assert server.requests[0][1] == "/apis/coordination.k8s.io/v1/namespaces/chat/leases/x"

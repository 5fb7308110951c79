"""The real server under clients that leave, stall, flood and lie, and under signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.errors import ConfigError, TakenError
from nanochat.serve.main import announce, bind

ROOT = Path(__file__).resolve().parents[2]
LONG = {"max_tokens": 4000, "ignore_eos": True}


@contextlib.contextmanager
def server(*arguments):
    """Yield (process, port) of a stub server; kill it at the end if it still runs."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nanochat.serve.stub", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, **pipes) as process:
        try:
            yield process, json.loads(process.stdout.readline())["port"]
        finally:
            process.kill()


class Client:
    """A socket that speaks just enough HTTP to break it."""

    def __init__(self, port):
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.data = b""

    def __del__(self):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)
        return self

    def post(self, path="/v1/chat/completions", *, headers="", **fields):
        body = json.dumps(
            {"model": "stub", "messages": [{"role": "user", "content": "hi"}], **fields}
        ).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}"
        return self.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def get(self, path):
        return self.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())

    def until(self, mark):
        """Read until `mark` came; return all that came before and it."""
        while mark not in self.data:
            if not (chunk := self.socket.recv(65536)):
                raise AssertionError(f"closed before {mark!r}: {self.data[-500:]!r}")
            self.data += chunk
        end = self.data.index(mark) + len(mark)
        taken, self.data = self.data[:end], self.data[end:]
        return taken

    def answer(self):
        """Read one response with a content-length; return (status, headers, JSON or bytes)."""
        head = self.until(b"\r\n\r\n").decode("latin-1").lower()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        length = int(headers["content-length"])
        while len(self.data) < length:
            self.data += self.socket.recv(65536)
        body, self.data = self.data[:length], self.data[length:]
        return int(head.split()[1]), headers, json.loads(body) if "json" in headers["content-type"] else body

    def closed(self):
        """Return True when the server closes the connection (what still comes is dropped)."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass
        return True


def metric(port, name):
    """Return the value of a metric, 0 before it is first counted."""
    lines = Client(port).get("/metrics").answer()[2].decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), 0.0)


def eventually(condition, seconds=10):
    """Ask until it is true; every question is a round trip, so this does not spin."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
    return False


@pytest.fixture(scope="module")
def slow():
    """A server whose long answers take a minute."""
    with server("--step-ms", "20", "--max-running", "2") as (_, port):
        yield port


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slots_at_once(slow, stream):
    client = Client(slow).post(stream=stream, n=2, **LONG)
    if stream:
        client.until(b'"content":"You"')
    assert eventually(lambda: metric(slow, "nanochat_requests_running") == 2)
    client.socket.close()
    steps = metric(slow, "nanochat_engine_steps_total")
    assert eventually(lambda: metric(slow, "nanochat_requests_running") == 0)
    assert metric(slow, "nanochat_engine_steps_total") - steps < 50


def test_a_client_that_leaves_while_it_waits_is_forgotten(slow):
    running = Client(slow).post(stream=True, n=2, **LONG)
    running.until(b"You")
    waiting = Client(slow).post(stream=True, **LONG)
    assert eventually(lambda: metric(slow, "nanochat_requests_waiting") == 1)
    waiting.socket.close()
    running.socket.close()
    assert eventually(
        lambda: metric(slow, "nanochat_requests_waiting") + metric(slow, "nanochat_requests_running") == 0
    )


def test_tokens_arrive_one_by_one(slow):
    client = Client(slow).post(stream=True, **LONG)
    seen = []
    for _ in range(3):
        client.until(b'"content":"')
        seen.append(time.monotonic())
    assert seen[2] - seen[0] > 0.01
    client.socket.close()


def test_a_full_queue_answers_429_with_retry_after():
    with server("--step-ms", "20", "--max-running", "1", "--limits", '{"max_waiting": 1}') as (_, port):
        first = Client(port).post(stream=True, **LONG)
        first.until(b"You")
        second = Client(port).post(stream=True, **LONG)
        assert eventually(lambda: metric(port, "nanochat_requests_waiting") == 1)
        status, headers, body = Client(port).post().answer()
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(headers["retry-after"]) >= 1
        first.socket.close()
        second.until(b"You")


def test_sigterm_drains_then_exits_0():
    with server("--step-ms", "20") as (process, port):
        running = Client(port).post(stream=True, max_tokens=60, ignore_eos=True)
        running.until(b"You")
        assert Client(port).get("/ready").answer()[0] == 200
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: Client(port).get("/ready").answer()[0] == 503)
        assert Client(port).get("/health").answer()[0] == 200
        status, headers, body = Client(port).post().answer()
        assert (status, body["error"]["code"], body["error"]["type"]) == (503, "draining", "server_error")
        assert (headers["connection"], headers["retry-after"]) == ("close", "1")
        running.until(b'"finish_reason":"length"')
        running.until(b"data: [DONE]")
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_a_lame_duck_answers_everything_and_sends_its_clients_elsewhere():
    with server("--lame-duck-s", "30") as (process, port):
        client = Client(port)
        status, headers, _ = client.post(max_tokens=1).answer()
        assert (status, "connection" in headers) == (200, False)
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: Client(port).get("/ready").answer()[0] == 503)
        for late in (client, Client(port)):  # a kept connection and a new one
            status, headers, body = late.post(max_tokens=1).answer()
            assert (status, headers["connection"]) == (200, "close")
            assert body["usage"]["completion_tokens"] == 1
            assert late.closed()
        stream = Client(port).post(stream=True, max_tokens=3, ignore_eos=True)
        assert b"connection: close" in stream.until(b"\r\n\r\n").lower()
        stream.until(b"data: [DONE]")
        assert Client(port).get("/health").answer()[0] == 200
        assert metric(port, "nanochat_draining") == 1
        process.send_signal(signal.SIGTERM)  # the second signal does not wait
        assert process.wait(10) == 0


def test_after_the_lame_duck_time_the_drain_begins():
    with server("--step-ms", "20", "--lame-duck-s", "0.2") as (process, port):
        running = Client(port).post(stream=True, max_tokens=60, ignore_eos=True)
        running.until(b"You")
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: Client(port).post(max_tokens=1).answer()[0] == 503)
        running.until(b"\r\n0\r\n\r\n")
        status, headers, _ = running.post(max_tokens=1).answer()  # its client was told to keep the connection
        assert (status, headers["connection"]) == (200, "close")
        assert running.closed()
        assert process.wait(10) == 0


@pytest.mark.parametrize("stream", [True, False])
def test_what_the_grace_period_cuts_off_gets_an_error_and_not_silence(stream):
    with server("--step-ms", "20", "--grace-s", "0.2") as (process, port):
        client = Client(port).post(stream=stream, **LONG)
        assert eventually(lambda: metric(port, "nanochat_requests_running") == 1)
        process.send_signal(signal.SIGTERM)
        if stream:
            text = client.until(b"\r\n0\r\n\r\n")
            assert b'data: {"error":{"message":"the server shut down' in text
            assert b"[DONE]" not in text
        else:
            status, _, body = client.answer()
            assert (status, body["error"]["code"]) == (503, "draining")
        assert process.wait(10) == 0


def test_an_idle_server_stops_at_once_on_either_signal():
    for signum in (signal.SIGTERM, signal.SIGINT):
        with server() as (process, port):
            Client(port).get("/ready").answer()
            process.send_signal(signum)
            assert process.wait(10) == 0


def test_keys_guard_the_api_and_nothing_else(tmp_path):
    digest = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"  # of "alpha"
    path = tmp_path / "keys"
    path.write_text(digest)
    with server("--api-keys", str(path)) as (_, port):
        for headers in ("", "authorization: Bearer beta\r\n"):
            status, answer, body = Client(port).post(headers=headers).answer()
            assert (status, body["error"]["code"], body["error"]["type"]) == (
                401,
                "invalid_api_key",
                "authentication_error",
            )
            assert answer["www-authenticate"] == "bearer"
        assert Client(port).get("/v1/models").answer()[0] == 401
        assert Client(port).post(headers="authorization: Bearer alpha\r\n").answer()[0] == 200
        for path in ("/health", "/ready", "/metrics", "/"):
            assert Client(port).get(path).answer()[0] == 200


LIMITS = json.dumps(
    {"header_timeout_s": 0.3, "body_timeout_s": 0.3, "max_header_bytes": 4096, "keep_alive_s": 1}
)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
CHUNK = b"20000\r\n" + b" " * 0x20000 + b"\r\n"


@pytest.fixture(scope="module")
def guarded():
    with server("--limits", LIMITS) as (_, port):
        yield port


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow: ", 408),
        (HEAD + b"content-length: 50\r\n\r\n{", 408),
        (CHUNKED + b"3\r\n{\"m\r\n", 408),
        (b"GET /v1/models HTTP/1.1\r\nx-big: " + b"a" * 10_000 + b"\r\n\r\n", 431),
        (b"GET /v1/models HTTP/1.1\r\nx-big: " + b"a" * 300_000, 431),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", 431),
        (HEAD + b"content-length: 3000000\r\n\r\n" + b"a" * 3_000_000, 413),
        (HEAD + b"content-length: 99999999999\r\n\r\n" + b"a" * 100, 408),
        (CHUNKED + CHUNK, 408),
        (CHUNKED + CHUNK * 9 + b"0\r\n\r\n", 413),
        (HEAD + b"content-length: nine\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", 400),
        (b"BREW /pot HTCPCP/1.0\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_a_slow_large_or_malformed_request_gets_an_openai_error_and_is_closed(guarded, data, status):
    client = Client(guarded)
    with contextlib.suppress(ConnectionError):
        client.send(data)
    got, headers, body = client.answer()
    assert got == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"].startswith("req_")
    assert client.closed()


def test_a_connection_that_never_speaks_is_closed(guarded):
    assert Client(guarded).closed()


def test_an_idle_connection_is_closed_after_its_keep_alive(guarded):
    client = Client(guarded).get("/ready")
    assert client.answer()[0] == 200
    assert client.closed()


def test_requests_on_one_connection_are_answered_in_order(guarded):
    client = Client(guarded).post(max_tokens=1).post(max_tokens=2).get("/ready")
    assert client.answer()[2]["usage"]["completion_tokens"] == 1
    assert client.answer()[2]["usage"]["completion_tokens"] == 2
    assert client.answer()[2]["status"] == "ready"


def test_a_client_that_reads_nothing_loses_its_slot():
    left = 'nanochat_http_requests_total{route="chat",status="499"}'
    with server("--step-ms", "4", "--limits", '{"stall_s": 0.3}') as (_, port), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        body = json.dumps(
            {
                "model": "stub",
                "messages": [{"role": "user", "content": "x" * 3000}],
                "stream": True,
                "n": 8,
                **LONG,
            }
        ).encode()
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert eventually(lambda: metric(port, left) == 1, 30)


def test_a_taken_port_is_named_with_a_fix():
    taken = bind("127.0.0.1", 0)
    with taken.sock, pytest.raises(TakenError) as raised:
        bind("127.0.0.1", taken.port)
    assert raised.value.exit_code == 73
    assert str(taken.port) in raised.value.message
    assert "--port 0" in raised.value.hint


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("no.such.host.invalid", 0)]
)
def test_a_wrong_address_is_a_configuration_error(host, port):
    with pytest.raises(ConfigError):
        bind(host, port)


def test_the_printed_curl_works_as_it_stands(slow, capsys):
    address = bind("127.0.0.1", 0)
    with address.sock:
        announce(address, "stub", keys=False, as_json=False, out=sys.stdout)
        text = capsys.readouterr().out
        assert address.url in text
    command = next(line for line in text.splitlines() if line.startswith("curl "))
    command = command.replace(address.url, f"http://127.0.0.1:{slow}")
    shell = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)  # noqa: S607
    assert shell.stdout.endswith("data: [DONE]\n\n")

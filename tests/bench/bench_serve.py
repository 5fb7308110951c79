"""What the API itself costs: CPU of the server process, real server command, stub engine, keep-alive.

Knows nothing of models. The figure is process CPU time from /proc, so that the load generator beside it
does not count. Run: `python tests/bench/bench_serve.py`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.bench.row import Row  # noqa: E402  (this file is also run by its path)

REQUEST_BOUND_MS = 0.5
CHUNK_BOUND_US = 35.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WARM_UP = 200


@contextlib.contextmanager
def stub_server(*arguments: str) -> Iterator[tuple[int, int]]:
    """Yield (pid, port) of a running stub server; stop it with SIGTERM."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    command = [sys.executable, "-m", "nanochat.serve.stub", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, json.loads(process.stdout.readline())["port"]
        finally:
            process.terminate()
            process.wait(timeout=30)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _request(port: int, **fields: Any) -> bytes:
    body = json.dumps(
        {"model": "stub", "messages": [{"role": "user", "content": "Tell me about the sea."}], **fields}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return 0


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    writer.write(request)
    data = await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200"), data
    return data.count(b"\ndata: {")


async def _load(
    port: int, request: bytes, one: Callable[..., Awaitable[int]], *, requests: int, connections: int
) -> int:
    """Send `requests` over `connections` kept-alive ones; return the chunks that came."""

    async def client(share: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        chunks = sum([await one(reader, writer, request) for _ in range(share)])
        writer.close()
        await writer.wait_closed()
        return chunks

    return sum(await asyncio.gather(*(client(requests // connections) for _ in range(connections))))


def measure_requests(requests: int = 2000, connections: int = 8) -> float:
    """Return the server's CPU milliseconds per non-streamed request of 16 tokens."""
    with stub_server() as (pid, port):
        request = _request(port, max_tokens=16, ignore_eos=True)
        asyncio.run(_load(port, request, _whole, requests=_WARM_UP, connections=connections))
        before = cpu_s(pid)
        asyncio.run(_load(port, request, _whole, requests=requests, connections=connections))
        return (cpu_s(pid) - before) / requests * 1000


def measure_chunks(requests: int = 2000, connections: int = 8, tokens: int = 32) -> float:
    """Return the server's CPU microseconds per streamed chunk, everything of the request included.

    The stub makes a token for every stream each millisecond: no two chunks of a stream share a write.
    """
    with stub_server("--step-ms", "1") as (pid, port):
        request = _request(port, max_tokens=tokens, ignore_eos=True, stream=True)
        asyncio.run(_load(port, request, _stream, requests=_WARM_UP, connections=connections))
        before = cpu_s(pid)
        chunks = asyncio.run(_load(port, request, _stream, requests=requests, connections=connections))
        return (cpu_s(pid) - before) / chunks * 1e6


def rows(requests: int = 2000) -> list[Row]:
    """Return the two rows of the bar table."""
    command = "python tests/bench/bench_serve.py"
    return [
        Row(
            name="API overhead per request",
            figure=round(measure_requests(requests), 3),
            unit="ms CPU",
            bound=REQUEST_BOUND_MS,
            better="lower",
            command=command,
            notes=f"{requests} non-streamed chats of 16 tokens, 8 kept-alive connections, stub engine",
        ),
        Row(
            name="API overhead per streamed chunk",
            figure=round(measure_chunks(requests), 1),
            unit="us CPU",
            bound=CHUNK_BOUND_US,
            better="lower",
            command=command,
            notes=f"{requests} streams of 32 tokens, 8 at a time, one write a chunk; the stub's steps count",
        ),
    ]


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row.to_json()))

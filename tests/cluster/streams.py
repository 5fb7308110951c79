"""Clients that keep streams open on a server, and count what does not end well. Knows nothing of clusters."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

ASK = {"model": "nanochat", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@dataclass
class Tally:
    """What the clients have seen."""

    finished: int = 0
    refused: list[str] = field(default_factory=list)
    """Requests that did not get 200, or no connection."""
    broken: list[str] = field(default_factory=list)
    """Streams that began and ended without [DONE], or with an error."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def _stream(client: httpx.Client, url: str, body: dict[str, object]) -> tuple[str, str]:
    """Return (kind of failure, or `finished`; its text) of one stream."""
    begun = False
    try:
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return "refused", f"{response.status_code} {response.read().decode()[:300]}"
            begun = True
            last = ""
            for line in response.iter_lines():
                last = line or last
                if line.startswith("data: {") and "error" in json.loads(line[6:]):
                    return "broken", line
            return ("finished", "") if last == "data: [DONE]" else ("broken", f"ended with {last[:200]}")
    except httpx.HTTPError as error:
        return ("broken" if begun else "refused"), repr(error)


def _client(url: str, body: dict[str, object], tally: Tally, stop: threading.Event, *, keep: bool) -> None:
    """Ask again and again: on one kept connection, or a new one for every request."""
    with httpx.Client(timeout=120) as kept:
        while not stop.is_set():
            with contextlib.ExitStack() as stack:
                client = kept if keep else stack.enter_context(httpx.Client(timeout=120))
                kind, text = _stream(client, url, body)
            with tally.lock:
                if kind == "finished":
                    tally.finished += 1
                else:
                    getattr(tally, kind).append(text)


@contextlib.contextmanager
def streaming(url: str, *, clients: int = 4, choices: int = 8) -> Iterator[Tally]:
    """Keep `clients` streams open while the block runs; afterwards every one has come to its end.

    Half of them keep their connection, half make a new one for every stream. Several choices with the end
    token forbidden make streams of seconds even of a model whose context is short.
    """
    body = ASK | {"stream": True, "n": choices, "ignore_eos": True, "max_tokens": 1000, "temperature": 1}
    tally, stop = Tally(), threading.Event()
    threads = [
        threading.Thread(target=_client, args=(url, body, tally, stop), kwargs={"keep": bool(index % 2)})
        for index in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield tally
    finally:
        stop.set()
        for thread in threads:
            thread.join()

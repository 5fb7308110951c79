"""`nanochat bench`: load a running OpenAI-compatible server and say how fast it answers.

Speaks only the public API, so any server can be compared. Knows nothing of ours.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nanochat_platform.cli import options as o

Url = Annotated[str, typer.Option("--url", metavar="URL", help="Server, without /v1.")]
Requests = Annotated[int, typer.Option("--requests", metavar="N", min=1, help="Chats in all.")]
Concurrency = Annotated[int, typer.Option("--concurrency", metavar="N", min=1, help="Chats at once.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Tokens of an answer.")]


@dataclass(frozen=True, slots=True)
class Timing:
    """One streamed chat, in seconds."""

    first_s: float
    total_s: float
    tokens: int


def bench(
    *,
    url: Url = "http://127.0.0.1:8000",
    requests: Requests = 64,
    concurrency: Concurrency = 8,
    max_tokens: MaxTokens = 64,
    as_json: o.Json = False,
) -> None:
    """Measure a running server: tokens per second, time to first token, time of a chat."""
    import httpx

    from nanochat.errors import UnavailableError

    try:
        with httpx.Client(base_url=url, timeout=300) as client:
            model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
            began = time.perf_counter()
            with ThreadPoolExecutor(concurrency) as pool:
                timings = list(pool.map(lambda i: chat(client, model, i, max_tokens), range(requests)))
            wall_s = time.perf_counter() - began
    except (httpx.HTTPError, LookupError) as error:
        raise UnavailableError(
            f"`{url}` did not answer as expected: {error}", hint="start it with `nanochat serve --run NAME`"
        ) from error
    facts = summarise(timings, wall_s) | {"model": model, "concurrency": concurrency}
    if as_json:
        o.print_json(facts)
    else:
        print("  ".join(f"{name}={value}" for name, value in facts.items()), flush=True)


def chat(client: Any, model: str, number: int, max_tokens: int) -> Timing:
    """Stream one chat and time it; `number` varies the prompt and the seed."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me {number + 2} facts about water."}],
        "max_tokens": max_tokens,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    first, tokens = 0.0, 0
    usage = re.compile(r'"completion_tokens": ?(\d+)')
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not first and '"content":' in line:
                first = time.perf_counter() - began
            if found := usage.search(line):
                tokens = int(found[1])
    total = time.perf_counter() - began
    return Timing(first or total, total, tokens)


def summarise(timings: list[Timing], wall_s: float) -> dict[str, float | int]:
    """Return requests, tokens per second, and medians and 95th percentiles in milliseconds."""
    first = sorted(timing.first_s for timing in timings)
    total = sorted(timing.total_s for timing in timings)
    tokens = sum(timing.tokens for timing in timings)
    return {
        "requests": len(timings),
        "tokens": tokens,
        "tok_per_s": round(tokens / wall_s, 1),
        "first_token_p50_ms": round(1e3 * first[len(first) // 2], 1),
        "first_token_p95_ms": round(1e3 * first[int(0.95 * (len(first) - 1))], 1),
        "chat_p50_ms": round(1e3 * total[len(total) // 2], 1),
        "chat_p95_ms": round(1e3 * total[int(0.95 * (len(total) - 1))], 1),
    }

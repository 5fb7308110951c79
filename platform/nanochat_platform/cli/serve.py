"""`nanochat serve` and `nanochat chat`. Knows nothing of HTTP or of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanochat_platform.cli import options as o

Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", metavar="PORT", help="Port to listen on; 0 takes a free one.")]
ApiKeys = Annotated[
    Path | None, typer.Option("--api-keys", metavar="FILE", help="File of sha256 hashes of allowed keys.")
]
MaxRunning = Annotated[int, typer.Option("--max-running", metavar="N", help="Requests decoded at once.")]
Prompt = Annotated[
    str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer this one message and end.")
]
Temperature = Annotated[float, typer.Option("--temperature", metavar="T", help="0: the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="Sample among the K likeliest; 0: all.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", help="Tokens of an answer at most.")]


def serve(
    *,
    run: o.Run = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_keys: ApiKeys = None,
    max_running: MaxRunning = 8,
    as_json: o.Json = False,
) -> None:
    """Serve a run's newest chat model: OpenAI-compatible API and a chat page."""
    from nanochat import settings
    from nanochat.serve.main import run_server
    from nanochat_platform.local import DEFAULT_PRESET

    run_server(
        settings.home(),
        run=run or DEFAULT_PRESET,
        host=host,
        port=port,
        api_keys=api_keys,
        max_running=max_running,
        as_json=as_json,
    )


def chat(
    *,
    run: o.Run = None,
    prompt: Prompt = None,
    temperature: Temperature = 0.6,
    top_k: TopK = 50,
    max_tokens: MaxTokens = 256,
    seed: o.Seed = None,
) -> None:
    """Chat with a run's newest chat model in the terminal."""
    from nanochat import settings
    from nanochat.serve import terminal
    from nanochat_platform.local import DEFAULT_PRESET

    terminal.chat(
        settings.home(),
        run=run or DEFAULT_PRESET,
        prompt=prompt,
        temperature=temperature,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
    )

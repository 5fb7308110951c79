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
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="RUN/STAGE-STEP or a model's folder, instead of --run."),
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="What clients may call the model whatever its id is."),
]
Grace = Annotated[
    float, typer.Option("--grace-s", metavar="S", help="Seconds that running requests have after SIGTERM.")
]
LameDuck = Annotated[
    float,
    typer.Option("--lame-duck-s", metavar="S", help="Seconds after SIGTERM before new requests are refused."),
]
Prompt = Annotated[
    str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer this one message and end.")
]
Temperature = Annotated[float, typer.Option("--temperature", metavar="T", help="0: the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="Sample among the K likeliest; 0: all.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", help="Tokens of an answer at most.")]


def serve(
    *,
    run: o.Run = None,
    model: Model = None,
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_keys: ApiKeys = None,
    max_running: MaxRunning = 8,
    grace_s: Grace = 25.0,
    lame_duck_s: LameDuck = 0.0,
    as_json: o.Json = False,
) -> None:
    """Serve a run's newest chat model: OpenAI-compatible API and a chat page."""
    from nanochat import settings
    from nanochat.errors import ConfigError
    from nanochat.serve.main import run_server
    from nanochat_platform.local import DEFAULT_PRESET

    if run is not None and model is not None:
        raise ConfigError("--run and --model exclude each other", hint="leave one of them out")
    run_server(
        settings.home(),
        run=run or DEFAULT_PRESET,
        model=model,
        name=name,
        host=host,
        port=port,
        api_keys=api_keys,
        max_running=max_running,
        grace_s=grace_s,
        lame_duck_s=lame_duck_s,
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

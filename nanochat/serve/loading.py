"""A run's exported model -> a running engine that has already made a token.

Knows model folders, the tokenizer and the engine; nothing of HTTP. The server and the terminal chat share it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.chat import render_prompt
from nanochat.checkpoint.models import resolve_model
from nanochat.engine.request import SamplingParams
from nanochat.errors import DataError
from nanochat.serve.messages import Turn

if TYPE_CHECKING:
    from nanochat.engine.engine import Engine
    from nanochat.settings import Home
    from nanochat.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class TokenizerPrompts:
    """Renders with the model's own tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of a conversation, ending where the assistant's answer begins."""
        return render_prompt(self._tokenizer, turns)

    def text(self, text: str) -> list[int]:
        """Return the ids of a document's beginning."""
        return [self._tokenizer.bos, *self._tokenizer.encode(text)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that answers."""

    id: str
    path: Path
    created: int
    """When it was exported, seconds since the epoch."""
    engine: Engine
    prompts: TokenizerPrompts


def load_engine(home: Home, *, run: str, max_running: int = 8) -> Loaded:
    """Load and verify a run's newest chat model (else its newest model), start its engine, make one token.

    Raises:
        ConfigError: the run has no exported model.
        DataError: a file does not match the manifest, or the model makes no token.
    """
    folder = resolve_model(home, run)
    log.info("event=load model=%s", folder.id)
    # torch takes seconds to import; a run without a model is an error before that
    from nanochat.device import select_device
    from nanochat.engine.engine import Engine, Limits

    device = select_device()
    model, tokenizer = folder.load(device.torch, device.dtype)
    engine = Engine(model, tokenizer, limits=Limits(max_running=max_running, max_waiting=1 << 16), pack=True)
    engine.run_thread(threads=None)  # cores - 1: the event loop has the last one
    prompts = TokenizerPrompts(tokenizer)
    warm_up(engine, prompts, folder.id)
    created = int((folder.path / "manifest.json").stat().st_mtime)
    return Loaded(id=folder.id, path=folder.path, created=created, engine=engine, prompts=prompts)


def warm_up(engine: Engine, prompts: TokenizerPrompts, model_id: str) -> None:
    """Make one token: kernels are compiled and the weights proven to run before the first client comes.

    Raises:
        DataError: the engine failed or made nothing.
    """
    prompt = prompts.chat([{"role": "user", "content": "Hello"}])
    done = engine.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1))[0]
    if done.finish_reason not in ("stop", "length") or not done.token_ids:
        raise DataError(
            f"model `{model_id}` made no token at the warm-up: {engine.failure or done.finish_reason}"
        )

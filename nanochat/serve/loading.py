"""An exported model -> a running engine that has already made a token.

Knows model folders, the tokenizer and the engine; nothing of HTTP. The server and the terminal chat share it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.chat import render_prompt
from nanochat.checkpoint.folder import read_manifest
from nanochat.checkpoint.models import ModelFolder, list_models, resolve_model
from nanochat.engine.request import SamplingParams
from nanochat.errors import ConfigError, DataError, did_you_mean
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


def find_folder(home: Home, *, run: str | None = None, model: str | None = None) -> ModelFolder:
    """Return a run's newest chat model (else its newest model), or exactly the model that is asked for.

    Args:
        home: the home folder.
        run: the run's name; not looked at when `model` is given.
        model: an id `<run>/<stage>-<step>`, or a model folder's absolute path.

    Raises:
        ConfigError: there is no such model, or neither was given.
        DataError: its manifest is damaged.
    """
    if model is None:
        if run is None:
            raise ConfigError("no model to serve: give a run or a model")
        return resolve_model(home, run)
    path = Path(model)
    if not path.is_absolute():
        of_run, _, name = model.partition("/")
        path = home.models(of_run) / name
        if not name or "/" in name or not path.is_dir():
            known = [folder.id for folder in list_models(home, of_run)]
            hint = did_you_mean(model, known) if known else "make one with `nanochat speedrun`"
            raise ConfigError(f"there is no model `{model}` in `{home.root}`", hint=hint)
    if not path.is_dir():
        raise ConfigError(
            f"there is no model folder `{path}`", hint="give the folder that holds manifest.json"
        )
    read_manifest(path)
    return ModelFolder(path)


def load_engine(
    home: Home, *, run: str | None = None, model: str | None = None, max_running: int = 8
) -> Loaded:
    """Load and verify a model (see `find_folder`), start its engine, make one token.

    Raises:
        ConfigError: there is no such model.
        DataError: a file does not match the manifest, or the model makes no token.
    """
    folder = find_folder(home, run=run, model=model)
    log.info("event=load model=%s", folder.id)
    # torch takes seconds to import; a run without a model is an error before that
    from nanochat.device import select_device, usable_cpus
    from nanochat.engine.engine import Engine, Limits

    device = select_device()
    weights, tokenizer = folder.load(device.torch, device.dtype)
    limits = Limits(max_running=max_running, max_waiting=1 << 16)
    engine = Engine(weights, tokenizer, limits=limits, pack=True)
    engine.run_thread(threads=max(1, usable_cpus() - 1))  # the event loop has the last one
    prompts = TokenizerPrompts(tokenizer)
    try:
        warm_up(engine, prompts, folder.id)
    except BaseException:
        engine.close()  # its thread would keep a model that nobody uses
        raise
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

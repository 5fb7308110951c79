"""The run's tokenizer, and the preset that fits it. Imports no torch; knows nothing of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanochat.errors import ConfigError
from nanochat.run.context import StageContext
from nanochat.shape import Preset
from nanochat.tokenizer import Tokenizer


def tokenizer_path(context: StageContext) -> Path:
    """Return where stage `tok_train` of the run leaves its tokenizer."""
    return context.home.stage(context.spec.run, "tok_train") / "tokenizer.json"


def load_tokenizer(context: StageContext) -> Tokenizer:
    """Return the run's tokenizer."""
    return Tokenizer.load(tokenizer_path(context))


def fit_vocabulary(preset: Preset, tokenizer: Tokenizer) -> Preset:
    """Return the preset with the tokenizer's vocabulary: a small corpus may have had too few merges.

    Raises:
        ConfigError: the tokenizer has more ids than the preset.
    """
    if tokenizer.vocab_size > preset.shape.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, more than the {preset.shape.vocab_size:,} of"
            f" preset `{preset.name}`",
            hint="train the tokenizer of this run with this preset",
        )
    return replace(preset, shape=replace(preset.shape, vocab_size=tokenizer.vocab_size))

"""Turns and texts -> prompt ids. Knows the tokenizer's face, nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nanochat.serve.messages import Turn


class Prompts(Protocol):
    """How a server turns what clients write into token ids; a stub in benchmarks."""

    vocab_size: int

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of a conversation, ending where the assistant's answer begins."""
        ...

    def text(self, text: str) -> list[int]:
        """Return the ids of a document's beginning."""
        ...

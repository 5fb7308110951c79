"""Byte pair encoding: train, encode, split. Text never becomes a special id: there are none here."""

import os
from collections.abc import Iterable, Sequence
from typing import final

GPT4_PATTERN: str
"""GPT-4's split pattern with numbers cut into groups of at most two digits."""

@final
class Tokenizer:
    """Ranked tokens and the pattern that cuts text into chunks; immutable, safe to share by threads."""

    @staticmethod
    def train(
        texts: Iterable[str], vocab_size: int, *, pattern: str = ..., batch_bytes: int = ...
    ) -> Tokenizer:
        """Learn `vocab_size - 256` merges; fewer when the texts hold no further pair.

        Reads `batch_bytes` of text at a time, holding no more than that beside the distinct chunks.
        The result depends on neither threads, batches nor order. What the iterator raises propagates.

        Raises:
            ValueError: `vocab_size` is below 256, or `pattern` is no regular expression.
            TypeError: an item is not `str`, or `texts` is one `str`.
        """

    @staticmethod
    def from_ranks(ranks: Sequence[tuple[bytes, int]], *, pattern: str = ...) -> Tokenizer:
        """Return a tokenizer of the given tokens; ranks run from 0 without gaps.

        Raises:
            ValueError: a gap, an empty or repeated token, or a single byte that is missing.
        """

    @property
    def pattern(self) -> str: ...
    @property
    def vocab_size(self) -> int:
        """256 bytes plus merges."""

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text`, whatever it looks like.

        Raises:
            UnicodeEncodeError: `text` holds a lone surrogate.
        """

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text; large batches use all cores."""

    def encode_packed(self, texts: Iterable[str], *, first: int | None = None) -> tuple[bytes, list[int]]:
        """Return little-endian 16-bit ids of all texts in one buffer, and the number of ids a text.

        Each text starts with id `first` where given.

        Raises:
            ValueError: the vocabulary is larger than 65,536.
        """

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of `ids`.

        Raises:
            ValueError: an id is no token.
        """

    def mergeable_ranks(self) -> list[tuple[bytes, int]]:
        """Return every token with its rank, in order."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Replace `path` by pattern and tokens as JSON, atomically."""

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not such JSON.
            OSError: it cannot be read.
        """

def split(text: str, *, pattern: str = ...) -> list[str]:
    """Return the chunks that merges never cross."""

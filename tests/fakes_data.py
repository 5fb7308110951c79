"""Small datasets and a tokenizer that needs no training, for tests of what comes after the data stage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanochat.data.manifest import DatasetManifest, FileEntry, dataset_hash
from nanochat.data.shards import shard_name, write_shard
from nanochat.files import sha256_file

WORDS = ("the king went up to the city and said let there be bread for all of my people today " * 3).split()


class ByteEncoder:
    """Ids are bytes; 256 is the bos. The smallest thing that encodes."""

    bos = 256
    vocab_size = 257
    hash = "b" * 64

    def __init__(self) -> None:
        self.batches = 0

    def encode_documents(self, texts: Sequence[str]) -> tuple[bytes, list[int]]:
        self.batches += 1
        rows = [[self.bos, *text.encode()] for text in texts]
        return packed(rows)


def packed(rows: Sequence[Sequence[int]]) -> tuple[bytes, list[int]]:
    """Return documents as the Rust tokenizer does: flat uint16 bytes, and lengths."""
    return np.array([i for row in rows for i in row], dtype="<u2").tobytes(), [len(row) for row in rows]


def make_texts(count: int, *, seed: int, longest: int = 120) -> list[str]:
    """Return `count` documents of 1 to `longest` words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


def make_dataset(folder: Path, shards: Sequence[Sequence[str]]) -> Path:
    """Write a dataset with these shards, the last one validation."""
    files: dict[str, FileEntry] = {}
    names = [shard_name(index) for index in range(len(shards))]
    for name, texts in zip(names, shards, strict=True):
        written = write_shard(folder / name, texts)
        files[name] = FileEntry(
            sha256=sha256_file(folder / name),
            bytes=(folder / name).stat().st_size,
            kind="val" if name == names[-1] else "train",
            rows=written.documents,
            utf8_bytes=written.utf8_bytes,
        )
    manifest = DatasetManifest(
        name=folder.name,
        source="generated",
        recipe="test",
        documents=sum(len(texts) for texts in shards[:-1]),
        utf8_bytes=sum(len(text.encode()) for texts in shards[:-1] for text in texts),
        shards=tuple(names),
        files=files,
        sources=(),
        hash=dataset_hash(files),
    )
    manifest.save(folder)
    return folder

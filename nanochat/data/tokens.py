"""Token files: every document of a dataset as ids, one pair of flat files a shard.

`shard_00000.u16` holds little-endian uint16 ids, each document as its bos and
its text; `shard_00000.offsets` holds little-endian uint64, documents + 1 of
them. A shard is finished when the manifest names it, so a killed run continues
at the first shard that is missing. Knows nothing of rows, batches or ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nanochat.data.manifest import load as load_dataset
from nanochat.data.shards import read_texts
from nanochat.errors import ConfigError, DataError
from nanochat.files import atomic_writer, read_json, sha256_file, write_json

FORMAT = 1
BATCH_DOCUMENTS = 1024  # one row group: what the encoder gets at once
MAX_VOCAB = 1 << 16
Report = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


class Encoder(Protocol):
    """The part of `nanochat.tokenizer.Tokenizer` that token files need."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hash(self) -> str: ...
    def encode_documents(self, texts: Sequence[str]) -> tuple[bytes, list[int]]:
        """Return `[bos] + ids` of every text as little-endian uint16, and their lengths in tokens."""
        ...


@dataclass(frozen=True, slots=True)
class TokenShard:
    """One finished shard."""

    name: str
    tokens: int
    documents: int
    sha256: str
    offsets_sha256: str


@dataclass(frozen=True, slots=True)
class TokenFiles:
    """A dataset's token files; the last shard is validation."""

    folder: Path
    tokenizer: str
    dataset: str
    shards: tuple[TokenShard, ...]

    @classmethod
    def load(cls, folder: Path) -> TokenFiles:
        """Read the manifest.

        Raises:
            DataError: it is missing, damaged or lists fewer than two shards.
        """
        value = read_json(folder / "manifest.json")
        try:
            shards = tuple(TokenShard(**shard) for shard in value["shards"])
            files = cls(folder, value["tokenizer"], value["dataset"], shards)
        except (KeyError, TypeError) as error:
            raise DataError(f"`{folder / 'manifest.json'}` is not a token manifest: {error}") from error
        if len(shards) < 2:
            raise DataError(
                f"`{folder}` has {len(shards)} shard, expected at least one to train and one to validate"
            )
        return files

    def split(self, name: str) -> tuple[TokenShard, ...]:
        """Return the shards of `train` or `val`."""
        return self.shards[:-1] if name == "train" else self.shards[-1:]

    def tokens(self, shard: TokenShard) -> NDArray[np.uint16]:
        """Map a shard's ids [tokens] uint16 into memory, size checked.

        Raises:
            DataError: the file is missing or has another size.
        """
        return _map(tokens_path(self.folder, shard.name), np.dtype("<u2"), shard.tokens)

    def offsets(self, shard: TokenShard) -> NDArray[np.uint64]:
        """Map a shard's offsets [documents + 1] uint64 into memory, size checked.

        Raises:
            DataError: the file is missing or has another size.
        """
        return _map(offsets_path(self.folder, shard.name), np.dtype("<u8"), shard.documents + 1)

    def verify(self, shards: Iterable[TokenShard] | None = None) -> None:
        """Compare every byte of the shards (all of them by default) with the manifest.

        Raises:
            DataError: names the first file that is missing or damaged.
        """
        with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
            for problem in pool.map(self._problem, self.shards if shards is None else shards):
                if problem:
                    raise DataError(
                        problem, hint="run `nanochat run tokenize` again: it rebuilds damaged shards"
                    )

    def _problem(self, shard: TokenShard) -> str | None:
        for path, wanted in (
            (tokens_path(self.folder, shard.name), shard.sha256),
            (offsets_path(self.folder, shard.name), shard.offsets_sha256),
        ):
            if not path.exists():
                return f"token file `{path}` does not exist"
            if (found := sha256_file(path)) != wanted:
                return f"token file `{path}` is damaged: its sha256 is {found[:16]}, expected {wanted[:16]}"
        return None


def tokens_folder(dataset: Path, tokenizer_hash: str) -> Path:
    """Return where a dataset's token files for one tokenizer are."""
    return dataset / f"tokens-{tokenizer_hash[:16]}"


def tokens_path(folder: Path, shard: str) -> Path:
    """Return the path of a shard's ids."""
    return folder / f"{shard}.u16"


def offsets_path(folder: Path, shard: str) -> Path:
    """Return the path of a shard's document offsets."""
    return folder / f"{shard}.offsets"


def tokenize_dataset(dataset: Path, tokenizer: Encoder, *, report: Report | None = None) -> Path:
    """Write the token files of every shard that has no valid ones yet; return their folder.

    Raises:
        ConfigError: the vocabulary does not fit in 16 bits.
        DataError: a shard is damaged; names it.
        StorageError: the volume refuses a write.
    """
    if tokenizer.vocab_size > MAX_VOCAB:
        raise ConfigError(
            f"vocabulary of {tokenizer.vocab_size} does not fit in uint16", hint="at most 65,536"
        )
    manifest = load_dataset(dataset)
    folder = tokens_folder(dataset, tokenizer.hash)
    folder.mkdir(parents=True, exist_ok=True)
    kept = _valid_shards(folder, tokenizer.hash, manifest.hash)
    shards: list[TokenShard] = []
    for done, name in enumerate(manifest.shards):
        stem = Path(name).stem
        shard = kept.get(stem)
        if shard is None:
            shard = _tokenize_shard(dataset / name, folder, stem, tokenizer=tokenizer)
        shards.append(shard)
        _write_manifest(folder, tokenizer.hash, manifest.hash, shards)
        if report:
            report(stem, done + 1, len(manifest.shards))
    return folder


def _write_manifest(folder: Path, tokenizer: str, dataset: str, shards: Sequence[TokenShard]) -> None:
    value: dict[str, Any] = {
        "version": FORMAT,
        "tokenizer": tokenizer,
        "dataset": dataset,
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(folder / "manifest.json", value)


def _valid_shards(folder: Path, tokenizer: str, dataset: str) -> dict[str, TokenShard]:
    """Return the finished shards of an earlier run that are still whole, by name."""
    try:
        value = read_json(folder / "manifest.json")
        shards = tuple(TokenShard(**shard) for shard in value["shards"])
        files = TokenFiles(folder, value["tokenizer"], value["dataset"], shards)
    except (DataError, KeyError, TypeError):
        return {}
    if (files.tokenizer, files.dataset) != (tokenizer, dataset):
        return {}
    with ThreadPoolExecutor(4) as pool:
        problems = list(pool.map(files._problem, shards))
    return {shard.name: shard for shard, problem in zip(shards, problems, strict=True) if problem is None}


def _tokenize_shard(source: Path, folder: Path, name: str, *, tokenizer: Encoder) -> TokenShard:
    lengths: list[int] = []
    with atomic_writer(tokens_path(folder, name)) as file:
        sha256 = _write_ids(file, read_texts(source), tokenizer=tokenizer, lengths=lengths)
    offsets = np.zeros(len(lengths) + 1, dtype="<u8")
    np.cumsum(np.asarray(lengths, dtype=np.uint64), out=offsets[1:])
    data = offsets.tobytes()
    with atomic_writer(offsets_path(folder, name)) as file:
        file.write(data)
    return TokenShard(
        name=name,
        tokens=int(offsets[-1]),
        documents=len(lengths),
        sha256=sha256,
        offsets_sha256=hashlib.sha256(data).hexdigest(),
    )


def _write_ids(file: IO[bytes], texts: Iterator[str], *, tokenizer: Encoder, lengths: list[int]) -> str:
    """Write `[bos] + ids` of every text, append the lengths, return the hex sha256."""
    digest = hashlib.sha256()
    while batch := list(islice(texts, BATCH_DOCUMENTS)):
        data, counts = tokenizer.encode_documents(batch)
        lengths += counts
        digest.update(data)
        file.write(data)
    return digest.hexdigest()


def _map(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"token file `{path}` does not exist") from None
    if size != count * dtype.itemsize:  # a mapping of a cut file would die by SIGBUS later
        raise DataError(
            f"token file `{path}` has {size:,} bytes, expected {count * dtype.itemsize:,}",
            hint="run `nanochat run tokenize` again: it rebuilds damaged shards",
        )
    if count == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")

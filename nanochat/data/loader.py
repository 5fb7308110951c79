"""Batches of a step, gathered from token files by memory map.

Every rank walks the one global row sequence and copies only its own rows: row i
of a step belongs to rank i mod W. The state is the packer's position, a small
JSON value that every batch carries. Knows nothing of devices or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nanochat.data.packing import BestFit, Row
from nanochat.data.tokens import TokenFiles, TokenShard
from nanochat.errors import ConfigError, DataError
from nanochat.settings import Topology

Split = Literal["train", "val"]
SPLIT_BELOW = 1024  # contexts shorter than this keep the rest of a long document


@dataclass(frozen=True, slots=True)
class StepBatch:
    """This rank's rows of one optimizer step."""

    inputs: NDArray[np.int64]
    """[rows, T] ids."""
    targets: NDArray[np.int64]
    """[rows, T] ids, -1 where nothing is to be predicted."""
    supervised: int
    """Targets that are not -1, over all ranks: what the step's loss is divided by."""
    position: dict[str, Any]
    """Where the step after this one starts."""


class StepBatches(Protocol):
    """An endless iterator of `StepBatch`; `base_train` and the chat stages have one each."""

    def __next__(self) -> StepBatch: ...
    def __iter__(self) -> Iterator[StepBatch]: ...


def rows_of_rank(rows_per_step: int, topology: Topology) -> int:
    """Return how many rows of a step each rank holds.

    Raises:
        ConfigError: the ranks do not divide the step.
    """
    if rows_per_step % topology.world_size:
        raise ConfigError(
            f"a step of {rows_per_step} rows does not divide among {topology.world_size} ranks",
            hint=f"use a rank count that divides {rows_per_step}",
        )
    return rows_per_step // topology.world_size


class Pieces:
    """What the packer packs: documents, or, for short contexts, parts of at most T text tokens.

    A part begins with a bos of its own, so every row begins with one. At T >= 1,024
    few documents are longer than a row and the rest of one is dropped, as the
    recipe does; at T = 256 that would throw most of an encyclopedia away.
    """

    def __init__(self, files: TokenFiles, shards: tuple[TokenShard, ...], seq_len: int) -> None:
        """Cut the documents of `shards`; see `starts`, `lengths`, `group_sizes`."""
        starts, lengths, sizes = [], [], []
        base = 0
        for shard in shards:
            offsets = files.offsets(shard).astype(np.int64)
            if len(offsets) and (offsets[-1] != shard.tokens or bool((np.diff(offsets) < 1).any())):
                raise DataError(
                    f"token file `{files.folder / shard.name}.offsets` is damaged: offsets do not ascend"
                )
            start, length = _cut(offsets, seq_len)
            starts.append(start + base)
            lengths.append(length)
            sizes.append(len(length))
            base += shard.tokens
        self.starts: NDArray[np.int64] = np.concatenate(starts)
        """[pieces] global index of each piece's first token after its bos."""
        self.lengths: NDArray[np.int64] = np.concatenate(lengths)
        """[pieces] tokens of each piece, its bos included."""
        self.group_sizes = sizes
        """Pieces of each shard."""


def _cut(offsets: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    text = np.diff(offsets) - 1
    if seq_len >= SPLIT_BELOW:
        return offsets[:-1] + 1, text + 1
    parts = np.maximum(1, -(-text // seq_len))
    document = np.repeat(np.arange(len(text)), parts)
    first = np.concatenate([[0], np.cumsum(parts)[:-1]]).astype(np.int64)
    skip = (np.arange(len(document)) - first[document]) * seq_len
    return offsets[document] + 1 + skip, np.minimum(text[document] - skip, seq_len) + 1


class TokenRows:
    """Copies packed rows out of the mapped shards."""

    def __init__(self, files: TokenFiles, split: Split, seq_len: int) -> None:
        """Map the split's shards; nothing is read yet."""
        shards = files.split(split)
        self.pieces = Pieces(files, shards, seq_len)
        self._tokens = [files.tokens(shard) for shard in shards]
        self._bases = np.concatenate([[0], np.cumsum([shard.tokens for shard in shards])]).astype(np.int64)
        self._bos = next((int(tokens[0]) for tokens in self._tokens if len(tokens)), 0)

    def fill(self, row: Row, out: NDArray[np.int64]) -> None:
        """Write a full row into `out` [T + 1] int64."""
        at = 0
        for piece, length in row:
            start = int(self.pieces.starts[piece])
            shard = int(np.searchsorted(self._bases, start - 1, side="right")) - 1
            local = start - int(self._bases[shard])
            out[at] = self._bos
            out[at + 1 : at + length] = self._tokens[shard][local : local + length - 1]
            at += length


class Batches:
    """Endless steps of the global row sequence of a split, this rank's rows only."""

    def __init__(
        self,
        tokens_dir: Path,
        *,
        split: Split,
        seq_len: int,
        rows_per_step: int,
        topology: Topology | None = None,
        seed: int = 0,
        position: dict[str, Any] | None = None,
    ) -> None:
        """Start at row 0 or at a saved `position`, which any rank count may continue.

        Raises:
            ConfigError: the ranks do not divide `rows_per_step`.
            DataError: a token file is missing or damaged, or the position is not of this data.
        """
        topology = topology or Topology()
        self._rows = rows_of_rank(rows_per_step, topology)
        self._topology = topology
        self._rows_per_step = rows_per_step
        self._seq_len = seq_len
        self.files = TokenFiles.load(tokens_dir)
        self._source = TokenRows(self.files, split, seq_len)
        self.packer = BestFit(
            self._source.pieces.lengths,
            seq_len + 1,
            seed=seed,
            crop=True,
            group_sizes=self._source.pieces.group_sizes,
            position=position,
        )

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        rows = np.empty((self._rows, self._seq_len + 1), dtype=np.int64)
        for index in range(self._rows_per_step):
            row = self.packer.next_row()
            if index % self._topology.world_size == self._topology.rank:
                self._source.fill(row, rows[index // self._topology.world_size])
        return StepBatch(
            inputs=np.ascontiguousarray(rows[:, :-1]),
            targets=np.ascontiguousarray(rows[:, 1:]),
            supervised=self._rows_per_step * self._seq_len,
            position=self.packer.position,
        )


def expected_epochs(tokens_dir: Path, *, seq_len: int, tokens: int, seed: int = 0) -> float:
    """Return how often training on `tokens` tokens reads the training split.

    Packs up to 2,000 rows to see how many tokens of documents a row uses up.

    Raises:
        DataError: a token file is missing or damaged.
    """
    files = TokenFiles.load(tokens_dir)
    pieces = Pieces(files, files.split("train"), seq_len)
    packer = BestFit(pieces.lengths, seq_len + 1, seed=seed, crop=True, group_sizes=pieces.group_sizes)
    used = rows = 0
    while rows < 2000 and packer.position["epoch"] == 0:
        used += sum(int(pieces.lengths[piece]) for piece, _ in packer.next_row())
        rows += 1
    return tokens / seq_len * (used / rows) / float(pieces.lengths.sum())


class Prefetch:
    """Makes the next batch on a thread while the current one trains.

    Owned by one consumer; the wrapped iterator is touched by the worker thread
    alone. Close it (or leave the `with` block) to stop the thread.
    """

    def __init__(self, batches: StepBatches) -> None:
        """Start on the first batch at once."""
        self._batches = batches
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._pending: Future[StepBatch] = self._pool.submit(next, batches)

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        batch = self._pending.result()
        self._pending = self._pool.submit(next, self._batches)
        return batch

    def close(self) -> None:
        """Stop after the batch in progress."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

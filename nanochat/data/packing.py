"""The one global sequence of rows: best-fit packing on lengths alone.

Row n is a pure function of (lengths, capacity, seed): it depends neither on how
many ranks read it nor on where a run was interrupted. Knows nothing of tokens:
it deals in indices of pieces (documents, or parts of long ones) and lengths.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import DataError

BUFFER_PIECES = 1000  # the choice a row has; more buys under 1% of utilisation
SHUFFLE_GROUPS = 8  # shards that are mixed: random reads stay within about 1 GB of page cache
_SHIFT = 40
_MASK = (1 << _SHIFT) - 1
_CHUNK = 4096
_MAX_LENGTH = 1 << 22  # so that length << 40 stays an int64

Row = list[tuple[int, int]]
"""(piece, length taken) in order; the lengths never exceed the capacity in sum."""


def _mix(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Hash integers (splitmix64): written out because numpy may change its generators' streams."""
    x = values + np.uint64(((key + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled(count: int, key: int) -> NDArray[np.int64]:
    """Return a permutation [count] int64 that depends on `count` and `key` alone."""
    hashes = _mix(_mix(np.arange(count, dtype=np.uint64), key), key)
    return np.argsort(hashes, kind="stable").astype(np.int64)


def epoch_order(group_sizes: Sequence[int], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order [pieces] int64 of one epoch: groups shuffled, then the pieces of eight at a time."""
    key = seed * 1_000_003 + epoch
    starts = np.concatenate([[0], np.cumsum(np.asarray(group_sizes, dtype=np.int64))])
    groups = shuffled(len(group_sizes), key)
    parts = []
    for first in range(0, len(groups), SHUFFLE_GROUPS):
        chosen = groups[first : first + SHUFFLE_GROUPS]
        window = np.concatenate([np.arange(starts[g], starts[g + 1]) for g in chosen])
        parts.append(window[shuffled(len(window), key * 1_000_003 + first + 1)])
    return np.concatenate(parts)


class BestFit:
    """Rows of at most `capacity` tokens, in the one global order.

    A row takes the longest buffered piece that fits, again and again. When none
    fits, `crop` cuts the shortest to fill the row exactly (pretraining: every
    row is full), otherwise the row ends there and the caller pads it (chat: no
    conversation is cut). An epoch's buffer runs empty before the next epoch
    begins, so every piece is used once in each.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer[Any]],
        capacity: int,
        *,
        seed: int,
        crop: bool,
        group_sizes: Sequence[int] | None = None,
        buffer_pieces: int = BUFFER_PIECES,
        position: dict[str, Any] | None = None,
    ) -> None:
        """Start at row 0 or at a saved `position`.

        Raises:
            DataError: there are no pieces, or the position is not one of these pieces.
        """
        if len(lengths) == 0:
            raise DataError("there is nothing to pack: the split has no documents")
        if not crop and int(lengths.max()) > capacity:
            raise ValueError("without cropping every piece must fit in a row")
        self._lengths = np.minimum(lengths, _MAX_LENGTH)  # longer than a row is all that matters
        self._capacity = capacity
        self._seed = seed
        self._crop = crop
        self._groups = [len(lengths)] if group_sizes is None else list(group_sizes)
        self._buffer_pieces = buffer_pieces
        self._row, self._epoch, self._next = 0, 0, 0
        self._keys: list[int] = []  # sorted length << 40 | piece
        if position is not None:
            self._restore(position)
        self._order = epoch_order(self._groups, seed=seed, epoch=self._epoch)
        self._chunk: list[int] = []
        self._load_chunk()

    @property
    def position(self) -> dict[str, Any]:
        """The state after the last row, a small JSON value: where any rank count continues."""
        return {
            "row": self._row,
            "epoch": self._epoch,
            "next": self._next,
            "buffer": [key & _MASK for key in self._keys],
        }

    def next_row(self) -> Row:
        """Return the next row and advance."""
        row: Row = []
        room = self._capacity
        keys = self._keys
        while room:
            self._refill()
            at = bisect_left(keys, (room + 1) << _SHIFT) - 1
            if at >= 0:
                key = keys.pop(at)
                length = key >> _SHIFT
                row.append((key & _MASK, length))
                room -= length
            elif self._crop:
                row.append((keys.pop(0) & _MASK, room))
                room = 0
            else:
                break
        self._row += 1
        return row

    def _refill(self) -> None:
        keys = self._keys
        while len(keys) < self._buffer_pieces:
            if self._next == len(self._order):
                if keys:
                    return
                self._epoch += 1
                self._next = 0
                self._order = epoch_order(self._groups, seed=self._seed, epoch=self._epoch)
                self._load_chunk()
            elif self._next - self._chunk_start == len(self._chunk):
                self._load_chunk()
            insort(keys, self._chunk[self._next - self._chunk_start])
            self._next += 1

    def _load_chunk(self) -> None:
        """Make the next few thousand keys as Python integers at once: numpy scalars are slow one by one."""
        self._chunk_start = self._next
        pieces = self._order[self._next : self._next + _CHUNK]
        keys = (self._lengths[pieces].astype(np.int64) << _SHIFT) | pieces
        self._chunk = keys.tolist()

    def _restore(self, position: dict[str, Any]) -> None:
        try:
            self._row, self._epoch = int(position["row"]), int(position["epoch"])
            self._next = int(position["next"])
            buffer = [int(piece) for piece in position["buffer"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"data position {position!r:.200} is not one: {error}") from error
        count = len(self._lengths)
        if not 0 <= self._next <= count or any(not 0 <= piece < count for piece in buffer):
            raise DataError(f"data position at row {self._row} does not belong to these {count:,} pieces")
        self._keys = sorted((int(self._lengths[piece]) << _SHIFT) | piece for piece in buffer)

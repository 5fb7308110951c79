"""Rows of conversations: best-fit with padding, every batch with something to learn.

A conversation that fits in a row is never cut; a longer one is truncated to the
row, and left out if nothing supervised remains, so a row without a target cannot
exist at any T. Knows nothing of how conversations are written or rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.data.loader import StepBatch, rows_of_rank
from nanochat.data.packing import BestFit, Row
from nanochat.errors import DataError
from nanochat.settings import Topology

IGNORE = -1


class Rendered:
    """Rendered conversations that fit in rows of T + 1 tokens, in flat arrays.

    Lengths are those after truncation. With `masked` only tokens whose mask is 1
    are targets (SFT), otherwise all are (midtraining).
    """

    def __init__(
        self, items: Iterable[tuple[Sequence[int], Sequence[int]]], *, seq_len: int, masked: bool
    ) -> None:
        """Take (ids, mask) pairs, each beginning with its bos.

        Raises:
            DataError: not one conversation has a supervised token within T + 1.
        """
        ids: list[NDArray[np.int32]] = []
        masks: list[NDArray[np.bool_]] = []
        lengths: list[int] = []
        self.dropped = 0
        self.truncated = 0
        for item_ids, item_mask in items:
            length = min(len(item_ids), seq_len + 1)
            mask = (
                np.asarray(item_mask[:length], dtype=np.bool_) if masked else np.ones(length, dtype=np.bool_)
            )
            if not mask[1:].any():  # nothing predicts the first token
                self.dropped += 1
                continue
            self.truncated += len(item_ids) > length
            ids.append(np.asarray(item_ids[:length], dtype=np.int32))
            masks.append(mask)
            lengths.append(length)
        if not lengths:
            raise DataError(
                f"none of {self.dropped} conversations has a supervised token within {seq_len + 1} tokens",
                hint="add shorter conversations or train with a longer context",
            )
        self.ids: NDArray[np.int32] = np.concatenate(ids)
        self.mask: NDArray[np.bool_] = np.concatenate(masks)
        self.lengths: NDArray[np.int64] = np.asarray(lengths, dtype=np.int64)
        self.starts: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        self.masked = masked
        counts = np.add.reduceat(self.mask.astype(np.int64), self.starts)
        self._supervised = counts - self.mask[self.starts]

    def supervised(self, row: Row) -> int:
        """Return how many targets of a row are not padding or masked."""
        if self.masked:
            return sum(int(self._supervised[index]) for index, _ in row)
        return sum(length for _, length in row) - 1  # also predicts the bos of the next conversation

    def fill(self, row: Row, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Write a row into `inputs` and `targets` [T], padded with its first bos and with -1."""
        width = len(inputs) + 1
        ids = np.full(width, self.ids[self.starts[row[0][0]]], dtype=np.int64)
        wanted = np.full(width, IGNORE, dtype=np.int64)
        at = 0
        for index, length in row:
            start = int(self.starts[index])
            ids[at : at + length] = self.ids[start : start + length]
            mask = self.mask[start : start + length].copy()
            mask[0] = not self.masked
            wanted[at : at + length] = np.where(mask, ids[at : at + length], IGNORE)
            at += length
        inputs[:] = ids[:-1]
        targets[:] = wanted[1:]


class ChatBatches:
    """Endless steps of packed conversations, this rank's rows only."""

    def __init__(
        self,
        rendered: Rendered,
        *,
        seq_len: int,
        rows_per_step: int,
        topology: Topology | None = None,
        seed: int = 0,
        position: dict[str, Any] | None = None,
    ) -> None:
        """Start at row 0 or at a saved `position`, which any rank count may continue.

        Raises:
            ConfigError: the ranks do not divide `rows_per_step`.
            DataError: the position is not of these conversations.
        """
        self._topology = topology or Topology()
        self._rows = rows_of_rank(rows_per_step, self._topology)
        self._rows_per_step = rows_per_step
        self._seq_len = seq_len
        self._rendered = rendered
        self.packer = BestFit(rendered.lengths, seq_len + 1, seed=seed, crop=False, position=position)

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        inputs = np.empty((self._rows, self._seq_len), dtype=np.int64)
        targets = np.empty((self._rows, self._seq_len), dtype=np.int64)
        supervised = 0
        for index in range(self._rows_per_step):
            row = self.packer.next_row()
            supervised += self._rendered.supervised(row)
            if index % self._topology.world_size == self._topology.rank:
                local = index // self._topology.world_size
                self._rendered.fill(row, inputs[local], targets[local])
        return StepBatch(inputs=inputs, targets=targets, supervised=supervised, position=self.packer.position)

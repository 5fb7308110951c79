"""Bits per byte over a fixed set of rows, the figure that compares runs and tokenizers.

Knows nothing of where the rows come from. Whole documents, source by source, are
`nanochat.evals`' part; this is the curve during training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.data.loader import StepBatch
from nanochat.train.runtime import LossFn, Runtime


@dataclass(frozen=True, slots=True)
class Score:
    """What a pass over the validation rows gave."""

    bits_per_byte: float
    loss: float
    """Mean nats per supervised target."""
    tokens: int


def byte_lengths(token_bytes: list[bytes]) -> NDArray[np.int64]:
    """Return [V] int64: raw UTF-8 bytes that each id stands for, 0 for specials."""
    return np.array([len(token) for token in token_bytes], dtype=np.int64)


class Validation:
    """A fixed batch of rows, scored in parts of `rows` so that one compiled graph fits all."""

    def __init__(self, batch: StepBatch, bytes_V: NDArray[np.int64], *, rows: int) -> None:
        """`batch` holds this rank's rows; a short last part is padded with rows without targets."""
        missing = -len(batch.inputs) % rows
        self._inputs = np.pad(batch.inputs, ((0, missing), (0, 0)))
        self._targets = np.pad(batch.targets, ((0, missing), (0, 0)), constant_values=-1)
        self._bytes_V = bytes_V
        self._rows = rows

    def score(self, loss_fn: LossFn, runtime: Runtime) -> Score:
        """Score all rows of all ranks; every rank must call it."""
        bytes_V = torch.from_numpy(self._bytes_V).to(runtime.device.torch)
        text_nats = nats = total_bytes = count = 0.0
        for first in range(0, len(self._inputs), self._rows):
            ids_BT = runtime.to_device(self._inputs[first : first + self._rows])
            targets_BT = runtime.to_device(self._targets[first : first + self._rows])
            # With gradients on, as in training: the compiled graph is the same one.
            loss_BT = loss_fn(ids_BT, targets_BT).detach()
            part = _sums(loss_BT, targets_BT, bytes_V)
            text_nats, nats, total_bytes, count = (
                a + b for a, b in zip((text_nats, nats, total_bytes, count), part, strict=True)
            )
        text_nats, nats, total_bytes, count = runtime.sum(text_nats, nats, total_bytes, count)
        return Score(
            bits_per_byte=text_nats / (math.log(2) * total_bytes) if total_bytes else math.inf,
            loss=nats / max(count, 1.0),
            tokens=int(count),
        )


def _sums(loss_BT: Tensor, targets_BT: Tensor, bytes_V: Tensor) -> list[float]:
    """Return nats over targets that stand for text, nats over all, bytes, targets."""
    counted_BT = targets_BT >= 0
    bytes_BT = torch.where(counted_BT, bytes_V[targets_BT.clamp(min=0)], 0)
    text_BT = torch.where(bytes_BT > 0, loss_BT, 0.0)
    sums = torch.stack([text_BT.sum(), loss_BT.sum(), bytes_BT.sum().float(), counted_BT.sum().float()])
    return [float(value) for value in sums.tolist()]

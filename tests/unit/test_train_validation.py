"""Bits per byte count the bytes of text alone, and nothing of padding or specials."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes_train import cpu_runtime

from nanochat.data.loader import StepBatch
from nanochat.train.validation import Validation, byte_lengths

BYTES_V = byte_lengths([b"", b"a", b"bc", "č".encode(), b"\xff\xfe\xfd"])


def batch(targets):
    targets = np.array(targets, dtype=np.int64)
    return StepBatch(inputs=np.abs(targets), targets=targets, supervised=0, position={})


def one_nat(ids_BT, targets_BT):
    return torch.where(targets_BT >= 0, 1.0, 0.0)


def test_byte_lengths_are_those_of_raw_bytes():
    assert BYTES_V.tolist() == [0, 1, 2, 2, 3]  # a decoded \xff would count as three bytes each


def test_specials_and_ignored_targets_count_neither_nats_nor_bytes():
    score = Validation(batch([[1, 2, 0, -1], [3, 4, -1, 0]]), BYTES_V, rows=2).score(one_nat, cpu_runtime())
    assert score.bits_per_byte == pytest.approx(4 / (math.log(2) * 8))
    assert score.loss == 1.0
    assert score.tokens == 6


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16])
def test_the_score_does_not_depend_on_how_many_rows_go_at_once(rows):
    rng = np.random.default_rng(0)
    data = batch(rng.integers(-1, 5, (7, 11)))
    seen = []

    def loss(ids_BT, targets_BT):
        seen.append(len(ids_BT))
        return torch.where(targets_BT >= 0, ids_BT.float() / 10, 0.0)

    score = Validation(data, BYTES_V, rows=rows).score(loss, cpu_runtime())
    assert set(seen) == {rows}  # one shape: one compiled graph
    wanted = (
        np.where(data.targets > 0, data.inputs / 10, 0).sum() / BYTES_V[np.maximum(data.targets, 0)].sum()
    )
    assert score.bits_per_byte == pytest.approx(wanted / math.log(2))


def test_no_text_at_all_is_infinite_not_a_crash():
    assert (
        Validation(batch([[0, -1]]), BYTES_V, rows=1).score(one_nat, cpu_runtime()).bits_per_byte == math.inf
    )

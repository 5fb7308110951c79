"""The one global row sequence: full rows, nothing lost, the same at any interruption."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from nanochat.data.packing import BestFit, epoch_order, shuffled
from nanochat.errors import DataError


def lengths_of(count: int, *, longest: int, seed: int = 0) -> np.ndarray:
    rng = random.Random(seed)
    return np.array([rng.randint(1, longest) for _ in range(count)], dtype=np.int64)


def rows_of(packer: BestFit, count: int) -> list[list[tuple[int, int]]]:
    return [packer.next_row() for _ in range(count)]


CASES = [
    ("short documents", lengths_of(3000, longest=60)),
    ("mixed documents", lengths_of(3000, longest=400)),
    ("one document", np.array([5])),
    ("one document longer than every row", np.array([100_000])),
    ("documents of one token", np.ones(300, dtype=np.int64)),
    ("all longer than a row", np.full(50, 1000)),
]


@pytest.mark.parametrize(("name", "lengths"), CASES, ids=[name for name, _ in CASES])
def test_every_pretraining_row_is_full(name, lengths):
    packer = BestFit(lengths, 129, seed=1, crop=True)
    for row in rows_of(packer, 400):
        assert sum(length for _, length in row) == 129
        assert all(0 < length <= lengths[piece] for piece, length in row)


@pytest.mark.parametrize(("name", "lengths"), CASES, ids=[name for name, _ in CASES])
def test_every_document_is_used_exactly_once_in_each_epoch(name, lengths):
    packer = BestFit(lengths, 129, seed=1, crop=True)
    used: list[int] = []
    while len(used) < 3 * len(lengths):
        used += [piece for piece, _ in packer.next_row()]
    for epoch in range(3):
        once = used[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(once) == list(range(len(lengths)))


@pytest.mark.parametrize("stop", [0, 1, 7, 150, 333])
@pytest.mark.parametrize("crop", [True, False])
def test_a_saved_position_continues_the_same_rows(stop, crop):
    lengths = lengths_of(700, longest=100)
    whole = rows_of(BestFit(lengths, 129, seed=3, crop=crop), 500)
    first = BestFit(lengths, 129, seed=3, crop=crop)
    rows_of(first, stop)
    saved = json.loads(json.dumps(first.position))
    assert saved["row"] == stop
    resumed = BestFit(lengths, 129, seed=3, crop=crop, position=saved)
    assert rows_of(resumed, 500 - stop) == whole[stop:]


def test_the_largest_document_that_fits_is_taken_and_the_shortest_is_cut():
    packer = BestFit(np.array([7, 5, 4, 30, 20]), 10, seed=0, crop=True)
    first = packer.next_row()
    assert first == [(0, 7), (2, 3)]  # 7 fits, then none of 4, 5, 20, 30 in 3: the 4 is cut
    assert packer.next_row() == [(1, 5), (4, 5)]
    assert packer.next_row()[0] == (3, 10)


def test_without_cropping_a_row_ends_where_nothing_fits():
    packer = BestFit(np.array([7, 5, 4]), 10, seed=0, crop=False)
    assert packer.next_row() == [(0, 7)]
    assert packer.next_row()[:2] == [(1, 5), (2, 4)]


def test_without_cropping_no_piece_is_ever_cut():
    lengths = lengths_of(2000, longest=129)
    packer = BestFit(lengths, 129, seed=5, crop=False)
    rows = rows_of(packer, 900)
    assert all(length == lengths[piece] for row in rows for piece, length in row)
    assert all(row for row in rows)
    filled = sum(length for row in rows for _, length in row) / (900 * 129)
    assert filled > 0.97


def test_the_order_depends_on_seed_and_epoch_and_is_pinned():
    assert shuffled(8, 42).tolist() == [3, 5, 7, 4, 6, 2, 1, 0]
    assert epoch_order([3, 2, 4], seed=42, epoch=0).tolist() == [2, 0, 6, 4, 1, 3, 5, 8, 7]
    assert not np.array_equal(shuffled(1000, 1), shuffled(1000, 2))
    assert not np.array_equal(shuffled(1000, 1), shuffled(1000, -1))  # RNG seed 1 == -1 has leaked before
    first, second = (epoch_order([500, 500], seed=1, epoch=epoch) for epoch in (0, 1))
    assert sorted(first.tolist()) == list(range(1000))
    assert not np.array_equal(first, second)


def test_shuffling_stays_within_eight_shards():
    sizes = [10] * 32
    order = epoch_order(sizes, seed=4, epoch=0)
    assert sorted(order.tolist()) == list(range(320))
    for window in range(4):
        shards = {int(piece) // 10 for piece in order[window * 80 : (window + 1) * 80]}
        assert len(shards) == 8


def test_a_position_of_other_data_is_refused():
    packer = BestFit(lengths_of(700, longest=100), 129, seed=3, crop=True)
    packer.next_row()
    with pytest.raises(DataError, match="does not belong to these 20 pieces"):
        BestFit(lengths_of(20, longest=100), 129, seed=3, crop=True, position=packer.position)
    with pytest.raises(DataError, match="is not one"):
        BestFit(lengths_of(20, longest=100), 129, seed=3, crop=True, position={"row": 3})


def test_nothing_to_pack_is_an_error():
    with pytest.raises(DataError, match="nothing to pack"):
        BestFit(np.zeros(0, dtype=np.int64), 129, seed=3, crop=True)

"""Steps of rows: the same global order at any rank count, device batch or interruption."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes_data import ByteEncoder, make_dataset, make_texts

from nanochat.data.loader import Batches, Prefetch, expected_epochs
from nanochat.data.tokens import tokenize_dataset
from nanochat.errors import ConfigError, DataError
from nanochat.settings import Topology

T = 64


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = [make_texts(60, seed=seed) for seed in (1, 2, 3)]
    return tokenize_dataset(make_dataset(folder / "words", texts), ByteEncoder())


def batches(tokens, *, rank=0, world=1, rows=8, position=None, seq_len=T, split="train"):
    topology = Topology(rank=rank, world_size=world)
    return Batches(
        tokens, split=split, seq_len=seq_len, rows_per_step=rows, topology=topology, seed=7, position=position
    )


def global_rows(tokens, *, world, steps, rows=8, position=None):
    """The step rows in global order as W ranks see them, and the position after."""
    ranks = [batches(tokens, rank=rank, world=world, rows=rows, position=position) for rank in range(world)]
    out = []
    for _ in range(steps):
        parts = [next(rank) for rank in ranks]
        assert all(part.position == parts[0].position for part in parts)
        out += [parts[i % world].inputs[i // world].tolist() for i in range(rows)]
    return out, parts[0].position


def test_rows_begin_with_bos_and_targets_are_the_next_tokens(tokens):
    batch = next(batches(tokens))
    assert batch.inputs.shape == batch.targets.shape == (8, T)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    assert batch.inputs.flags.c_contiguous
    assert batch.targets.flags.c_contiguous
    assert (batch.inputs[:, 0] == ByteEncoder.bos).all()
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
    assert batch.supervised == 8 * T


@pytest.mark.parametrize("world", [2, 4, 8])
def test_any_rank_count_reads_the_same_global_rows(tokens, world):
    assert global_rows(tokens, world=world, steps=5) == global_rows(tokens, world=1, steps=5)


@pytest.mark.parametrize("change", [(1, 4), (4, 1), (2, 8)])
def test_resuming_with_another_rank_count_repeats_and_skips_nothing(tokens, change):
    before, after = change
    whole, _ = global_rows(tokens, world=1, steps=9)
    first, position = global_rows(tokens, world=before, steps=4)
    rest, _ = global_rows(tokens, world=after, steps=5, position=json.loads(json.dumps(position)))
    assert first + rest == whole


def test_the_rows_of_a_step_do_not_depend_on_the_rows_per_step(tokens):
    assert (
        global_rows(tokens, world=1, steps=4, rows=8)[0] == global_rows(tokens, world=2, steps=2, rows=16)[0]
    )


def test_every_text_token_is_read_exactly_once_an_epoch_when_documents_are_cut_into_parts(tokens):
    source = batches(tokens)._source
    starts, lengths = source.pieces.starts, source.pieces.lengths
    covered = np.zeros(sum(shard.tokens for shard in batches(tokens).files.split("train")), dtype=int)
    for start, length in zip(starts, lengths, strict=True):
        covered[start : start + length - 1] += 1
    flat = np.concatenate([batches(tokens).files.tokens(s) for s in batches(tokens).files.split("train")])
    assert (covered == (flat != ByteEncoder.bos)).all()
    assert lengths.max() <= T + 1


def test_long_contexts_take_whole_documents(tokens):
    pieces = batches(tokens, seq_len=1024)._source.pieces
    assert len(pieces.lengths) == 120


def test_rows_hold_the_text_of_the_documents(tmp_path):
    folder = make_dataset(tmp_path / "d", [["abc", "defgh"], ["x"]])
    batch = next(batches(tokenize_dataset(folder, ByteEncoder()), rows=1, seq_len=9))
    ids = [*batch.inputs[0].tolist(), int(batch.targets[0, -1])]
    assert ids == [256, *b"defgh", 256, *b"abc"]


def test_the_validation_split_is_the_last_shard(tmp_path):
    folder = make_dataset(tmp_path / "d", [["aaaa"], ["bbbb"], ["cccc"]])
    out = tokenize_dataset(folder, ByteEncoder())
    assert set(next(batches(out, split="val", seq_len=9)).inputs.flatten()) == {256, ord("c")}
    assert set(next(batches(out, split="train", seq_len=9)).inputs.flatten()) == {256, ord("a"), ord("b")}


def test_ranks_that_do_not_divide_a_step_are_refused(tokens):
    with pytest.raises(ConfigError, match="8 rows does not divide among 3 ranks"):
        batches(tokens, world=3)


def test_more_ranks_than_documents_still_get_rows(tmp_path):
    folder = make_dataset(tmp_path / "d", [["one document"], ["two"]])
    out = tokenize_dataset(folder, ByteEncoder())
    rows, _ = global_rows(out, world=8, steps=2)
    assert len(rows) == 16


def test_prefetching_changes_nothing(tokens):
    plain = batches(tokens)
    with Prefetch(batches(tokens)) as ahead:
        for _ in range(5):
            wanted, got = next(plain), next(ahead)
            assert (wanted.inputs == got.inputs).all()
            assert wanted.position == got.position


def test_offsets_that_do_not_ascend_are_named(tmp_path):
    folder = make_dataset(tmp_path / "d", [["abc", "defgh"], ["x"]])
    out = tokenize_dataset(folder, ByteEncoder())
    offsets = np.array([0, 12, 10], dtype="<u8")
    (out / "shard_00000.offsets").write_bytes(offsets.tobytes())
    with pytest.raises(DataError, match="offsets do not ascend"):
        batches(out)


def test_epochs_count_what_rows_use_up(tokens):
    pieces = batches(tokens)._source.pieces
    once = int(pieces.lengths.sum())
    assert 0.99 < expected_epochs(tokens, seq_len=T, tokens=once) < 1.6
    assert expected_epochs(tokens, seq_len=T, tokens=3 * once) > 2.9

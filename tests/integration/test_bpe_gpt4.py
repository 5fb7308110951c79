"""GPT-4's real ranks in our BPE: ids equal to tiktoken's, on many languages, code and any text."""

from __future__ import annotations

import unicodedata
import zipfile
from pathlib import Path

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nanochat_rustbpe import Tokenizer

from nanochat.data.sources import Wheel
from nanochat.data.wheels import fetch_wheels
from nanochat.settings import home

WHEEL = Wheel(
    package="llama-index-core",
    version="0.14.25",
    sha256="caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
    licence="MIT",
    attribution="LlamaIndex; the ranks are OpenAI's",
)
RANKS = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # tiktoken's own name of the file: the sha1 of its address
LENGTHS = {"cl100k_base": 100_256}


@pytest.fixture(scope="module")
def wheel():
    (path,) = fetch_wheels([WHEEL], home().cache / "wheels", report=lambda *_: None)
    return path


@pytest.fixture(scope="module")
def theirs(wheel, tmp_path_factory):
    """Return tiktoken's own cl100k_base, with its own pattern; the wheel takes the place of its download."""
    folder = tmp_path_factory.mktemp("tiktoken")
    with zipfile.ZipFile(wheel) as archive:
        (folder / RANKS).write_bytes(archive.read(f"llama_index/core/_static/tiktoken_cache/{RANKS}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return tiktoken.get_encoding("cl100k_base")


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """Return the same ranks and pattern, through our file."""
    path = tmp_path_factory.mktemp("ours") / "cl100k.json"
    Tokenizer.from_ranks(list(theirs._mergeable_ranks.items()), pattern=theirs._pat_str).save(path)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def texts(wheel):
    """Return the wheel's texts: Python, JSON and stop words in 30 languages."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            stop_words = "stopwords/" in name and not Path(name).suffix
            if stop_words or name.endswith((".py", ".md", ".json", ".tab")):
                found.append(archive.read(name).decode("utf-8", errors="replace"))
    return found


def test_the_ranks_are_all_there(ours, theirs):
    assert ours.vocab_size == LENGTHS["cl100k_base"]
    assert dict(ours.mergeable_ranks()) == theirs._mergeable_ranks


def test_ids_of_many_languages_and_code_equal_tiktokens(ours, theirs, texts):
    assert sum(map(len, texts)) > 3_000_000
    ids = ours.encode_batch(texts)
    assert ids == theirs.encode_ordinary_batch(texts, num_threads=1)
    assert [ours.decode_bytes(row).decode() for row in ids] == texts


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(
        st.one_of(
            st.sampled_from("aé1²  \t\r\n'sSlLvVeErRſ!.\u2003\u00a0你🙂"),
            st.characters().filter(lambda c: unicodedata.category(c) not in ("Cn", "Cs")),
        )
    )
)
def test_ids_of_any_text_equal_tiktokens(ours, theirs, text):
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("character", ["a", "A", " ", "!", "0", "é", "\n", "你", "🙂"])
def test_long_runs_of_one_character_equal_tiktokens(ours, theirs, character):
    text = character * 20_000 + "x"
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


def test_a_million_equal_characters_come_back(ours):
    text = "a" * 1_000_000
    assert ours.decode_bytes(ours.encode_ordinary(text)) == text.encode()

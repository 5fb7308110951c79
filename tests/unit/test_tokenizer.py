"""The tokenizer: specials after merges, raw byte lengths, a file that is verified when read."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import files
from nanochat.errors import ConfigError, DataError, StorageError
from nanochat.tokenizer import SPECIALS, Tokenizer

TEXTS = ["the cat sat on the mat. " * 9, "naïve café 你好 🙂", "a quick brown fox jumps"]
TOKENIZER = Tokenizer.train(TEXTS, 300)


def test_the_vocabulary_size_counts_bytes_merges_and_specials():
    assert TOKENIZER.vocab_size == 300
    assert TOKENIZER.specials == {name: 291 + i for i, name in enumerate(SPECIALS)}
    assert TOKENIZER.bos == TOKENIZER.special("bos") == 291
    assert TOKENIZER.special("output_end") == 299
    assert SPECIALS[:3] == ("bos", "user_start", "user_end")


def test_too_few_texts_give_a_smaller_vocabulary_without_gaps():
    tokenizer = Tokenizer.train(["ab"], 5_000)
    assert tokenizer.vocab_size == 256 + 1 + 9
    assert tokenizer.bos == 257


@pytest.mark.parametrize("vocab_size", [264, 256, 0, -5])
def test_a_vocabulary_without_room_for_bytes_and_specials_names_value_and_minimum(vocab_size):
    with pytest.raises(ConfigError, match=rf"vocab_size {vocab_size} is too small: the minimum is 265"):
        Tokenizer.train([], vocab_size)
    assert Tokenizer.train(TEXTS, 265).vocab_size == 265


def test_an_unknown_special_gets_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        TOKENIZER.special("user_stop")
    assert "user_st" in caught.value.hint


@settings(deadline=None)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(SPECIALS).map("<|{}|>".format)
    )
)
def test_any_text_comes_back_and_never_becomes_a_special(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(i < TOKENIZER.bos for i in ids)
    assert TOKENIZER.encode_batch([text, "", text]) == [ids, [], ids]


@pytest.mark.parametrize(
    ("text", "expected"), [("a\ud800b", "a\ufffdb"), ("\ud83d\ude42", "🙂"), ("\udc00\ud800", "\ufffd\ufffd")]
)
def test_surrogates_are_joined_or_replaced(text, expected):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == expected
    assert TOKENIZER.encode_batch(["x", text]) == TOKENIZER.encode_batch(["x", expected])
    assert TOKENIZER.encode_documents([text]) == TOKENIZER.encode_documents([expected])


def test_half_a_character_decodes_to_a_replacement_and_its_bytes_are_kept():
    ids = [0xC3]  # the first byte of é
    assert TOKENIZER.decode_bytes(ids) == b"\xc3"
    assert TOKENIZER.decode(ids) == "\ufffd"


def test_specials_decode_to_their_names_and_unknown_ids_are_refused():
    assert TOKENIZER.decode([TOKENIZER.bos, *TOKENIZER.encode("hi")]) == "<|bos|>hi"
    for unknown in (300, -1):
        with pytest.raises(DataError, match=f"{unknown} is not in the vocabulary of 300"):
            TOKENIZER.decode([unknown])


def test_byte_lengths_are_those_of_raw_tokens_and_sum_to_the_text():
    lengths = [len(token) for token in TOKENIZER.token_bytes()]
    assert lengths[:256] == [1] * 256
    assert lengths[291:] == [0] * 9
    for text in TEXTS:
        assert sum(lengths[i] for i in TOKENIZER.encode(text)) == len(text.encode())


def test_documents_are_packed_with_bos_first():
    data, counts = TOKENIZER.encode_documents(TEXTS)
    lists = [[TOKENIZER.bos, *ids] for ids in TOKENIZER.encode_batch(TEXTS)]
    assert data == b"".join(i.to_bytes(2, "little") for ids in lists for i in ids)
    assert counts == [len(ids) for ids in lists]


def test_the_hash_depends_on_tokens_alone(tmp_path):
    same = Tokenizer.train(reversed(TEXTS), 300)
    assert same.hash == TOKENIZER.hash
    assert len(TOKENIZER.hash) == 64
    assert Tokenizer.train(TEXTS, 299).hash != TOKENIZER.hash


def test_loading_gives_what_was_saved(tmp_path):
    path = tmp_path / "deep" / "tokenizer.json"
    TOKENIZER.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.hash == TOKENIZER.hash
    assert loaded.specials == TOKENIZER.specials
    assert loaded.token_bytes() == TOKENIZER.token_bytes()
    assert loaded.encode(TEXTS[0]) == TOKENIZER.encode(TEXTS[0])


def rehashed(value):
    value.pop("hash", None)
    return {**value, "hash": files.hash_json(value)}


DAMAGE = {
    "no file": (lambda path, value: path.unlink(), "does not exist"),
    "cut": (lambda path, value: path.write_bytes(path.read_bytes()[:-20]), "not valid JSON"),
    "a list": (lambda path, value: path.write_text("[]"), "no tokenizer of version 1"),
    "another version": (
        lambda path, value: path.write_text(json.dumps({**value, "version": 2})),
        "version 1",
    ),
    "a changed token": (
        lambda path, value: path.write_text(path.read_text().replace('"74"', '"75"', 1)),
        "is damaged",
    ),
    "no hash": (
        lambda path, value: path.write_text(json.dumps({k: v for k, v in value.items() if k != "hash"})),
        "is damaged",
    ),
    "other specials": (
        lambda path, value: path.write_text(json.dumps(rehashed({**value, "specials": ["bos"]}))),
        "specials",
    ),
    "a token twice": (
        lambda path, value: path.write_text(
            json.dumps(rehashed({**value, "tokens": [*value["tokens"], "74"]}))
        ),
        "same bytes",
    ),
    "no hexadecimal": (
        lambda path, value: path.write_text(json.dumps(rehashed({**value, "tokens": ["zz"]}))),
        "no valid tokenizer",
    ),
    "no tokens": (
        lambda path, value: path.write_text(json.dumps(rehashed({**value, "tokens": None}))),
        "no valid",
    ),
    "a bad pattern": (
        lambda path, value: path.write_text(json.dumps(rehashed({**value, "pattern": "(["}))),
        "pattern",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    spoil, problem = DAMAGE[damage]
    spoil(path, json.loads(path.read_text()))
    with pytest.raises(DataError, match=problem) as caught:
        Tokenizer.load(path)
    assert str(path) in caught.value.message


def test_a_full_volume_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        Tokenizer.train(TEXTS, 280).save(path)
    assert Tokenizer.load(path).vocab_size == 300
    assert [found.name for found in tmp_path.iterdir()] == ["tokenizer.json"]

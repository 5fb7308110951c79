"""`--identity FILE`: what is accepted, and how a wrong line is named."""

from __future__ import annotations

import json

import pytest

from nanochat.data.conversations import read_identity
from nanochat.data.manifest import load
from nanochat.data.prepare import prepare
from nanochat.data.verify import verify_dataset
from nanochat.errors import ConfigError
from nanochat.settings import Home

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Ada."}]


def write(tmp_path, *values):
    path = tmp_path / "identity.jsonl"
    path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values))
    return path


def test_lists_objects_blank_lines_system_messages_and_tool_parts_are_accepted(tmp_path):
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    tool = [CHAT[0], {"role": "assistant", "content": parts}]
    path = write(tmp_path, CHAT, "", {"messages": [{"role": "system", "content": "Be kind."}, *CHAT]}, tool)
    assert read_identity(path) == [
        {"messages": CHAT},
        {"messages": [{"role": "system", "content": "Be kind."}, *CHAT]},
        {"messages": tool},
    ]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"messages": [', "not valid JSON"),
        ({"chat": CHAT}, r"field `messages` is missing; it has \['chat'\]"),
        ("3", "`messages` is 3, not a list"),
        ([], r"`messages` is \[\], not a list"),
        (["hello"], r"`messages\.0` is \"hello\", not an object"),
        ([{"role": "bot", "content": "x"}], r"`messages\.0\.role` is \"bot\""),
        ([{"content": "x"}], r"`messages\.0\.role` is missing"),
        ([{"role": "user", "content": "x", "name": "y"}], r"`messages\.0` has an unknown field `name`"),
        ([CHAT[0], {"role": "assistant", "content": " "}], r"`messages\.1\.content` is \" \", not text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}, CHAT[1]],
            r"`messages\.0\.content` is \[\{",
        ),
        (
            [CHAT[0], {"role": "assistant", "content": [{"type": "perl", "text": "x"}]}],
            r"content\.0\.type` is \"perl\"",
        ),
        ([CHAT[0], {"role": "assistant", "content": [{"text": "x"}]}], r"content\.0` is \{\"text\": \"x\"\}"),
        (CHAT[:1], "roles user"),
        (CHAT[::-1], "roles assistant, user"),
        ([*CHAT, CHAT[0]], "roles user, assistant, user"),
    ],
)
def test_a_wrong_line_names_the_file_the_line_and_the_field(tmp_path, line, named):
    path = write(tmp_path, CHAT, line)
    with pytest.raises(
        ConfigError, match=rf"identity\.jsonl`, line 2: .*{named}|identity\.jsonl`, line 2: {named}"
    ):
        read_identity(path)


def test_a_missing_empty_or_binary_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_identity(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="holds no conversation"):
        read_identity(write(tmp_path, "", " "))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_identity(tmp_path / "binary")


def test_identity_comes_and_goes_without_changing_the_dataset(tmp_path):
    home = Home(tmp_path)
    folder = prepare(home, source="generated")
    plain = load(folder)
    prepare(home, source="generated", identity=write(tmp_path, CHAT))
    with_identity = verify_dataset(folder)
    assert with_identity.files["chat/identity.jsonl"].rows == 1
    assert json.loads((folder / "chat/identity.jsonl").read_text()) == {"messages": CHAT}
    assert with_identity.hash == plain.hash
    prepare(home, source="generated")
    assert load(folder) == plain
    assert not (folder / "chat/identity.jsonl").exists()


def test_a_wrong_identity_file_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(ConfigError):
        prepare(Home(tmp_path), source="generated", identity=write(tmp_path, "{"))
    assert not (tmp_path / "datasets").exists()

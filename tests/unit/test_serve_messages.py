"""Messages become the alternating turns of training, or a refusal that names the field."""

from __future__ import annotations

import pytest

from nanochat.errors import RequestError
from nanochat.serve.messages import turns


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("a")], [user("a")]),
        ([user("")], [user("")]),
        ([system("s"), user("a")], [user("s\n\na")]),
        ([{"role": "developer", "content": "d"}, system("s"), user("a")], [user("d\n\ns\n\na")]),
        ([user("a"), assistant("b"), user("c")], [user("a"), assistant("b"), user("c")]),
        ([user("a"), assistant("b"), system("s"), user("c")], [user("a"), assistant("b"), user("s\n\nc")]),
        ([user("a"), user("b")], [user("a\n\nb")]),
        ([user("a"), system("s")], [user("a\n\ns")]),
        ([user("a"), assistant("b"), assistant("c"), user("d")], [user("a"), assistant("b\n\nc"), user("d")]),
        ([user([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}])], [user("xy")]),
        ([user("a"), {**assistant("b"), "tool_calls": None, "annotations": []}, user("c")],
         [user("a"), assistant("b"), user("c")]),
    ],
)  # fmt: skip
def test_messages_become_alternating_turns_that_end_with_the_user(messages, expected):
    assert turns(messages, limit=100) == expected


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ("hello", "messages"),
        ([], "messages"),
        ([user("a")] * 101, "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "owner", "content": "a"}], "messages[0].role"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role"),
        ([user("a"), {"role": "tool", "content": "a", "tool_call_id": "x"}], "messages[1].role"),
        ([assistant("a"), user("b")], "messages[0].role"),
        ([user("a"), assistant("b")], "messages[1].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([user(None)], "messages[0].content"),
        ([user(3)], "messages[0].content"),
        ([user([])], "messages[0].content"),
        ([user(["x"])], "messages[0].content[0]"),
        ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "messages[0].content[0].type"),
        ([user([{"type": "text", "text": "a"}, {"type": "input_audio"}])], "messages[0].content[1].type"),
        ([user([{"type": "text", "text": 3}])], "messages[0].content[0].text"),
        ([user([{"type": "text", "text": "a", "x": 1}])], "messages[0].content[0].x"),
        ([{**user("a"), "name": "Bob"}], "messages[0].name"),
        ([{**user("a"), "nmae": "Bob"}], "messages[0].nmae"),
        ([user("a"), {**assistant("b"), "tool_calls": [{}]}, user("c")], "messages[1].tool_calls"),
        ([system("only")], None),
    ],
)
def test_a_wrong_message_is_refused_by_the_path_of_its_field(messages, param):
    if param is None:
        assert turns(messages, limit=100) == [user("only")]
        return
    with pytest.raises(RequestError) as refused:
        turns(messages, limit=100)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert param in refused.value.message

"""Byte templates: valid JSON with the right members, whatever the text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.request import Delta, TokenLogprob, ToolCall
from nanochat.serve.refusals import refusal
from nanochat.serve.wire import DONE, ChatWire, Choice, Head, TextWire, error_event

TOKEN = TokenLogprob(7, b"\xe4\xbd", -0.5, ((7, b"\xe4\xbd", -0.5), (8, b"a", float("-inf"))))


def head(**fields):
    return Head(**{"id": "x-1", "created": 5, "model": 'a/"b"', "choices": 2, **fields})


def events(data):
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@given(st.text())
def test_any_text_survives_the_chat_template(text):
    if text:
        (chunk,) = events(ChatWire(head()).delta(0, Delta(text=text)))
        assert chunk["choices"][0]["delta"]["content"] == text
    choice = Choice(texts=[text], finish_reason="stop")
    whole = json.loads(ChatWire(head()).body([choice], 1, 2))
    assert whole["choices"][0]["message"]["content"] == text


def test_a_chat_stream_is_a_role_chunk_deltas_and_an_empty_finish_chunk():
    wire = ChatWire(head(include_usage=True))
    data = wire.opening(1) + wire.delta(1, Delta(text="hi", finish_reason="length")) + wire.usage(3, 4)
    opening, text, finish, usage = events(data)
    for chunk in (opening, text, finish, usage):
        assert (chunk["id"], chunk["created"], chunk["model"]) == ("x-1", 5, 'a/"b"')
        assert chunk["object"] == "chat.completion.chunk"
    assert opening["choices"] == [
        {"index": 1, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    ]
    assert text["choices"] == [{"index": 1, "delta": {"content": "hi"}, "finish_reason": None}]
    assert finish["choices"] == [{"index": 1, "delta": {}, "finish_reason": "length"}]
    assert [chunk["usage"] for chunk in (opening, text, finish)] == [None] * 3
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_usage_is_absent_unless_asked_for():
    wire = ChatWire(head())
    assert "usage" not in events(wire.opening(0))[0]
    assert wire.usage(1, 2) == b""


@pytest.mark.parametrize("wire", [ChatWire, TextWire])
def test_a_step_without_output_writes_nothing(wire):
    assert wire(head()).delta(0, Delta(token_ids=[1])) == b""


def test_tool_runs_are_reported_only_when_asked_for():
    delta = Delta(tool_calls=[ToolCall("1/0", None)])
    assert ChatWire(head()).delta(0, delta) == b""
    (chunk,) = events(ChatWire(head(tools=True)).delta(0, delta))
    assert chunk["choices"][0]["delta"] == {}
    assert chunk["choices"][0]["nanochat_tools"] == [{"expression": "1/0", "result": None}]
    choice = Choice(texts=["a"], tool_calls=[ToolCall("1+1", "2")])
    assert "nanochat_tools" not in json.loads(ChatWire(head()).body([choice], 1, 1))["choices"][0]
    told = json.loads(ChatWire(head(tools=True)).body([choice], 1, 1))["choices"][0]
    assert told["nanochat_tools"] == [{"expression": "1+1", "result": "2"}]


def test_logprobs_carry_raw_bytes_and_no_infinity():
    (chunk,) = events(ChatWire(head(logprobs=True)).delta(0, Delta(text="", logprobs=[TOKEN])))
    (entry,) = chunk["choices"][0]["logprobs"]["content"]
    assert entry["bytes"] == [0xE4, 0xBD]
    assert entry["token"] == "\ufffd"
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -9999.0]


def test_text_logprobs_count_offsets_over_the_whole_stream():
    wire = TextWire(head(logprobs=True))
    token = TokenLogprob(1, b"ab", -1.0)
    first, second = events(
        wire.delta(0, Delta(text="ab", logprobs=[token])) + wire.delta(0, Delta(text="ab", logprobs=[token]))
    )
    assert first["choices"][0]["logprobs"]["text_offset"] == [0]
    assert second["choices"][0]["logprobs"]["text_offset"] == [2]


def test_required_nullable_members_are_present_in_whole_responses():
    choice = Choice(texts=["a"], finish_reason="stop")
    chat = json.loads(ChatWire(head()).body([choice, choice], 1, 1))
    assert chat["choices"][1] == {
        "index": 1,
        "message": {"role": "assistant", "content": "a", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    text = json.loads(TextWire(head()).body([choice], 1, 1))
    assert text["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}]


def test_the_end_of_a_broken_stream_is_an_error_event():
    (event,) = events(error_event(refusal(500, "no")))
    assert event == {"error": {"message": "no", "type": "server_error", "param": None, "code": None}}
    assert DONE == b"data: [DONE]\n\n"

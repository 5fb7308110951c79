"""Request bodies: what is accepted, what is refused, and the field that the refusal names."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import RequestError
from nanochat.serve.messages import turns
from nanochat.serve.schema import parse_chat, parse_completion

HELLO = [{"role": "user", "content": "hello"}]
CHAT_FIELDS_OF_OPENAI_NOT_SUPPORTED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"50": 1},
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -1,
    "prompt_cache_key": "k",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
}


def chat(**fields):
    return parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def completion(**fields):
    return parse_completion(json.dumps({"model": "m", "prompt": "hello", **fields}).encode())


def refusal_of(call, *arguments, **fields):
    with pytest.raises(RequestError) as refused:
        call(*arguments, **fields)
    assert refused.value.status == 400
    assert refused.value.kind == "invalid_request_error"
    return refused.value


def test_all_supported_chat_fields_are_accepted():
    body = chat(
        temperature=0, top_p=0.5, max_tokens=5, max_completion_tokens=7, n=8, stop=["a", "b"], seed=-1,
        stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=20, top_k=50,
    )  # fmt: skip
    assert body.temperature == 0.0
    assert body.token_limit == 7
    assert body.stops() == ("a", "b")
    assert body.alternatives == 20
    assert body.wants_usage


def test_every_optional_field_may_be_null():
    supported = (
        "temperature top_p max_tokens max_completion_tokens n stop seed stream stream_options logprobs "
        "top_logprobs top_k"
    )
    body = chat(**dict.fromkeys([*CHAT_FIELDS_OF_OPENAI_NOT_SUPPORTED, *supported.split()]))
    assert body.token_limit is None
    assert body.stops() == ()
    assert body.alternatives is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.5"),
        ("temperature", True),
        ("top_p", -1),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", 2**31),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("max_completion_tokens", 0),
        ("max_completion_tokens", "many"),
        ("n", 0),
        ("n", 9),
        ("n", 1.5),
        ("seed", 0.5),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("stream", "yes"),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("model", None),
        ("model", 5),
        ("stream_options", "usage"),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused_by_name(field, value):
    refused = refusal_of(chat, **{field: value})
    assert refused.param == field
    assert refused.message.startswith(f"`{field}` is ")


@pytest.mark.parametrize("value", ["", ["a", ""], [""], ["a"] * 5, [1], 3, {"a": 1}, "x" * 257])
def test_a_wrong_stop_is_refused(value):
    assert refusal_of(chat(stop=value).stops).param == "stop"


@pytest.mark.parametrize(("field", "value"), CHAT_FIELDS_OF_OPENAI_NOT_SUPPORTED.items())
def test_a_field_that_is_not_supported_yet_is_refused_by_name(field, value):
    refused = refusal_of(chat, **{field: value})
    assert refused.param == field
    assert "not supported yet" in refused.message


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0},
        {"presence_penalty": 0.0},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tool_choice": "none"},
        {"store": False},
        {"service_tier": "auto"},
        {"modalities": ["text"]},
    ],
)
def test_a_value_that_asks_for_nothing_is_accepted(fields):
    assert chat(**fields).model == "m"


def test_false_is_not_taken_for_the_neutral_zero():
    assert refusal_of(chat, frequency_penalty=False).param == "frequency_penalty"


def test_an_unknown_field_is_refused_with_the_nearest_name():
    refused = refusal_of(chat, temprature=1)
    assert refused.param == "temprature"
    assert "`temperature`" in refused.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ],
)
def test_a_field_that_needs_another_is_refused_without_it(fields, param):
    assert refusal_of(chat, **fields).param == param


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_required_field_is_named(field):
    body = {"model": "m", "messages": HELLO}
    del body[field]
    refused = refusal_of(parse_chat, json.dumps(body).encode())
    assert (refused.param, refused.code) == (field, "missing_required_parameter")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b'{"model": "m",}', b"\xff\xfe", b"null and void", b"[" * 10_000, b'{"model": "\\ud800"}'],
)
def test_malformed_json_is_a_400_without_a_param(raw):
    refused = refusal_of(parse_chat, raw)
    assert refused.param is None
    assert "not valid JSON" in refused.message


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"text"', b"3"])
def test_json_that_is_no_object_is_refused(raw):
    assert "must be a JSON object" in refusal_of(parse_chat, raw).message


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_completion_takes_texts_and_ids_alone_or_in_lists(prompt, expected):
    assert completion(prompt=prompt).prompts(10) == expected


@pytest.mark.parametrize(
    "prompt", [None, 3, [], {}, [[]], [None], [10], [-1], [[1, "a"]], [True], ["a"] * 33]
)
def test_a_wrong_prompt_is_refused(prompt):
    assert refusal_of(completion(prompt=prompt).prompts, 10).param == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [("best_of", 2), ("echo", True), ("suffix", "x"), ("logit_bias", {"1": 2}), ("user", "u")],
)
def test_completion_fields_that_are_not_supported_yet_are_refused(field, value):
    assert refusal_of(completion, **{field: value}).param == field


def test_completions_default_to_16_tokens_and_5_logprobs_at_most():
    assert completion().token_limit == 16
    assert completion(logprobs=0).alternatives == 0
    assert refusal_of(completion, logprobs=6).param == "logprobs"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
SUPPORTED = (
    "temperature top_p n stop seed stream max_tokens stream_options logprobs top_logprobs top_k ignore_eos"
)
FIELDS = st.sampled_from(
    [*CHAT_FIELDS_OF_OPENAI_NOT_SUPPORTED, *SUPPORTED.split(), "prompt", "messages", "model", "extra"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", 3]), "content": JSON_VALUES}
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(FIELDS, JSON_VALUES, max_size=5), messages=MESSAGES)
def test_no_body_whatever_it_holds_is_our_fault(fields, messages):
    def parse_all(raw):
        turns(parse_chat(raw).messages, limit=10)

    for parse, base in ((parse_all, {"messages": messages}), (parse_completion, {"prompt": "a"})):
        refusal = None
        try:
            body = parse(json.dumps({"model": "m", **base, **fields}).encode())
            accepted = body is None or (body.prompts(100) is not None and len(body.stops()) <= 4)
        except RequestError as refused:
            refusal, accepted = refused, False
        assert accepted or (refusal is not None and 400 <= refusal.status < 500 and refusal.message)

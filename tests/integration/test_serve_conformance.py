"""Every answer of the real server against OpenAI's own schema and under OpenAI's own client."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from pathlib import Path

import jsonschema
import openai
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.bench.bench_serve import stub_server

SPEC = Path(__file__).resolve().parents[3] / "shared" / "specs" / "openai.openapi.json"
JSON = {"content-type": "application/json"}
HELLO = [{"role": "user", "content": "hello"}]
needs_spec = pytest.mark.skipif(not SPEC.exists(), reason="no ../shared/specs")


def strict(node):
    """Return a schema as JSON Schema reads it: `nullable` means null too, and no member is undeclared."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items() if key not in ("nullable", "discriminator")}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return {"anyOf": [made, {"type": "null"}]} if node.get("nullable") is True else made


@pytest.fixture(scope="module")
def schemas():
    """Return `check(name, value)` over the components of OpenAI's file."""
    components = json.loads(SPEC.read_text())["components"]["schemas"]
    resource = DRAFT202012.create_resource({"components": {"schemas": strict(components)}})
    registry = Registry().with_resource("spec:", resource)

    def check(name, value):
        schema = {"$ref": f"spec:#/components/schemas/{name}"}
        jsonschema.Draft202012Validator(schema, registry=registry).validate(value)

    return check


@pytest.fixture(scope="module")
def port():
    with stub_server("--step-ms", "1") as (_, port):
        yield port


@pytest.fixture(scope="module")
def client(port):
    made = openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    )
    with made:
        yield made


def ask(port, path, body=None, *, method="POST", headers=None, raw=None):
    """Return (status, headers, bytes) of one request."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, JSON if headers is None else headers)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def stream_of(port, path, body):
    """Return the events of a stream, checked to end with `[DONE]`."""
    status, headers, data = ask(port, path, {**body, "stream": True})
    assert status == 200, data
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    *parts, done, rest = data.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


CHATS = [
    {},
    {"n": 3, "seed": 1},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3},
    {"max_tokens": 2},
    {"stop": "said", "temperature": 0, "top_p": 0.9, "top_k": 5},
]


@needs_spec
@pytest.mark.parametrize("fields", CHATS)
def test_a_chat_completion_is_valid_and_complete(port, schemas, fields):
    status, headers, data = ask(port, "/v1/chat/completions", {"model": "stub", "messages": HELLO, **fields})
    assert status == 200, data
    value = json.loads(data)
    schemas("CreateChatCompletionResponse", value)
    assert [choice["index"] for choice in value["choices"]] == list(range(fields.get("n", 1)))
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert (
        value["usage"]["total_tokens"]
        == value["usage"]["prompt_tokens"] + value["usage"]["completion_tokens"]
    )


@needs_spec
@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("fields", CHATS)
def test_every_chunk_of_a_chat_stream_is_valid_and_in_order(port, schemas, fields, usage):
    options = {"stream_options": {"include_usage": usage}}
    chunks = stream_of(
        port, "/v1/chat/completions", {"model": "stub", "messages": HELLO, **options, **fields}
    )
    for chunk in chunks:
        schemas("CreateChatCompletionStreamResponse", chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 0
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    for index in range(fields.get("n", 1)):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert all(set(choice["delta"]) == {"content"} for choice in mine[1:-1])
        assert mine[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == ("length" if "max_tokens" in fields else "stop")


@needs_spec
@pytest.mark.parametrize(
    "fields",
    [{"prompt": "a b"}, {"prompt": ["a", "b"], "n": 2}, {"prompt": [97, 98]}, {"prompt": "a", "logprobs": 2}],
)
def test_completions_are_valid_whole_and_streamed(port, schemas, fields):
    status, _, data = ask(port, "/v1/completions", {"model": "stub", **fields})
    assert status == 200, data
    schemas("CreateCompletionResponse", json.loads(data))
    chunks = stream_of(port, "/v1/completions", {"model": "stub", **fields})
    assert {choice["index"] for chunk in chunks for choice in chunk["choices"]} == {
        choice["index"] for choice in json.loads(data)["choices"]
    }
    for chunk in chunks:
        # OpenAI's file describes no completion stream; its objects have a null finish_reason until the end.
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        schemas("CreateCompletionResponse", chunk)


@needs_spec
def test_the_model_routes_are_valid(port, schemas):
    every = json.loads(ask(port, "/v1/models", method="GET")[2])
    schemas("ListModelsResponse", every)
    one = json.loads(ask(port, "/v1/models/stub", method="GET")[2])
    schemas("Model", one)
    assert every["data"] == [one]
    assert one["id"] == "stub"


GOOD = {"model": "stub", "messages": HELLO}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PLAIN, GZIP = {"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}
LONG_CHAT = {**GOOD, "messages": [{"role": "user", "content": "x" * 5000}]}
NAN = {**GOOD, "temperature": float("nan")}
WRONG_METHOD, TOO_LONG = "method_not_allowed", "context_length_exceeded"
# name: (method, path, headers, body or raw bytes, status, param, code)
ERRORS = {
    "unknown path": ("GET", "/v1/nope", JSON, b"", 404, None, "not_found"),
    "unknown root path": ("POST", "/chat/completions", JSON, GOOD, 404, None, "not_found"),
    "trailing slash": ("POST", CHAT + "/", JSON, GOOD, 404, None, "not_found"),
    "wrong method": ("GET", CHAT, JSON, b"", 405, None, WRONG_METHOD),
    "wrong method on models": ("DELETE", "/v1/models/stub", JSON, b"", 405, None, WRONG_METHOD),
    "wrong method on the page": ("POST", "/", JSON, b"", 405, None, WRONG_METHOD),
    "preflight": ("OPTIONS", CHAT, {"origin": "http://x"}, b"", 405, None, WRONG_METHOD),
    "form body": ("POST", CHAT, PLAIN, GOOD, 415, None, None),
    "no content type": ("POST", CHAT, {}, GOOD, 415, None, None),
    "compressed body": ("POST", TEXT, GZIP, GOOD, 415, None, None),
    "body too large": ("POST", CHAT, JSON, b" " * (2 << 20), 413, None, None),
    "malformed JSON": ("POST", CHAT, JSON, b'{"model": ', 400, None, None),
    "no object": ("POST", TEXT, JSON, b"[]", 400, None, None),
    "unknown model": ("POST", CHAT, JSON, {**GOOD, "model": "gpt"}, 404, "model", "model_not_found"),
    "unknown model id": ("GET", "/v1/models/a/b-1", JSON, b"", 404, "model", "model_not_found"),
    "no messages": ("POST", CHAT, JSON, {**GOOD, "messages": []}, 400, "messages", None),
    "NaN": ("POST", CHAT, JSON, NAN, 400, "temperature", None),
    "n too large": ("POST", CHAT, JSON, {**GOOD, "n": 9}, 400, "n", None),
    "tools": ("POST", CHAT, JSON, {**GOOD, "tools": [{}]}, 400, "tools", None),
    "prompt too long": ("POST", CHAT, JSON, LONG_CHAT, 400, "messages", TOO_LONG),
    "long text": ("POST", TEXT, JSON, {"model": "stub", "prompt": "x" * 50_000}, 400, "prompt", TOO_LONG),
}


@needs_spec
@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_openais_shape(port, schemas, name):
    method, path, headers, body, status, param, code = ERRORS[name]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    got, answer, data = ask(port, path, method=method, headers=headers, raw=raw)
    assert got == status, data
    value = json.loads(data)
    schemas("ErrorResponse", value)
    assert value["error"]["param"] == param
    assert value["error"]["code"] == code
    assert value["error"]["type"] == "invalid_request_error"
    assert answer["content-type"] == "application/json"
    assert answer["x-request-id"]
    assert ask(port, "/v1/models", method="GET")[0] == 200


def test_an_error_names_the_known_model(port):
    data = ask(port, "/v1/chat/completions", {"model": "gpt-9", "messages": HELLO})[2]
    assert "`stub`" in json.loads(data)["error"]["message"]


def test_the_clients_request_id_is_returned_when_it_is_harmless(port):
    for path, method in (("/v1/models", "GET"), ("/v1/chat/completions", "POST")):
        headers = {**JSON, "x-request-id": "mine-1"}
        assert ask(port, path, GOOD, method=method, headers=headers)[1]["x-request-id"] == "mine-1"
        odd = {**JSON, "x-request-id": "a b<script>"}
        assert re.fullmatch(
            r"req_[0-9a-f]{24}", ask(port, path, GOOD, method=method, headers=odd)[1]["x-request-id"]
        )


def test_openais_client_accepts_everything_in_strict_mode(client):
    chat = client.chat.completions.create(model="stub", messages=HELLO, n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in chat.choices] == ["You said: hello"] * 2
    text = client.completions.create(model="stub", prompt="a b", logprobs=1)
    assert text.choices[0].text == "You said: a b"
    assert client.models.list().data[0].id == "stub"
    assert client.models.retrieve("stub").id == "stub"


def test_openais_client_streams_chats_in_strict_mode(client):
    chunks = list(
        client.chat.completions.create(
            model="stub", messages=HELLO, stream=True, stream_options={"include_usage": True}, logprobs=True
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "You said: hello"
    assert chunks[-1].usage.completion_tokens == 4
    with client.chat.completions.stream(model="stub", messages=HELLO) as stream:
        assert stream.get_final_completion().choices[0].message.content == "You said: hello"


def test_openais_client_streams_completions(port):
    # not in strict mode: the client's own type has no null finish_reason, which OpenAI itself sends
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        chunks = client.completions.create(model="stub", prompt="a b", stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "You said: a b"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"user": "u"}, openai.BadRequestError),
    ],
)
def test_openais_client_raises_its_own_errors(client, fields, error):
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": "stub", "messages": HELLO, **fields})
    assert raised.value.type == "invalid_request_error"


def test_the_calculators_runs_are_visible_on_request(client):
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    extra = {"nanochat_tools": True, "top_k": 3, "ignore_eos": False}
    chat = client.chat.completions.create(model="stub", messages=messages, extra_body=extra)
    assert chat.choices[0].nanochat_tools == [{"expression": "12+30", "result": "42"}]
    chunks = client.chat.completions.create(model="stub", messages=messages, extra_body=extra, stream=True)
    runs = [run for chunk in chunks for run in getattr(chunk.choices[0], "nanochat_tools", None) or []]
    assert runs == [{"expression": "12+30", "result": "42"}]


def test_roles_are_merged_for_the_model(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    chat = client.chat.completions.create(model="stub", messages=messages)
    assert chat.choices[0].message.content == "You said: Be brief.\n\nhi"


@pytest.mark.parametrize("text", ["数字 九十九 好", "naïve 🌊🌊 café", 'quote " backslash \\ \u2028 tab\t'])
def test_any_script_arrives_whole(client, text):
    chunks = client.chat.completions.create(
        model="stub", messages=[{"role": "user", "content": text}], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == f"You said: {text}"


def test_metrics_count_requests_and_tokens(port):
    ask(port, "/v1/chat/completions", GOOD)
    text = ask(port, "/metrics", method="GET")[2].decode()
    for name in (
        'nanochat_http_requests_total{route="chat",status="200"}',
        "nanochat_completion_tokens_total",
        "nanochat_engine_steps_total",
        "nanochat_ready 1.0",
        'vllm:num_requests_running{model_name="stub"} 0.0',
        'vllm:num_requests_waiting{model_name="stub"} 0.0',
    ):
        assert name in text


def test_health_and_readiness_answer(port):
    health = json.loads(ask(port, "/health", method="GET")[2])
    ask(port, "/v1/chat/completions", GOOD)
    assert json.loads(ask(port, "/health", method="GET")[2])["steps"] > health["steps"]
    assert ask(port, "/ready", method="GET")[0] == 200

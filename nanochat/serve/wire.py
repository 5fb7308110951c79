"""Completions -> the exact bytes of OpenAI's objects: byte templates, no dictionaries on the hot path.

Required nullable fields are present, optional ones absent. A stream is, per
choice, a role chunk, deltas, and a finish chunk with an empty delta; then an
optional usage chunk without choices; then `[DONE]`. Knows nothing of HTTP or
of the engine's threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Protocol

from nanochat.engine.request import Delta, TokenLogprob, ToolCall
from nanochat.errors import RequestError
from nanochat.serve.refusals import error_body, json_bytes

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_FLOOR = -9999.0  # OpenAI's value for a token that is very unlikely; minus infinity is not JSON


def quote(text: str) -> bytes:
    """Return a JSON string in ASCII: valid in any transport, no U+2028 trap."""
    return _quoted(text).encode()


def error_event(error: RequestError) -> bytes:
    """Return the event that ends a broken stream; no `[DONE]` follows it."""
    return b"data: " + error_body(error) + b"\n\n"


@dataclass(slots=True)
class Choice:
    """One finished completion, collected for a response in one piece."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str = "stop"

    def add(self, delta: Delta) -> None:
        """Append what one step made."""
        self.texts.append(delta.text)
        self.logprobs += delta.logprobs
        self.tool_calls += delta.tool_calls
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason


class Wire(Protocol):
    """How one route writes its objects."""

    def opening(self, index: int) -> bytes:
        """Return the first chunk of a choice."""
        ...

    def delta(self, index: int, delta: Delta) -> bytes:
        """Return the chunks of one engine step, the finish chunk included."""
        ...

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Return the usage chunk; empty unless asked for."""
        ...

    def body(self, choices: Sequence[Choice], prompt_tokens: int, completion_tokens: int) -> bytes:
        """Return the response in one piece."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every object of a request repeats."""

    id: str
    created: int
    model: str
    choices: int
    include_usage: bool = False
    logprobs: bool = False
    tools: bool = False

    def fields(self, kind: str) -> bytes:
        """Return the leading members, up to and including the comma after `model`."""
        return b'{"id":%b,"object":"%b","created":%d,"model":%b,' % (
            quote(self.id),
            kind.encode(),
            self.created,
            quote(self.model),
        )


class ChatWire:
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, head: Head) -> None:
        self._head = head
        start = b"data: " + head.fields("chat.completion.chunk")
        self._start = start
        self._before = [start + b'"choices":[{"index":%d,"delta":' % index for index in range(head.choices)]
        self._text = [before + b'{"content":' for before in self._before]
        self._tail = b'],"usage":null}\n\n' if head.include_usage else b"]}\n\n"
        self._open = b',"finish_reason":null}' + self._tail

    def opening(self, index: int) -> bytes:
        return self._before[index] + b'{"role":"assistant","content":""}' + self._open

    def delta(self, index: int, delta: Delta) -> bytes:
        out = b""
        if delta.text or delta.logprobs:
            logprobs = b"" if not self._head.logprobs else b',"logprobs":' + _chat_logprobs(delta.logprobs)
            out = b"".join((self._text[index], quote(delta.text), b"}", logprobs, self._open))
        if delta.tool_calls and self._head.tools:
            out += self._before[index] + b"{}" + _tools(delta.tool_calls) + self._open
        if delta.finish_reason is not None:
            out += (
                self._before[index] + b'{},"finish_reason":"%b"}' % delta.finish_reason.encode() + self._tail
            )
        return out

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        if not self._head.include_usage:
            return b""
        return b'%b"choices":[],%b}\n\n' % (self._start, _usage(prompt_tokens, completion_tokens))

    def body(self, choices: Sequence[Choice], prompt_tokens: int, completion_tokens: int) -> bytes:
        return b'%b"choices":[%b],%b}' % (
            self._head.fields("chat.completion"),
            b",".join(self._choice(index, choice) for index, choice in enumerate(choices)),
            _usage(prompt_tokens, completion_tokens),
        )

    def _choice(self, index: int, choice: Choice) -> bytes:
        return (
            b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null},'
            b'"logprobs":%b,"finish_reason":"%b"%b}'
        ) % (
            index,
            quote("".join(choice.texts)),
            _chat_logprobs(choice.logprobs) if self._head.logprobs else b"null",
            choice.finish_reason.encode(),
            _tools(choice.tool_calls) if self._head.tools else b"",
        )


class TextWire:
    """`text_completion`, whole and streamed."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._fields = head.fields("text_completion")
        self._start = b"data: " + self._fields
        self._before = [self._start + b'"choices":[{"index":%d,"text":' % i for i in range(head.choices)]
        self._tail = b'],"usage":null}\n\n' if head.include_usage else b"]}\n\n"
        self._offsets = [0] * head.choices

    def opening(self, index: int) -> bytes:
        return b""

    def delta(self, index: int, delta: Delta) -> bytes:
        out = b""
        if delta.text or delta.logprobs or (delta.tool_calls and self._head.tools):
            logprobs = b"null"
            if self._head.logprobs:
                logprobs = _text_logprobs(delta.logprobs, self._offsets[index])
                self._offsets[index] += len(delta.text)
            tools = _tools(delta.tool_calls) if delta.tool_calls and self._head.tools else b""
            out = b'%b%b,"logprobs":%b,"finish_reason":null%b}%b' % (
                self._before[index],
                quote(delta.text),
                logprobs,
                tools,
                self._tail,
            )
        if delta.finish_reason is not None:
            out += b'%b"","logprobs":null,"finish_reason":"%b"}%b' % (
                self._before[index],
                delta.finish_reason.encode(),
                self._tail,
            )
        return out

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        if not self._head.include_usage:
            return b""
        return b'%b"choices":[],%b}\n\n' % (self._start, _usage(prompt_tokens, completion_tokens))

    def body(self, choices: Sequence[Choice], prompt_tokens: int, completion_tokens: int) -> bytes:
        return b'%b"choices":[%b],%b}' % (
            self._fields,
            b",".join(self._choice(index, choice) for index, choice in enumerate(choices)),
            _usage(prompt_tokens, completion_tokens),
        )

    def _choice(self, index: int, choice: Choice) -> bytes:
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":"%b"%b}' % (
            index,
            quote("".join(choice.texts)),
            _text_logprobs(choice.logprobs, 0) if self._head.logprobs else b"null",
            choice.finish_reason.encode(),
            _tools(choice.tool_calls) if self._head.tools else b"",
        )


def _usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    return b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
    )


def _tools(calls: Sequence[ToolCall]) -> bytes:
    runs = [{"expression": call.expression, "result": call.result} for call in calls]
    return b',"nanochat_tools":' + json_bytes(runs)


def _token(data: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(logprob, _FLOOR),
        "bytes": list(data),
    }


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> bytes:
    content = [
        {
            **_token(token.data, token.logprob),
            "top_logprobs": [_token(data, logprob) for _, data, logprob in token.top],
        }
        for token in tokens
    ]
    return json_bytes({"content": content, "refusal": None})


def _text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> bytes:
    names, offsets = [], []
    for token in tokens:
        name = token.data.decode("utf-8", "replace")
        names.append(name)
        offsets.append(offset)
        offset += len(name)
    value = {
        "tokens": names,
        "token_logprobs": [max(token.logprob, _FLOOR) for token in tokens],
        "top_logprobs": [
            {data.decode("utf-8", "replace"): max(logprob, _FLOOR) for _, data, logprob in token.top}
            for token in tokens
        ],
        "text_offset": offsets,
    }
    return json_bytes(value)

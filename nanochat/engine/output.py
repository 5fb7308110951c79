"""What a drawn token means for its request: text, a tool call, forced tokens, the end.

Knows the tokenizer's tables and the policies of one completion; nothing of batches or of the model.
Text parts become `Delta.text`; a calculator call and its answer become `Delta.tool_calls` alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from nanochat.engine.detokenizer import TextStream
from nanochat.engine.request import Delta, FinishReason, Request, Sampled, SamplingParams, TokenLogprob
from nanochat.engine.toolstate import ToolState, ToolTokens

END_NAMES = ("assistant_end", "bos")
TOOL_NAMES = ("python_start", "python_end", "output_start", "output_end")


class EngineTokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def specials(self) -> dict[str, int]:
        """Ids of the special tokens by bare name, e.g. `assistant_end`."""

    def token_bytes(self) -> list[bytes]:
        """Return every id's bytes; b"" for the special ones."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; never special ones."""


class OutputFactory:
    """Makes the state of each request; holds the tables that all share."""

    def __init__(self, tokenizer: EngineTokenizer, evaluate: Callable[[str], str | None]) -> None:
        specials = tokenizer.specials
        self.table = tokenizer.token_bytes()
        self.special_ids = frozenset(specials.values())
        self.end_ids = frozenset(specials[name] for name in END_NAMES if name in specials)
        self.tools: ToolTokens | None = None
        if all(name in specials for name in TOOL_NAMES):
            self.tools = ToolTokens(**{name: specials[name] for name in TOOL_NAMES})
        self.evaluate = evaluate
        self.encode = tokenizer.encode

    def start(self, params: SamplingParams) -> Output:
        """Return the state of a request that has drawn nothing yet."""
        return Output(self, params)


class Output:
    """One request's output state. `accept` is called once a drawn token, on the engine's thread."""

    __slots__ = ("_ends", "_factory", "_pending", "_sent", "_stream", "_tool", "_wants_logprobs")

    def __init__(self, factory: OutputFactory, params: SamplingParams) -> None:
        self._factory = factory
        self._stream = TextStream(params.stop)
        self._ends: frozenset[int] = frozenset() if params.ignore_eos else factory.end_ids
        evaluate = factory.evaluate if params.tools else _no_tool
        self._tool = ToolState(factory.tools, evaluate, factory.encode) if factory.tools else None
        self._wants_logprobs = params.logprobs is not None
        self._pending: deque[tuple[int, TokenLogprob]] = deque()
        self._sent = 0

    def accept(self, request: Request, sampled: Sampled) -> Delta:
        """Append the drawn token, and what a tool forces after it, to `request.tokens`; return the delta."""
        token = sampled.token
        request.tokens.append(token)
        delta = Delta(token_ids=[token])
        if token in self._ends:
            request.finish_reason = "stop"
        elif token in self._factory.special_ids:
            self._special(request, token, delta)
        elif self._tool is None or self._tool.mode == "text":
            self._text(sampled, delta)
            if self._stream.stopped:
                request.finish_reason = "stop"
        else:
            self._tool.feed(token, self._factory.table[token])
        if request.finish_reason is None and len(request.tokens) >= request.limit:
            request.finish_reason = "length"
        return self._complete(request, delta)

    def end(self, request: Request, reason: FinishReason) -> Delta:
        """End without a token; text held back until now goes out."""
        request.finish_reason = reason
        return self._complete(request, Delta())

    def _text(self, sampled: Sampled, delta: Delta) -> None:
        table = self._factory.table
        data = table[sampled.token]
        if self._wants_logprobs and sampled.logprob is not None:
            top = tuple((other, table[other], value) for other, value in sampled.top)
            entry = TokenLogprob(sampled.token, data, sampled.logprob, top)
            self._pending.append((self._stream.decoded, entry))
        delta.text = self._stream.push(data)

    def _special(self, request: Request, token: int, delta: Delta) -> None:
        """Handle a token that is never text: it ends an unfinished character and may start or end a call."""
        delta.text = self._stream.push(b"", last=True)
        call = self._tool.feed(token, b"") if self._tool else None
        if self._stream.stopped:
            request.finish_reason = "stop"
        elif call is not None:
            delta.tool_calls.append(call[0])
            forced = call[1][: request.limit - len(request.tokens)]
            request.forced.extend(range(len(request.tokens), len(request.tokens) + len(forced)))
            request.tokens += forced
            delta.token_ids += forced

    def _complete(self, request: Request, delta: Delta) -> Delta:
        if request.finish_reason is not None and not self._stream.stopped:
            delta.text += self._stream.finish()
            if self._stream.stopped and request.finish_reason == "length":
                request.finish_reason = "stop"
        self._sent += len(delta.text)
        ended = request.finish_reason is not None and not self._stream.stopped
        while self._pending and (ended or self._pending[0][0] < self._sent):
            delta.logprobs.append(self._pending.popleft()[1])
        delta.finish_reason = request.finish_reason
        delta.completion_tokens = request.completion_tokens
        return delta


def _no_tool(expression: str) -> None:
    return None

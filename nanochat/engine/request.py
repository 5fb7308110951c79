"""What goes into the engine and what comes out: parameters, requests, deltas.

Pure data. Knows nothing of torch, of HTTP or of how tokens are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from nanochat.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "error"]
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TEMPERATURE = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one completion is drawn.

    Raises:
        RequestError: status 400, `param` names the field, for a value that is NaN or out of range.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the smallest set of likeliest tokens with at least this probability."""
    max_tokens: int | None = None
    """Tokens to add to the prompt at most, forced tool output included; None: up to the context's end."""
    seed: int | None = None
    """Same seed, same prompt, same parameters: same text, whoever shares the batch. None: a fresh one."""
    stop: tuple[str, ...] = ()
    """Text that ends the completion and is not part of it."""
    logprobs: int | None = None
    """n: the drawn token's log probability and those of the n likeliest, before temperature."""
    ignore_eos: bool = False
    """Go on after the end-of-turn tokens (load tests)."""
    tools: bool = True
    """Run the calculator when the model calls it."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, MAX_TEMPERATURE),
            ("top_p", self.top_p, 0.0, 1.0),
        ):
            if not math.isfinite(value) or not low <= value <= high:
                raise _refuse(name, value, f"must be a number from {low:g} to {high:g}")
        if self.top_k < 0:
            raise _refuse("top_k", self.top_k, "must be 0 (off) or a positive count")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _refuse("max_tokens", self.max_tokens, "must be at least 1")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_TOP_LOGPROBS:
            raise _refuse("top_logprobs", self.logprobs, f"must be from 0 to {MAX_TOP_LOGPROBS}")
        if len(self.stop) > MAX_STOPS or "" in self.stop:
            raise _refuse("stop", list(self.stop), f"must be at most {MAX_STOPS} non-empty strings")


def _refuse(param: str, value: object, why: str) -> RequestError:
    return RequestError(f"`{param}` is {value!r}: {why}", param=param, code="invalid_value")


class Sampled(NamedTuple):
    """One drawn token of one row; the log probabilities only where the request asks for them."""

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class TokenLogprob(NamedTuple):
    """A visible token with its raw log probability and the likeliest alternatives, likeliest first.

    `data` are the token's bytes, which need not be whole characters.
    """

    token: int
    data: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


class ToolCall(NamedTuple):
    """One use of the calculator; `result` is None when the expression was refused."""

    expression: str
    result: str | None


@dataclass(slots=True)
class Delta:
    """What one step added to one request. The last one carries `finish_reason`, possibly with text."""

    text: str = ""
    """Whole characters only; no special token, no tool part, nothing of a stop string."""
    token_ids: list[int] = field(default_factory=list)
    """The token drawn in this step, then the tokens that a tool forced."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the visible tokens whose text is out; empty unless asked for."""
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    completion_tokens: int = 0
    """All tokens after the prompt so far: drawn, forced and the end-of-turn token."""
    error: str | None = None
    """With `finish_reason` "error": a sentence without internals."""


class Sink(Protocol):
    """Where a request's deltas go.

    `put` is called on the engine's thread, at most once per step, and must neither block nor raise.
    """

    def put(self, delta: Delta, /) -> None: ...


@dataclass(slots=True, eq=False)
class Request:
    """One completion on its way. The engine's thread owns it; others may read the first four fields."""

    id: int
    prompt_tokens: int
    params: SamplingParams
    sink: Sink
    tokens: list[int]
    """The prompt, then everything drawn or forced."""
    limit: int
    """Length of `tokens` at which the request ends with "length"."""
    uniform: Callable[[], float]
    """The request's own stream of numbers in [0, 1): one is taken for each token drawn at random."""
    computed: int = 0
    """Tokens whose keys and values are stored."""
    slot: int = -1
    """Its place in the KV pool while it runs."""
    forced: list[int] = field(default_factory=list)
    """Indices into `tokens` that a tool wrote, not the model."""
    cancelled: bool = False
    finish_reason: FinishReason | None = None
    state: Any = None
    """The engine's output state machine; opaque to the scheduler."""

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens


@dataclass(slots=True)
class Completion:
    """A finished request, for offline use."""

    text: str = ""
    prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    """All tokens after the prompt: drawn, forced and the end-of-turn token."""
    forced: list[bool] = field(default_factory=list)
    """True where a tool wrote the token of the same index."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)

    def put(self, delta: Delta, /) -> None:
        """Add one delta: a `Completion` is a `Sink`."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.tool_calls += delta.tool_calls
        self.finish_reason = delta.finish_reason

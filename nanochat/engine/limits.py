"""How much an engine takes on, and what it has done: pure data.

Knows nothing of models or of how the numbers come about.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much the engine takes on at once."""

    max_running: int = 8
    """Requests that share a step."""
    max_waiting: int = 256
    """Requests that may queue; more are refused with 429."""
    max_tokens_in_kv: int | None = None
    """Tokens whose keys and values are held at once; None: a whole context for each of `max_running`."""
    context: int | None = None
    """Tokens of prompt and completion together; None: the model's sequence length."""
    prefill_chunk: int = 128
    """Prompt tokens of one request computed in one step at most."""
    max_step_tokens: int = 256
    """Tokens computed in one step at most, decoding rows first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Counters since the start, and the state now. Tokens unless said otherwise."""

    ticks: int
    """Steps begun; advances while anything waits or runs."""
    last_tick_s: float
    """The engine's clock (monotonic) at the last step."""
    waiting: int
    running: int
    kv_total_tokens: int
    kv_used_tokens: int
    kv_free_tokens: int
    kv_intact: bool
    """False if free + used was not total, or something was in use, on any idle step."""
    prompt_tokens: int
    completion_tokens: int
    requests_finished: dict[str, int]
    """By finish reason."""
    tool_calls: int
    failures: int
    """Steps that raised; their requests ended with "error"."""

"""Where a completion stands: text, a call of the calculator, or the calculator's answer.

A state machine over token ids. Knows neither sampling nor text; what an expression is worth comes in as
a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nanochat.engine.request import ToolCall

Mode = Literal["text", "python", "output"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolTokens:
    """Ids of the four tokens around a call and its answer."""

    python_start: int
    python_end: int
    output_start: int
    output_end: int


class ToolState:
    """One request's state; `feed` sees the special tokens and, inside a call, every token."""

    __slots__ = ("_encode", "_evaluate", "_expression", "_ids", "mode")

    def __init__(
        self, ids: ToolTokens, evaluate: Callable[[str], str | None], encode: Callable[[str], list[int]]
    ) -> None:
        self._ids = ids
        self._evaluate = evaluate
        self._encode = encode
        self._expression = bytearray()
        self.mode: Mode = "text"

    def feed(self, token: int, data: bytes) -> tuple[ToolCall, list[int]] | None:
        """Take one drawn token; at the end of a call return it with the tokens that must follow.

        A refused expression forces nothing: the model goes on as it likes.
        """
        ids = self._ids
        if token == ids.python_start:
            self.mode = "python"
            self._expression.clear()
        elif token == ids.python_end and self.mode == "python":
            self.mode = "text"
            expression = self._expression.decode("utf-8", "replace")
            result = self._evaluate(expression)
            forced = [] if result is None else [ids.output_start, *self._encode(result), ids.output_end]
            return ToolCall(expression, result), forced
        elif token == ids.output_start:
            self.mode = "output"
        elif token == ids.output_end:
            self.mode = "text"
        elif self.mode == "python":
            self._expression += data
        return None

"""The calculator: one arithmetic expression or one letter count, evaluated from its syntax tree.

Knows nothing of tokens or models. It runs in any thread and in microseconds: a whitelist of node
types, no names, no power, and an input of at most 256 characters bound both time and memory.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_EXPRESSION = 256
"""Characters; without a power operator no result outgrows its operands' digits."""
MAX_RESULT = 40
"""Characters; a longer result would fill the context."""

Number = int | float

# Whatever is left of an expression after these is refused before Python's parser sees it: the parser
# warns on input such as `1if`, and warnings are process-wide state that a thread must not touch.
_KNOWN = re.compile(r"""'[^'"\\]*'|"[^'"\\]*"|\.\s*count\b|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/%() ]""")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class _RefusedError(Exception):
    """The expression holds something that is not on the whitelist."""


def evaluate(expression: str) -> str | None:
    """Return the result as text, or None for anything but arithmetic and `'word'.count('x')`.

    Operators are + - * / // % and parentheses over integers and decimals; commas between thousands are
    read past. Whole results print without a decimal point (`48/2` is `24`), others with 12 digits.
    """
    expression = expression.strip()
    if not expression or len(expression) > MAX_EXPRESSION:
        return None
    if "'" not in expression and '"' not in expression:
        expression = _THOUSANDS.sub("", expression)
    if _KNOWN.sub("", expression):
        return None
    try:
        value = _number(ast.parse(expression, mode="eval").body)
    except (SyntaxError, _RefusedError, ArithmeticError, RecursionError, MemoryError, ValueError):
        return None
    return _text(value)


def _number(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_number(left), _number(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_number(operand))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as part)],
            keywords=[],
        ):
            return text.count(part)
    raise _RefusedError


def _text(value: Number) -> str | None:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        text = f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.12g}"
        text = "0" if text == "-0" else text
    else:
        text = str(value)
    return text if len(text) <= MAX_RESULT else None

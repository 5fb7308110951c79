"""Word problems in GSM8K's format: a solution with `<<expression=result>>` marks and `#### number`.

Knows nothing of tokens. Each mark becomes a calculator call and its output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nanochat.errors import DataError
from nanochat.tasks.problem import (
    Conversation,
    Part,
    Problem,
    assistant,
    conversation,
    python,
    python_output,
    text,
    user,
)

_MARK = re.compile(r"<<([^<>]*)>>")
_FINAL = re.compile(r"####\s*(-?[\d.,]*\d)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def parts(solution: str) -> list[Part]:
    """Return the solution as text, python and python_output parts, in order."""
    made: list[Part] = []
    for index, piece in enumerate(_MARK.split(solution)):
        if index % 2:
            expression, _, result = piece.rpartition("=")
            made += [python(expression), python_output(result)]
        elif piece:
            made.append(text(piece))
    return made


def final_number(answer: str) -> str | None:
    """Return the number behind `####`, else the last number of the text, without thousands separators."""
    marked = _FINAL.search(answer)
    if marked:
        return _canonical(marked.group(1))
    found = _NUMBER.findall(answer)
    return _canonical(found[-1]) if found else None


def _canonical(number: str) -> str:
    plain = number.replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def parse(row: Mapping[str, Any], *, where: str) -> Problem:
    """Return the problem in one line of `eval/gsm8k-*.jsonl`.

    Raises:
        DataError: a field is missing, or the solution has no final number.
    """
    try:
        question, solution = str(row["question"]), str(row["answer"])
    except KeyError as error:
        raise DataError(f"{where}: not a word problem: no field {error}") from error
    if not (marked := _FINAL.search(solution)):
        raise DataError(f"{where}: `answer` has no `#### number`")
    return Problem(question.strip(), _canonical(marked.group(1)))


def train_conversation(row: Mapping[str, Any]) -> Conversation:
    """Return question and solution with its calculator calls."""
    return conversation(user(str(row["question"]).strip()), assistant(*parts(str(row["answer"]))))

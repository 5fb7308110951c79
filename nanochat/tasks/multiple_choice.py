"""Multiple-choice questions as a user's message and a one-letter answer.

Knows nothing of logits. The letter stands behind its choice with no space between:
small models bind it better, and `=A` splits into `=` and the very token that answers.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from nanochat.errors import DataError
from nanochat.tasks.problem import Choice, Conversation, assistant, conversation, user

LETTERS = string.ascii_uppercase


def parse(row: Mapping[str, Any], *, where: str) -> Choice:
    """Return the problem in one line of an `eval/*.jsonl` file.

    Raises:
        DataError: a field is missing, or the answer is not one of the choices.
    """
    try:
        choices = tuple(str(choice) for choice in row["choices"])
        problem = Choice(str(row["question"]), choices, int(row["answer"]), row.get("subject"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a multiple-choice problem: {error}") from error
    if not 2 <= len(choices) <= len(LETTERS) or not 0 <= problem.answer < len(choices):
        raise DataError(f"{where}: `answer` is {problem.answer} with {len(choices)} choices")
    return problem


def letters(problem: Choice) -> str:
    """Return the letters of the choices, e.g. `ABCD`."""
    return LETTERS[: len(problem.choices)]


def ask(problem: Choice) -> str:
    """Return the user's message."""
    lines = [problem.question.strip()]
    lines += [
        f"- {choice.strip()}={letter}" for choice, letter in zip(problem.choices, LETTERS, strict=False)
    ]
    return "\n".join([*lines, "", "Which one is right? Reply with its letter alone."])


def train_conversation(problem: Choice) -> Conversation:
    """Return the problem with its right letter as the whole answer."""
    return conversation(user(ask(problem)), assistant(LETTERS[problem.answer]))

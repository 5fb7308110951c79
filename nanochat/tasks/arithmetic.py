"""Sums, differences and products that are solved with the calculator tool.

Knows nothing of tokens or of the calculator itself. A pair of operands belongs to
training or to evaluation by the hash of the unordered pair, whatever the operator,
so no held-out pair is ever trained in either order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.tasks.problem import (
    Conversation,
    Message,
    Problem,
    assistant,
    conversation,
    python,
    python_output,
    user,
)
from nanochat.tasks.stable import fraction, stream

LOWEST, HIGHEST = 10, 999
HELD_OUT = 0.1  # share of the pairs
OPERATORS = ("+", "-", "*")
_SIGNS = {"+": ("+",), "-": ("-",), "*": ("x", "*", "×")}
_WORDS = {"+": ("plus",), "-": ("minus",), "*": ("times", "multiplied by")}

SEEN = (
    "What is {a} {sign} {b}?",
    "Calculate {a} {word} {b}.",
    "How much is {a} {word} {b}?",
)
"""The canonical phrasings that training holds too."""
UNSEEN = (
    "Can you work out {a} {sign} {b} for me?",
    "I need the result of {a} {word} {b}, please.",
)
"""The canonical phrasings that are never trained."""
CANONICAL = SEEN + UNSEEN
TRAINED = (
    *SEEN,
    "{a} {sign} {b}",
    "{a} {sign} {b} = ?",
    "{a} {word} {b}?",
    "{a}{sign}{b}",
    "What's {a}{sign}{b}?",
    "What is {a} {word} {b}?",
    "Compute {a} {sign} {b}.",
    "Please compute {a} {word} {b}.",
    "Work out {a} {word} {b}.",
    "Solve {a} {sign} {b} for me.",
    "Tell me {a} {word} {b}, please.",
    "Can you calculate {a} {sign} {b}?",
    "Can you tell me what {a} {word} {b} is?",
    "Could you do this for me: {a} {sign} {b}",
    "Give me the result of {a} {sign} {b}.",
    "I want to know {a} {word} {b}.",
    "I need to know how much {a} {sign} {b} is.",
    "My homework asks for {a} {word} {b}. What is the answer?",
    "Use your calculator: {a} {sign} {b}",
    "Do you know how much {a} {word} {b} is?",
    "Help me with {a} {sign} {b}, please.",
    "Hello! How much is {a} {sign} {b}?",
)


@dataclass(frozen=True, slots=True)
class Sum:
    """Two operands and one of `+`, `-`, `*`."""

    left: int
    operator: str
    right: int

    @property
    def expression(self) -> str:
        """What the calculator is given, e.g. `347*58`."""
        return f"{self.left}{self.operator}{self.right}"

    @property
    def result(self) -> int:
        """The value of the expression."""
        if self.operator == "+":
            return self.left + self.right
        return self.left - self.right if self.operator == "-" else self.left * self.right

    def ask(self, phrasing: str, *, sign: str | None = None, word: str | None = None) -> str:
        """Return the question; without `sign` and `word` the first spelling of the operator is used."""
        return phrasing.format(
            a=self.left,
            b=self.right,
            sign=sign or _SIGNS[self.operator][0],
            word=word or _WORDS[self.operator][0],
        )


def is_held_out(left: int, right: int) -> bool:
    """Say whether this pair, in either order, is kept for evaluation."""
    return fraction("arithmetic", min(left, right), max(left, right)) < HELD_OUT


def answer(task: Sum) -> Message:
    """Return the assistant's turn: the calculator call, its output, one sentence with the result."""
    return assistant(
        python(task.expression), python_output(str(task.result)), f"The answer is {task.result}."
    )


def _operand(rng: random.Random) -> int:
    """Draw an operand; two-digit numbers, 9% of the range, get a third, else they are never learnt."""
    return rng.randint(LOWEST, 99) if rng.random() < 0.25 else rng.randint(LOWEST, HIGHEST)


def _sums(rng: random.Random, *, held_out: bool) -> Iterator[Sum]:
    while True:
        draw = _uniform if held_out else _operand
        left, right = draw(rng), draw(rng)
        if is_held_out(left, right) == held_out:
            yield Sum(left, rng.choice(OPERATORS), right)


def _uniform(rng: random.Random) -> int:
    return rng.randint(LOWEST, HIGHEST)


def _turn(task: Sum, rng: random.Random) -> list[Message]:
    question = task.ask(
        rng.choice(TRAINED), sign=rng.choice(_SIGNS[task.operator]), word=rng.choice(_WORDS[task.operator])
    )
    return [user(question.lower() if rng.random() < 0.15 else question), answer(task)]


def train_conversations(count: int, *, seed: int | str) -> list[Conversation]:
    """Return `count` conversations of training pairs; one in eight asks two sums."""
    rng = stream("arithmetic", "train", seed)
    sums = _sums(rng, held_out=False)
    made = []
    for _ in range(count):
        messages = _turn(next(sums), rng)
        if rng.random() < 1 / 8:
            messages += _turn(next(sums), rng)
        made.append(conversation(*messages))
    return made


def held_out_problems(count: int, *, seed: int = 0) -> list[Problem]:
    """Return `count` problems of held-out pairs, uniform operands, the five canonical phrasings in turn."""
    sums = _sums(stream("arithmetic", "test", seed), held_out=True)
    problems = []
    for index in range(count):
        task = next(sums)
        question = task.ask(CANONICAL[index % len(CANONICAL)])
        problems.append(Problem(question, str(task.result), task.expression))
    return problems

"""Problems answered in free text: generated in one batch by the engine, greedily, and compared.

Knows nothing of files or of how the engine works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from nanochat.chat import render_prompt
from nanochat.engine.request import Completion, SamplingParams
from nanochat.evals.scores import Score
from nanochat.tasks.gsm8k import final_number
from nanochat.tasks.identity import NAME
from nanochat.tasks.problem import Conversation, Problem, questions, user
from nanochat.tasks.stable import fraction, normalise
from nanochat.tokenizer import Tokenizer


class Generator(Protocol):
    """The part of `Engine` that evaluation needs."""

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """Complete each prompt; in order."""
        ...


def answers(
    engine: Generator, tokenizer: Tokenizer, asked: Sequence[str], *, context: int, max_tokens: int
) -> list[Completion]:
    """Ask each question in a conversation of its own, greedily.

    A question that leaves no room in the context is answered by nothing.
    """
    prompts = [render_prompt(tokenizer, [user(question)]) for question in asked]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < context]
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    made = engine.generate([prompts[index] for index in fitting], params) if fitting else []
    result = [Completion() for _ in prompts]
    for index, completion in zip(fitting, made, strict=True):
        result[index] = completion
    return result


def tool_solved(problem: Problem, completion: Completion) -> bool:
    """Say whether the calculator ran on the right expression and its result stands in the answer."""
    wanted = (problem.expression or "").replace(" ", "")
    ran = any(call.expression.replace(" ", "") == wanted for call in completion.tool_calls)
    return ran and numeric(problem, completion)


def numeric(problem: Problem, completion: Completion) -> bool:
    """Say whether the answer's final number is the right one."""
    return final_number(completion.text) == problem.answer


def spelled(problem: Problem, completion: Completion) -> bool:
    """Say whether the answer is right: the count by its number, a spelling by its letters."""
    if problem.expression is not None:
        return numeric(problem, completion)
    return problem.answer in completion.text.lower()


JUDGES: dict[str, Callable[[Problem, Completion], bool]] = {
    "arithmetic": tool_solved,
    "spelling": spelled,
}
"""How a task's answers are judged; word problems, all others, by their final number."""


def score(task: str, problems: Sequence[Problem], completions: Sequence[Completion]) -> Score:
    """Judge each completion by the task's rule; guessing gets nothing."""
    judge = JUDGES.get(task, numeric)
    right = sum(judge(problem, done) for problem, done in zip(problems, completions, strict=True))
    return Score(task, right, len(problems), 0.0)


def identity_questions(identity: Sequence[Conversation], count: int) -> list[str]:
    """Return `count` different opening questions of the identity data, "Who are you?" before all others."""
    opening = dict.fromkeys(asked[0] for chat in identity if len(asked := questions(chat)) == 1)

    def order(text: str) -> tuple[bool, bool, float]:
        return normalise(text) != "who are you", not text.endswith("?"), fraction("identity", text)

    return sorted(opening, key=order)[:count]


def knows_itself(answer: str, identity: Sequence[Conversation]) -> bool:
    """Say whether an answer comes from the identity data: it holds the name, or most of a trained answer."""
    words = set(normalise(answer).split())
    if not words:
        return False
    trained = [
        set(normalise(str(chat["messages"][1]["content"])).split())
        for chat in identity
        if len(chat["messages"]) > 1 and questions(chat)
    ]
    named = any(NAME in said for said in trained) and NAME in words
    return named or any(_overlap(words, said) >= 0.6 for said in trained)


def identity_score(identity: Sequence[Conversation], completions: Sequence[Completion]) -> Score:
    """Return how many answers come from the identity data; its questions are trained ones."""
    right = sum(knows_itself(done.text, identity) for done in completions)
    return Score("identity", right, len(completions), 0.0)


def ends_turn_score(completions: Sequence[Completion]) -> Score:
    """Return how many answers ended by themselves before the limit of tokens."""
    right = sum(done.finish_reason == "stop" for done in completions)
    return Score("ends_turn", right, len(completions), 0.0)


def _overlap(a: set[str], b: set[str]) -> float:
    """Return the F1 of two sets of words."""
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0

"""What counts as a right answer, and which questions reach the engine."""

from __future__ import annotations

import pytest

from nanochat.engine.request import Completion, ToolCall
from nanochat.evals import generative
from nanochat.tasks import identity
from nanochat.tasks.problem import Problem, assistant, conversation, user

SUM = Problem("What is 347 x 58?", "20126", "347*58")


def answer(text, *calls, finish="stop"):
    return Completion(text=text, tool_calls=[ToolCall(*call) for call in calls], finish_reason=finish)


@pytest.mark.parametrize(
    ("made", "right"),
    [
        (answer("The answer is 20126.", ("347*58", "20126")), True),
        (answer("The answer is 20,126.", ("347 * 58", "20126")), True),
        (answer("The answer is 20126."), False),  # guessed without the tool
        (answer("The answer is 20126.", ("34*758", "25772")), False),  # another expression
        (answer("The answer is 2012.", ("347*58", "20126")), False),  # its result is not told
        (answer("", ("347*58", "20126")), False),
    ],
)
def test_a_sum_counts_only_with_the_right_call_and_its_result_told(made, right):
    assert generative.tool_solved(SUM, made) is right
    assert generative.score("arithmetic", [SUM], [made]).correct == right


@pytest.mark.parametrize(
    ("problem", "text", "right"),
    [
        (Problem("Spell bread", "b-r-e-a-d"), "b-r-e-a-d.", True),
        (Problem("Spell bread", "b-r-e-a-d"), "B-R-E-A-D", True),
        (Problem("Spell bread", "b-r-e-a-d"), "bread", False),
        (Problem("How many r in bread?", "1", "'bread'.count('r')"), "The answer is 1.", True),
        (Problem("How many r in bread?", "1", "'bread'.count('r')"), "The answer is 11.", False),
    ],
)
def test_spelling_is_judged_by_letters_and_counting_by_its_number(problem, text, right):
    assert generative.score("spelling", [problem], [answer(text)]).correct == right


def test_word_problems_are_judged_by_their_final_number_whatever_the_set_is_called():
    problem = Problem("How many?", "18")
    for task in ("gsm8k", "gsm8k_264"):
        assert generative.score(task, [problem], [answer("16 - 3 = 13\n#### 18")]).correct == 1
        assert generative.score(task, [problem], [answer("no idea")]).correct == 0


@pytest.mark.parametrize(
    ("text", "knows"),
    [
        ("I am nanochat, a small model.", True),
        ("I can chat, answer simple questions, and spell words.", True),
        ("I am going to the store with my friends.", False),
        ("", False),
    ],
)
def test_the_model_knows_itself_when_the_answer_comes_from_the_identity_data(text, knows):
    assert generative.knows_itself(text, identity.conversations()) is knows


def test_a_users_own_identity_is_judged_by_its_own_answers():
    own = [conversation(user("Who are you?"), assistant("My name is Ada and I count things."))]
    assert generative.knows_itself("My name is Ada, I count things", own)
    assert not generative.knows_itself("I am nanochat.", own)
    assert generative.identity_questions(own, 5) == ["Who are you?"]


def test_who_are_you_is_asked_first():
    asked = generative.identity_questions(identity.conversations(), 10)
    assert len(set(asked)) == 10
    assert asked[0] == "Who are you?"


def test_answers_that_did_not_end_by_themselves_are_counted():
    made = [answer("yes"), answer("and then and then", finish="length"), Completion()]
    assert generative.ends_turn_score(made).accuracy == pytest.approx(1 / 3)
    assert generative.identity_score(identity.conversations(), made).total == 3

"""Multiple choice and word problems: what the user is shown, what the assistant says."""

from __future__ import annotations

import pytest

from nanochat.errors import DataError
from nanochat.tasks import gsm8k, multiple_choice
from nanochat.tasks.problem import Choice


def test_the_letter_stands_directly_behind_its_choice():
    problem = Choice("Which is a fruit?", ("stone", "apple", "chair"), 1)
    lines = multiple_choice.ask(problem).splitlines()
    assert lines[0] == "Which is a fruit?"
    assert [line[-2:] for line in lines[1:4]] == ["=A", "=B", "=C"]
    assert multiple_choice.train_conversation(problem)["messages"][1]["content"] == "B"
    assert multiple_choice.letters(problem) == "ABC"


def test_marks_become_calculator_calls():
    solution = "She sells 16 - 3 = <<16-3=13>>13 eggs.\n#### 13"
    assert gsm8k.parts(solution) == [
        {"type": "text", "text": "She sells 16 - 3 = "},
        {"type": "python", "text": "16-3"},
        {"type": "python_output", "text": "13"},
        {"type": "text", "text": "13 eggs.\n#### 13"},
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", "1234"),
        ("so 5 and then\n#### -7", "-7"),
        ("The answer is 42.", "42"),
        ("It costs 3.50 dollars", "3.5"),
        ("#### 10.00", "10"),
        ("from 3 to 1,000,000.", "1000000"),
        ("no number", None),
    ],
)
def test_the_final_number_is_the_marked_or_the_last_one(text, number):
    assert gsm8k.final_number(text) == number


def test_a_solution_without_a_final_number_is_refused():
    with pytest.raises(DataError, match="gsm8k line 3: `answer` has no `#### number`"):
        gsm8k.parse({"question": "q", "answer": "five"}, where="gsm8k line 3")

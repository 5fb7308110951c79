"""The scripts that measure the bars: what they count, and that they cut text as the evaluation does."""

from __future__ import annotations

import pytest

from nanochat.evals.bpb import IGNORED, windows
from nanochat.tasks.arithmetic import CANONICAL, UNSEEN
from nanochat.tasks.problem import Problem
from tests.bench import arithmetic, bpb


@pytest.mark.parametrize(
    ("answer", "text", "runs", "right"),
    [
        ("20126", "The answer is 20126.", [("347*58", "20126")], True),
        ("20126", "20126", [("34*58", "1972"), ("347 * 58", "20126")], True),
        ("20126", "The answer is 20126.", [], False),
        ("20126", "The answer is 20126.", [("347*85", "29495")], False),
        ("20126", "The answer is 20126.", [("347*58", None)], False),
        ("20126", "The answer is 201260.", [("347*58", "20126")], False),
        ("20126", "The answer is -20126.", [("347*58", "20126")], False),
        ("20126", "The answer is 20126.5", [("347*58", "20126")], False),
        ("-289", "It is -289.", [("347*58", "-289")], True),
        ("-289", "It is 289.", [("347*58", "-289")], False),
    ],
)
def test_a_sum_is_right_only_with_the_right_run_and_its_result_told(answer, text, runs, right):
    made = [{"expression": expression, "result": result} for expression, result in runs]
    problem = Problem("What is 347 x 58?", answer, "347*58")
    assert arithmetic.Answer(problem, CANONICAL[0], text, made).right is right


def test_a_hundred_sums_use_five_phrasings_alike_two_of_them_unseen():
    problems = arithmetic.held_out_problems(arithmetic.SUMS)
    assert len({problem.question for problem in problems}) == 100
    assert len({problem.expression for problem in problems}) == 100
    assert {problem.expression.strip("0123456789") for problem in problems} == {"+", "-", "*"}
    assert len(UNSEEN) == 2


@pytest.mark.parametrize("length", [1, 2, 9, 10, 40])
def test_both_ways_of_cutting_score_the_same_targets_in_the_same_context(length):
    ids = list(range(length))
    ours = [
        (target, len(window.inputs[: index + 1]))
        for window in windows(ids, 8, 4)
        for index, target in enumerate(window.targets)
        if target != IGNORED
    ]
    theirs = [
        (token, index + 1)
        for tokens, skip in bpb.pieces(ids, 8)
        for index, token in enumerate(tokens[1:])
        if index >= skip
    ]
    assert ours == theirs
    assert [target for target, _ in ours] == ids[1:]

"""No held-out question in training text: the finder against a brute-force search; word counting."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.overlap import RUN_WORDS, SHORTEST_WORDS, Overlap, frequent_words, normalise

QUESTION = "If a farmer has 12 hens and each hen lays 2 eggs a day, how many eggs are there in a week?"
SHORT = "Which gas do plants take in during the day?"


def brute_force(questions, text):
    words = normalise(text)
    for question in questions:
        wanted = normalise(question)
        length = min(len(wanted), RUN_WORDS)
        if length < SHORTEST_WORDS:
            continue
        for start in range(len(wanted) - length + 1):
            run = wanted[start : start + length]
            if any(words[i : i + length] == run for i in range(len(words) - length + 1)):
                return True
    return False


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (QUESTION, True),
        ("Before. " + QUESTION.upper().replace(",", " --") + " After.", True),
        ("farmer has 12 hens, and each hen lays 2 eggs, a day. How", True),
        ("farmer has 12 hens and each hen lays 2 eggs a day", False),
        ("a farmer has 13 hens and each hen lays 2 eggs a day how many eggs", False),
        ("Q: which gas do plants take in during the day -- oxygen?", True),
        ("which gas do plants take in during the night", False),
        ("", False),
    ],
)
def test_a_run_of_13_words_or_a_whole_short_question_is_found(text, found):
    overlap = Overlap([QUESTION, SHORT, "Too short to count?"])
    assert (overlap.find(text) is not None) is found


def test_the_run_that_was_found_is_named():
    assert Overlap([SHORT]).find("so, " + SHORT) == "which gas do plants take in during the day"


def test_questions_of_a_few_words_occur_by_chance_and_are_not_looked_for():
    assert Overlap(["What is a cell?"]).find("What is a cell? It is small.") is None
    assert Overlap([]).find_all(["anything"]) == {}


def test_a_run_does_not_reach_over_two_texts():
    words = normalise(SHORT)
    assert Overlap([SHORT]).find_all([" ".join(words[:5]), " ".join(words[5:])]) == {}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_the_finder_agrees_with_a_brute_force_search(seed):
    pick = random.Random(seed)
    vocabulary = ["a", "b", "c"][: pick.randint(1, 3)]
    questions = [" ".join(pick.choices(vocabulary, k=pick.randint(1, 20))) for _ in range(3)]
    texts = [" ".join(pick.choices([*vocabulary, "z"], k=pick.randint(0, 60))) for _ in range(6)]
    found = Overlap(questions).find_all(texts)
    assert {index for index in range(6) if brute_force(questions, texts[index])} == set(found)


def test_frequent_words_are_plain_lower_case_and_common():
    texts = ["The cat sat; cat's well-known café. cat! Cat catt", "sat sat cat catt Paris paris catt don't"]
    assert frequent_words(texts) == ["cat", "catt", "sat"]
    assert frequent_words(texts, known_from=texts[:1]) == ["cat", "catt", "sat"]
    assert frequent_words(texts, known_from=["a cat sat"]) == ["cat", "sat"]
    assert frequent_words(texts, minimum=4) == []
    assert frequent_words(["ab ab ab abcdefghijklm abcdefghijklm abcdefghijklm"]) == []

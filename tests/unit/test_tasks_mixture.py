"""Training mixtures: disjoint from what evaluation asks, the same everywhere, in the table's shares."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from nanochat.errors import DataError
from nanochat.tasks import arithmetic, identity, mixture, multiple_choice, spelling
from nanochat.tasks.problem import questions
from nanochat.tasks.stable import fraction, normalise, stream

TINY = SimpleNamespace(preset="tiny")
SMOKE = SimpleNamespace(preset="smoke")


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def dataset(tmp_path):
    def quiz(name, size):
        return [
            {
                "question": f"{name} question {i}?",
                "choices": ["a", "b", "c", "d"],
                "answer": i % 4,
                "subject": None,
            }
            for i in range(size)
        ]

    lines(tmp_path / "chat" / "mc-train.jsonl", quiz("train", 60))
    lines(tmp_path / "eval" / "arc_easy-test.jsonl", quiz("test", 50))
    word = [
        {"question": f"Word problem {i}?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(30)
    ]
    lines(tmp_path / "eval" / "gsm8k-test.jsonl", word)
    for task in ("chitchat", "wiki_qa", "unlisted"):
        chats = [
            {
                "messages": [
                    {"role": "user", "content": f"{task} {i}"},
                    {"role": "assistant", "content": "yes"},
                ]
            }
            for i in range(40)
        ]
        lines(tmp_path / "chat" / f"{task}-train.jsonl", chats)
    return tmp_path


def test_no_held_out_question_occurs_in_the_training_mixtures(dataset):
    held = mixture.held_out(dataset, limit=500)
    asked = {normalise(multiple_choice.ask(p)) for problems in held.choice.values() for p in problems}
    asked |= {normalise(p.question) for problems in held.generative.values() for p in problems}
    trained = {
        normalise(question)
        for chats in (
            mixture.mid_conversations(dataset, seed=42, spec=TINY),
            mixture.sft_conversations(dataset, seed=42, spec=TINY),
        )
        for chat in chats
        for question in questions(chat)
    }
    assert len(asked) > 500
    assert not asked & trained


def test_a_held_out_pair_is_never_trained_in_either_order():
    pairs = set()
    for seed in (1, -1, "mid:42"):
        for chat in arithmetic.train_conversations(3000, seed=seed):
            for message in chat["messages"][1::2]:
                left, right = map(
                    int, message["content"][0]["text"].replace("*", "+").replace("-", "+").split("+")
                )
                pairs |= {(left, right), (right, left)}
    for problem in arithmetic.held_out_problems(500):
        left, right = map(int, problem.expression.replace("*", "+").replace("-", "+").split("+"))
        assert (left, right) not in pairs
        assert arithmetic.is_held_out(right, left)


def test_two_of_the_five_canonical_phrasings_are_never_trained():
    shapes = {phrasing.format(a="A", b="B", sign="S", word="S") for phrasing in arithmetic.TRAINED}
    unseen = [p for p in arithmetic.CANONICAL if p.format(a="A", b="B", sign="S", word="S") not in shapes]
    assert len(arithmetic.CANONICAL) == 5
    assert unseen == list(arithmetic.UNSEEN)
    assert len(arithmetic.TRAINED) >= 15


def test_every_answer_calls_the_calculator_and_repeats_its_result():
    for chat in arithmetic.train_conversations(500, seed=0):
        for message in chat["messages"][1::2]:
            call, output, said = message["content"]
            assert str(eval(call["text"])) == output["text"]  # noqa: S307 our own digits
            assert output["text"] in said["text"]
            assert [part["type"] for part in message["content"]] == ["python", "python_output", "text"]


def test_words_are_split_by_hash_and_answers_spell_and_count_them():
    trained = spelling.train_conversations(spelling.FALLBACK, 3000, seed=1)
    text = " ".join(q for chat in trained for q in questions(chat))
    held = [word for word in spelling.FALLBACK if spelling.is_held_out(word)]
    assert held
    assert not set(held) & set(normalise(text).split())
    problems = spelling.held_out_problems(spelling.FALLBACK, 100)
    assert len(problems) == min(100, len(held))
    for problem in problems:
        assert problem.expression is None or str(eval(problem.expression)) == problem.answer  # noqa: S307


@pytest.mark.parametrize("make", [mixture.mid_conversations, mixture.sft_conversations])
def test_a_mixture_is_a_pure_function_of_dataset_preset_and_seed(dataset, make):
    assert make(dataset, seed=1, spec=SMOKE) == make(dataset, seed=1, spec=SMOKE)
    assert make(dataset, seed=1, spec=SMOKE) != make(dataset, seed=2, spec=SMOKE)


def test_a_task_that_the_dataset_lacks_is_left_out_and_one_the_table_lacks_goes_in_once(dataset):
    chats = mixture.mid_conversations(dataset, seed=1, spec=TINY)
    firsts = Counter(questions(chat)[0].split(" ")[0] for chat in chats)
    shares = {share.task: share for share in mixture.MID["tiny"]}
    assert firsts["chitchat"] == shares["chitchat"].count
    assert firsts["unlisted"] == 40
    assert firsts["generated_chat"] == 0
    who = sum(questions(chat)[0] == "Who are you?" for chat in chats)
    assert who >= shares["identity"].epochs


def test_the_users_own_identity_replaces_the_built_in_one(dataset):
    own = {"messages": [{"role": "user", "content": "Name?"}, {"role": "assistant", "content": "I am Ada."}]}
    lines(dataset / "chat" / "identity.jsonl", [own])
    assert mixture.identity_conversations(dataset) == [own]
    assert own in mixture.sft_conversations(dataset, seed=1, spec=TINY)


def test_identity_is_varied_and_names_the_model():
    chats = identity.conversations()
    assert 300 <= len(chats) <= 400
    assert len({json.dumps(chat) for chat in chats}) > 330
    assert sum(identity.NAME in json.dumps(chat) for chat in chats) > 150


def test_evaluation_takes_a_fixed_sample_of_each_task(dataset):
    held = mixture.held_out(dataset, limit=10)
    assert {name: len(rows) for name, rows in held.choice.items()} == {"arc_easy": 10}
    assert {name: len(rows) for name, rows in held.generative.items()} == {
        "gsm8k_30": 10,
        "spelling": 10,
        "arithmetic": 10,
    }
    assert held == mixture.held_out(dataset, limit=10)
    assert len(mixture.held_out(dataset, limit=None).generative["arithmetic"]) == mixture.SYNTHETIC


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "line 1: `answer` is 2 with 2 choices"),
        ('{"question": "q"}', "line 1: not a multiple-choice problem"),
        ("[1]", "line 1 is not a JSON object"),
        ("{", "line 1 is not valid JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, row, message):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mmlu-test.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match=r"mmlu-test\.jsonl") as caught:
        mixture.held_out(tmp_path, limit=5)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["chitchat-train", "identity"])
def test_a_malformed_conversation_is_named(dataset, name):
    with (dataset / "chat" / f"{name}.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "assistant", "content": "hello"}]}\n')
    with pytest.raises(DataError, match=r"line \d+: messages\[0\]\.role is 'assistant'"):
        mixture.mid_conversations(dataset, seed=1, spec=TINY)


def test_streams_of_opposite_seeds_differ():
    assert stream("t", 1).random() != stream("t", -1).random()
    assert fraction("a", "bc") != fraction("ab", "c")

"""Multiple choice with a model that is told what to like: prompts, letters, batches, chance."""

from __future__ import annotations

import pytest
import torch

from nanochat.evals import choice
from nanochat.tasks import multiple_choice
from nanochat.tasks.problem import Choice
from nanochat.tokenizer import Tokenizer

PROBLEMS = [
    Choice("Which is a fruit?", ("stone", "apple", "chair", "wind"), 1),
    Choice("Yes or no?", ("yes", "no"), 0),
    Choice("Which number is the largest of all " + "these many " * 40 + "?", ("1", "2", "3"), 2),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([multiple_choice.ask(problem) for problem in PROBLEMS], 400)


class Likes(torch.nn.Module):
    """Likes the letter that `wanted` gives for each prompt, and a token that is no choice even more."""

    def __init__(self, tokenizer, wanted):
        super().__init__()
        self.tokenizer, self.wanted, self.rows = tokenizer, wanted, []

    def forward(self, ids):
        self.rows.append(len(ids))
        logits = torch.zeros(*ids.shape, self.tokenizer.vocab_size)
        logits[..., self.tokenizer.encode("Z")[0]] = 9.0
        for row, tokens in enumerate(ids.tolist()):
            last = max(
                i for i, token in enumerate(tokens) if token == self.tokenizer.special("assistant_start")
            )
            question = self.tokenizer.decode(tokens)
            letter = next(letter for key, letter in self.wanted.items() if key in question)
            logits[row, last, self.tokenizer.encode(letter)[0]] = 5.0
        return logits


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_the_likeliest_letter_among_the_choices_is_chosen_whatever_the_batch(tokenizer, batch_tokens):
    model = Likes(tokenizer, {"fruit": "B", "Yes or no": "A", "largest": "C"})
    chosen = choice.choose(model, tokenizer, PROBLEMS, seq_len=2048, batch_tokens=batch_tokens)
    assert chosen == [1, 0, 2]
    assert sum(model.rows) == 3
    assert choice.score("quiz", PROBLEMS, chosen).correct == 3


def test_a_prompt_longer_than_the_context_keeps_its_choices(tokenizer):
    ids = choice.prompt_ids(tokenizer, PROBLEMS[2], 64)
    assert len(ids) == 64
    assert ids[0] == tokenizer.bos
    assert "=C" in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.special("assistant_start")


def test_chance_is_the_mean_over_problems_with_their_own_numbers_of_choices():
    made = choice.score("quiz", PROBLEMS, [0, 0, 0])
    assert made.correct == 1
    assert made.chance == pytest.approx((1 / 4 + 1 / 2 + 1 / 3) / 3)


def test_letters_are_single_tokens(tokenizer):
    assert len(choice.letter_ids(tokenizer, "ABCDEFGH")) == 8

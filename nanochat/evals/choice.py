"""Multiple choice: which letter the model finds likeliest as the first token of its answer.

Knows nothing of files or of how problems are worded.

B rows of a batch, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from nanochat.chat import render_prompt
from nanochat.errors import ConfigError
from nanochat.evals.bpb import default_batch_tokens
from nanochat.evals.scores import Score
from nanochat.tasks.multiple_choice import ask, letters
from nanochat.tasks.problem import Choice, user
from nanochat.tokenizer import Tokenizer


class LogitsModel(Protocol):
    """The part of `GPT` that choosing needs."""

    def __call__(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits_BTV."""
        ...


def prompt_ids(tokenizer: Tokenizer, problem: Choice, seq_len: int) -> list[int]:
    """Return the prompt's tokens, ending where the letter is due.

    One that is longer than the context loses the beginning of its question: the choices stay.
    """
    ids = render_prompt(tokenizer, [user(ask(problem))])
    head = 2  # bos, user_start
    return ids if len(ids) <= seq_len else ids[:head] + ids[len(ids) - seq_len + head :]


def letter_ids(tokenizer: Tokenizer, names: str) -> list[int]:
    """Return the token of each letter.

    Raises:
        ConfigError: a letter is not a single token (the 256 byte tokens make that impossible for A to Z).
    """
    ids = [tokenizer.encode(name) for name in names]
    if bad := [name for name, token in zip(names, ids, strict=True) if len(token) != 1]:
        raise ConfigError(f"tokenizer: the letter `{bad[0]}` is not a single token")
    return [token[0] for token in ids]


def choose(
    model: LogitsModel,
    tokenizer: Tokenizer,
    problems: Sequence[Choice],
    *,
    seq_len: int,
    device: torch.device | str = "cpu",
    batch_tokens: int | None = None,
) -> list[int]:
    """Return the index of the choice whose letter is likeliest, for each problem.

    Problems of similar length share a batch, padded on the right, where a causal model does not see it.
    """
    prompts = [prompt_ids(tokenizer, problem, seq_len) for problem in problems]
    order = sorted(range(len(problems)), key=lambda index: -len(prompts[index]))
    chosen = [0] * len(problems)
    while order:
        width = len(prompts[order[0]])
        rows = max(1, (batch_tokens or default_batch_tokens(device)) // width)
        batch, order = order[:rows], order[rows:]
        ids_BT = torch.tensor([prompts[index] + [0] * (width - len(prompts[index])) for index in batch])
        with torch.inference_mode():
            logits_BTV = model(ids_BT.to(device))
        for row, index in enumerate(batch):
            names = letter_ids(tokenizer, letters(problems[index]))
            last_V = logits_BTV[row, len(prompts[index]) - 1]
            chosen[index] = int(last_V[names].argmax())
    return chosen


def score(task: str, problems: Sequence[Choice], chosen: Sequence[int]) -> Score:
    """Compare with the right answers; chance is the mean of one over the number of choices."""
    correct = sum(problem.answer == choice for problem, choice in zip(problems, chosen, strict=True))
    chance = sum(1 / len(problem.choices) for problem in problems) / len(problems) if problems else 0.0
    return Score(task, correct, len(problems), chance)

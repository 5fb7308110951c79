"""Samples are what the plain forward pass would pick, token by token."""

from __future__ import annotations

import pytest
import torch

from nanochat.gpt import GPT
from nanochat.shape import Shape
from nanochat.train.samples import greedy


@pytest.fixture(scope="module")
def model():
    shape = Shape(depth=2, width=128, heads=1, kv_heads=1, vocab_size=64, seq_len=32)
    model = GPT(shape)
    model.init_weights(3)
    with torch.no_grad():  # zero output projections and near-zero logits would repeat one id
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return model


def plain(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_prompts_of_different_lengths_share_a_batch_and_change_nothing(model):
    prompts = [[1, 2, 3], [9], [4, 5, 6, 7, 8, 9, 10]]
    wanted = [plain(model, prompt, 12) for prompt in prompts]
    assert greedy(model, prompts, stop=(), max_tokens=12) == wanted


def test_a_sample_ends_at_a_stop_id_and_at_the_end_of_the_context(model):
    wanted = plain(model, [1, 2, 3], 12)
    stop = wanted[4]
    [cut] = greedy(model, [[1, 2, 3]], stop={stop}, max_tokens=12)
    assert cut == wanted[: wanted.index(stop)]
    [full] = greedy(model, [[1] * 30], stop=(), max_tokens=12)
    assert len(full) == 2
    [long] = greedy(model, [[1] * 100], stop=(), max_tokens=12)
    assert len(long) == 1


def test_no_prompts_give_no_samples(model):
    assert greedy(model, [], stop=()) == []

"""Bits per byte: every byte once, whole documents, a known model's exact value."""

from __future__ import annotations

import math

import pytest
import torch

from nanochat.evals.bpb import IGNORED, BitsPerByte, batches, bits_per_byte, windows
from nanochat.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat. " * 20, "", "short", "naïve 你好 🙂 " * 9, "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


class Uniform:
    """Gives every id the same probability."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size
        self.widest = 0

    def __call__(self, ids, targets, *, reduction):
        assert reduction == "sum"
        assert ids.shape == targets.shape
        self.widest = max(self.widest, ids.shape[1])
        return (targets != IGNORED).sum() * math.log(self.vocab_size)


@pytest.mark.parametrize("seq_len", [2, 7, 16, 64, 1000])
@pytest.mark.parametrize("stride", [1, 5, None])
def test_a_uniform_model_needs_log2_v_bits_a_token(tokenizer, seq_len, stride):
    model = Uniform(tokenizer.vocab_size)
    stride = min(stride or max(1, seq_len // 2), seq_len)
    made = bits_per_byte(model, tokenizer, TEXTS, seq_len=seq_len, stride=stride, batch_tokens=128)
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert made.tokens == tokens
    assert made.utf8_bytes == sum(len(text.encode()) for text in TEXTS)
    assert made.documents == 4
    assert made.value == pytest.approx(tokens * math.log2(tokenizer.vocab_size) / made.utf8_bytes)
    assert model.widest <= seq_len


@pytest.mark.parametrize(
    ("length", "seq_len", "stride"), [(1, 4, 2), (2, 4, 2), (5, 4, 4), (23, 8, 4), (50, 8, 1)]
)
def test_every_token_is_a_target_once_with_enough_context(length, seq_len, stride):
    ids = list(range(100, 100 + length))
    seen = []
    for number, window in enumerate(windows(ids, seq_len, stride)):
        assert len(window.inputs) <= seq_len
        for index, (given, target) in enumerate(zip(window.inputs, window.targets, strict=True)):
            if target != IGNORED:
                assert target == given + 1
                assert number == 0 or index >= seq_len - stride
                seen.append(target)
    assert seen == ids[1:]


def test_batches_stay_within_their_tokens_longest_first():
    rows = [window for size in (3, 9, 5, 9, 1) for window in windows(list(range(size + 1)), 16, 8)]
    groups = list(batches(rows, 18))
    assert [len(row.inputs) for group in groups for row in group] == [9, 9, 5, 3, 1]
    assert all(len(group) * len(group[0].inputs) <= 18 for group in groups)


def test_padding_changes_nothing(tokenizer):
    class Positional(torch.nn.Module):
        def forward(self, ids, targets, *, reduction):
            loss = torch.cumsum(ids.float() / 97, 1).sin().abs()  # depends on what is to the left
            return torch.where(targets == IGNORED, 0.0, loss).sum()

    whole = bits_per_byte(Positional(), tokenizer, TEXTS, seq_len=32, batch_tokens=4096)
    single = sum(
        bits_per_byte(Positional(), tokenizer, [text], seq_len=32, batch_tokens=1).nats
        for text in TEXTS
        if text
    )
    assert whole.nats == pytest.approx(single, rel=1e-5)


def test_sources_add_up_and_nothing_is_infinite():
    a, b = BitsPerByte(10.0, 5, 3, 1), BitsPerByte(2.0, 7, 2, 1)
    assert (a + b).value == pytest.approx(12 / (math.log(2) * 12))
    assert BitsPerByte(0.0, 0, 0, 0).value == math.inf

"""Every row draws by its own parameters and numbers, and by nothing else."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from nanochat.engine.sampler import NUCLEUS, sample, uniform_stream
from tests.engine_fakes import request

V = 1000


def row(**params):
    return request(**params)


def logits(rows, seed=0, scale=3.0):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * scale


def tokens(logits_BV, rows):
    return [s.token for s in sample(logits_BV, rows)]


def test_greedy_rows_take_the_likeliest_token():
    x = logits(3)
    assert tokens(x, [row(temperature=0)] * 3) == x.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-300}, {"temperature": 1e-3}]
)
def test_the_narrowest_choice_is_greedy(params):
    x = logits(4)
    assert tokens(x, [row(seed=s, **params) for s in range(4)]) == x.argmax(-1).tolist()


MIXED = [
    {"temperature": 0},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "top_k": 40, "seed": 2},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "seed": 3},
    {"temperature": 0.9, "top_p": 0.8, "seed": 4},
    {"temperature": 2.0, "top_p": 0.99, "seed": 5},  # needs more candidates than NUCLEUS
    {"temperature": 1.0, "top_k": 5000, "seed": 6},
    {"temperature": 1.0, "top_k": 40, "seed": 7, "logprobs": 3},
]


def test_a_row_draws_the_same_alone_and_among_others():
    x = logits(len(MIXED), scale=1.0)
    together = [row(**p) for p in MIXED]
    alone = [row(**p) for p in MIXED]
    for step in range(20):
        mixed = tokens(x + step, together)
        assert mixed == [tokens(x[b : b + 1] + step, [r])[0] for b, r in enumerate(alone)]


def test_equal_logits_at_the_cut_do_not_make_a_row_depend_on_others():
    x = logits(3).round()  # many ties, as bf16 makes them
    params = [{"top_k": 7, "seed": 1}, {"top_k": 300, "seed": 2}, {"top_p": 0.9, "seed": 3}]
    together, alone = [row(**p) for p in params], [row(**p) for p in params]
    for _ in range(50):
        assert tokens(x, together) == [tokens(x[b : b + 1], [r])[0] for b, r in enumerate(alone)]


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 3}, 3),
        ({"top_k": 3, "top_p": 0.5}, 2),
        ({"top_p": 0.6}, 2),
        ({"top_p": 1.0}, 5),
    ],
)
def test_draws_follow_the_probabilities_of_the_allowed_tokens(params, allowed):
    p = torch.tensor([0.05, 0.4, 0.3, 0.2, 0.05])
    r = row(seed=11, temperature=1.0, **params)
    n = 4000
    counts = Counter(tokens(p.log()[None], [r])[0] for _ in range(n))
    order = sorted(range(5), key=lambda i: -p[i].item())[:allowed]
    mass = sum(p[i].item() for i in order)
    assert set(counts) == set(order)
    for i in order:
        q = p[i].item() / mass
        assert abs(counts[i] / n - q) < 4 * math.sqrt(q * (1 - q) / n)


def test_temperature_divides_the_logits():
    p = torch.tensor([[0.2, 0.8]])
    r = row(seed=5, temperature=2.0)
    share = sum(tokens(p.log(), [r])[0] for _ in range(4000)) / 4000
    assert abs(share - 2 / 3) < 0.03  # sqrt(.8) / (sqrt(.8) + sqrt(.2))


def test_a_wide_nucleus_falls_back_to_the_whole_row():
    x = torch.zeros(1, V)
    drawn = {tokens(x, [r])[0] for r in [row(top_p=0.99, seed=s) for s in range(600)]}
    assert len(drawn) > NUCLEUS


def test_impossible_tokens_are_never_drawn():
    x = torch.full((1, V), -math.inf)
    x[0, [3, 5]] = 0.0
    for params in ({}, {"top_k": 50}, {"top_p": 0.999}):
        assert {tokens(x, [row(seed=s, **params)])[0] for s in range(40)} == {3, 5}


def test_log_probabilities_are_raw_and_likeliest_first():
    x = logits(3)
    rows = [
        row(temperature=2.0, top_k=2, seed=1, logprobs=4),
        row(temperature=0),
        row(temperature=0, logprobs=0),
    ]
    got = sample(x, rows)
    expected = torch.log_softmax(x, -1)
    assert got[0].logprob == pytest.approx(expected[0, got[0].token].item())
    assert [i for i, _ in got[0].top] == x[0].topk(4).indices.tolist()
    assert [v for _, v in got[0].top] == pytest.approx(expected[0].topk(4).values.tolist())
    assert (got[1].logprob, list(got[1].top)) == (None, [])
    assert got[2].logprob == pytest.approx(expected[2].max().item())
    assert list(got[2].top) == []


def test_seeds_give_their_own_streams():
    def first(seed):
        stream = uniform_stream(seed)
        return [stream() for _ in range(4)]

    assert first(7) == first(7)
    assert len({tuple(first(s)) for s in (0, 1, -1, 2**63 - 1, 42)}) == 5
    assert all(0 <= u < 1 for u in first(3))
    assert np.mean([uniform_stream(s)() for s in range(500)]) == pytest.approx(0.5, abs=0.06)


def test_the_first_token_is_not_shared_by_the_rows():
    x = torch.zeros(16, V)
    assert len(set(tokens(x, [row(seed=s) for s in range(16)]))) > 8

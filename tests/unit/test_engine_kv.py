"""The pool's bookkeeping, and attention over it against the plain formula."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.attention import causal_attention
from nanochat.engine.kv import KVPool
from nanochat.errors import ConfigError
from nanochat.shape import Shape

HEADS, GROUPS, D = 4, 2, 8
SHAPE = Shape(depth=2, width=32, heads=HEADS, kv_heads=GROUPS, head_dim=D, vocab_size=64, seq_len=32)


def pool(slots=4, capacity=32):
    return KVPool(SHAPE, slots=slots, capacity=capacity)


def test_slots_are_lent_lowest_first_until_none_is_left():
    p = pool(slots=3)
    assert [p.acquire(8) for _ in range(4)] == [0, 1, 2, None]
    p.release(1)
    p.release(0)
    assert [p.acquire(8), p.acquire(8)] == [0, 1]


@given(st.lists(st.booleans(), max_size=60))
def test_free_and_used_are_always_total(choices):
    p = pool()
    held = []
    for take in choices:
        if take:
            slot = p.acquire(5)
            held += [] if slot is None else [slot]
        elif held:
            p.release(held.pop(0))
        assert p.intact(idle=not held)
        assert p.free_tokens + p.used_tokens == p.total_tokens == 128


def test_a_slot_that_is_still_held_when_idle_is_a_leak():
    p = pool()
    p.acquire(4)
    assert p.intact(idle=False)
    assert not p.intact(idle=True)


def test_a_slot_returned_twice_is_an_error():
    p = pool()
    p.release(p.acquire(1))
    with pytest.raises(KeyError):
        p.release(0)


def test_more_tokens_than_a_slot_holds_are_refused_not_dropped():
    with pytest.raises(ValueError, match="33 tokens do not fit a slot of 32"):
        pool().acquire(33)


@pytest.mark.parametrize(("slots", "capacity"), [(0, 32), (1, 1)])
def test_an_empty_pool_is_refused(slots, capacity):
    with pytest.raises(ConfigError):
        pool(slots, capacity)


@pytest.mark.parametrize("window", [0, 3, 7, 32])
@pytest.mark.parametrize("seed", range(4))
def test_any_schedule_of_chunks_gives_the_same_as_attention_over_the_whole(seed, window):
    p, choose = pool(), random.Random(seed)
    lengths = [choose.randint(1, 20) for _ in range(seed + 1)]
    slots = choose.sample(range(4), len(lengths))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        [torch.randn(1, n, heads, D, generator=generator) for n in lengths]
        for heads in (HEADS, GROUPS, GROUPS)
    )
    whole = [causal_attention(a, b, c, window=window) for a, b, c in zip(q, k, v, strict=True)]
    done = [0] * len(lengths)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        left = [b for b, n in enumerate(lengths) if done[b] < n]
        rows = choose.sample(left, choose.randint(1, len(left)))
        count = choose.randint(1, min(choose.choice([1, 6]), *(lengths[b] - done[b] for b in rows)))
        view = p.view([slots[b] for b in rows], [done[b] for b in rows], count)

        def batch(x, rows=rows, count=count):
            return torch.cat([x[b][:, done[b] : done[b] + count] for b in rows])

        for layer in range(SHAPE.depth):
            y = view.attend(layer, batch(q), batch(k), batch(v), window=window)
            assert torch.allclose(y, batch(whole), atol=2e-5, rtol=1e-4)
        for b in rows:
            done[b] += count


def test_what_rows_that_fill_a_batch_store_is_nobodys():
    p = pool(slots=1)
    q, k, v = (torch.randn(3, 1, n, D) for n in (HEADS, GROUPS, GROUPS))
    slot = p.acquire(4)
    y = p.view([slot, p.spare, p.spare], [0, 0, 0], 1).attend(0, q, k, v, window=32)
    assert torch.equal(y[:1], causal_attention(q[:1], k[:1], v[:1], window=32))
    assert p.release(slot) is None
    assert p.intact(idle=True)


def test_what_a_former_owner_left_is_never_read():
    p = pool(slots=1)
    p.k_L[0].fill_(50.0)
    p.v_L[0].fill_(1e4)
    q, k, v = (torch.randn(1, 3, n, D) for n in (HEADS, GROUPS, GROUPS))
    y = p.view([0], [0], 3).attend(0, q, k, v, window=32)
    assert torch.allclose(y, causal_attention(q, k, v, window=32), atol=1e-5)
    q, k, v = (torch.randn(1, 1, n, D) for n in (HEADS, GROUPS, GROUPS))
    assert p.view([0], [3], 1).attend(0, q, k, v, window=32).abs().max() < 100

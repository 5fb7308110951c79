"""Chat rows: nothing that fits is cut, every batch can be learnt from, at any T."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from nanochat.data.chat_packing import IGNORE, ChatBatches, Rendered
from nanochat.errors import DataError
from nanochat.settings import Topology

BOS, PROMPT, ANSWER = 1, 5, 9


def conversation(prompt: int, answer: int) -> tuple[list[int], list[int]]:
    return [BOS] + [PROMPT] * prompt + [ANSWER] * answer, [0] * (1 + prompt) + [1] * answer


def conversations(count: int, *, longest: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(seed)
    return [conversation(rng.randint(1, longest), rng.randint(1, longest)) for _ in range(count)]


def chat(items, *, seq_len, masked=True, rows=4, rank=0, world=1, position=None):
    rendered = Rendered(items, seq_len=seq_len, masked=masked)
    topology = Topology(rank=rank, world_size=world)
    return ChatBatches(
        rendered, seq_len=seq_len, rows_per_step=rows, topology=topology, seed=3, position=position
    )


@pytest.mark.parametrize("seq_len", [128, 512, 2048])
@pytest.mark.parametrize("longest", [20, 300, 5000])
@pytest.mark.parametrize("masked", [True, False])
def test_every_row_has_a_supervised_target_at_any_context(seq_len, longest, masked):
    """Contexts below 2,048 have given others batches of padding alone (NaN) or an endless search."""
    items = [*conversations(300, longest=longest), conversation(1, 5)]
    batches = chat(items, seq_len=seq_len, masked=masked)
    for _ in range(60):
        batch = next(batches)
        assert ((batch.targets != IGNORE).sum(axis=1) > 0).all()
        assert batch.supervised == (batch.targets != IGNORE).sum()


def test_one_conversation_longer_than_the_row_alone_is_truncated_and_used():
    batches = chat([conversation(10, 5000)], seq_len=128)
    batch = next(batches)
    assert (batch.inputs[:, 0] == BOS).all()
    assert batch.supervised == 4 * (128 - 10)


def test_conversations_with_nothing_to_learn_in_reach_are_left_out_and_counted():
    items = [conversation(500, 5), conversation(3, 3)]
    rendered = Rendered(items, seq_len=128, masked=True)
    assert (rendered.dropped, rendered.truncated, len(rendered.lengths)) == (1, 0, 1)
    unmasked = Rendered(items, seq_len=128, masked=False)
    assert (unmasked.dropped, unmasked.truncated, len(unmasked.lengths)) == (0, 1, 2)


@pytest.mark.parametrize("items", [[], [conversation(500, 5)], [([BOS], [0])]])
def test_nothing_to_learn_at_all_is_an_error_not_a_loop(items):
    with pytest.raises(DataError, match="supervised token within 129 tokens"):
        Rendered(items, seq_len=128, masked=True)


def test_a_conversation_that_fits_is_never_cropped_and_each_is_used_once_an_epoch():
    rng = random.Random(1)
    items = []
    for index in range(200):
        answer = rng.randint(1, 60)
        items.append(([BOS, *[100 + index] * answer], [0] + [1] * answer))
    batches = chat(items, seq_len=128, rows=1)
    seen: dict[int, int] = {}
    while batches.packer.position["epoch"] == 0:
        targets = next(batches).targets
        for token in targets[targets != IGNORE]:
            seen[int(token)] = seen.get(int(token), 0) + 1
    for index, (ids, _) in enumerate(items):
        assert seen[100 + index] % (len(ids) - 1) == 0
        assert seen[100 + index] > 0


def test_masked_targets_are_the_assistants_tokens_alone():
    batch = next(chat([conversation(3, 2)], seq_len=12, rows=1))
    assert batch.inputs[0].tolist() == [BOS, 5, 5, 5, 9, 9, BOS, 5, 5, 5, 9, 9]
    assert batch.targets[0].tolist() == [-1, -1, -1, 9, 9, -1, -1, -1, -1, 9, 9, -1]


def test_unmasked_targets_are_everything_but_padding():
    batch = next(chat([conversation(3, 2)], seq_len=14, rows=1, masked=False))
    assert batch.inputs[0].tolist() == [BOS, 5, 5, 5, 9, 9, BOS, 5, 5, 5, 9, 9, BOS, BOS]
    assert batch.targets[0].tolist() == [5, 5, 5, 9, 9, BOS, 5, 5, 5, 9, 9, -1, -1, -1]
    assert batch.supervised == 11


def test_any_rank_count_and_any_interruption_give_the_same_rows():
    items = conversations(150, longest=50)
    whole = chat(items, seq_len=128, rows=8)
    expected = [next(whole) for _ in range(12)]
    ranks = [chat(items, seq_len=128, rows=8, rank=rank, world=4) for rank in range(4)]
    position = None
    for step in range(6):
        parts = [next(rank) for rank in ranks]
        for row in range(8):
            assert (parts[row % 4].targets[row // 4] == expected[step].targets[row]).all()
        assert {part.supervised for part in parts} == {expected[step].supervised}
        position = json.loads(json.dumps(parts[0].position))
    resumed = chat(items, seq_len=128, rows=8, position=position)
    for step in range(6, 12):
        assert np.array_equal(next(resumed).inputs, expected[step].inputs)


def test_rows_are_nearly_full():
    batches = chat(conversations(2000, longest=60), seq_len=256, masked=False)
    filled = np.mean([next(batches).supervised / (4 * 256) for _ in range(100)])
    assert filled > 0.98

"""Cached decoding equals the whole forward pass, in chunks of any size."""

import pytest
import torch
from test_gpt import build, random_ids, small

from nanochat.attention import DenseKV

SHORT = {"depth": 4, "seq_len": 600, "window_pattern": "SSL"}  # short windows of 256


def run_chunks(model, ids, chunks):
    """Feed each row its own chunk sizes; return the logits after every chunk: {(row, position): logits_V}."""
    batch, tokens = ids.shape
    kv = DenseKV(model.shape, batch, tokens)
    done, queues, out = [0] * batch, [list(c) for c in chunks], {}
    while any(queues):
        rows = list(range(batch))
        sizes = [queues[b].pop(0) if queues[b] else 0 for b in rows]
        width = max(sizes)
        step = torch.zeros(batch, width, dtype=torch.int64)
        for b, size in enumerate(sizes):
            step[b, :size] = ids[b, done[b] : done[b] + size]
        # A row with nothing left repeats its last token: same position, same content.
        start = torch.tensor([d if s else d - 1 for d, s in zip(done, sizes, strict=True)])
        for b, size in enumerate(sizes):
            if not size:
                step[b, 0] = ids[b, done[b] - 1]
        prev = torch.tensor([ids[b, s - 1] if (s := int(start[b])) > 0 else -1 for b in rows])
        last = torch.tensor([max(s, 1) - 1 for s in sizes])
        kv.begin(start, last)
        logits = model.forward_cached(step, prev, start, kv, last_B=last)
        for b, size in enumerate(sizes):
            done[b] += size
            out[b, done[b] - 1] = logits[b]
    return out


@pytest.mark.parametrize("arch", ["modern", "classic"])
@pytest.mark.parametrize(
    "chunks",
    [
        [[40]],
        [[1] * 40],
        [[7] * 5 + [5]],
        [[1, 39]],
        [[39, 1]],
        [[13, 13, 13, 1], [1, 1, 30, 8], [40]],
    ],
)
def test_chunks_of_any_size_equal_the_whole_forward(arch, chunks):
    shape = small(arch)
    model = build(shape)
    ids = random_ids(shape, len(chunks), 40)
    whole = model(ids)
    for (b, t), logits in run_chunks(model, ids, chunks).items():
        torch.testing.assert_close(logits, whole[b, t], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("chunks", [[[500, 1, 1, 98]], [[100] * 6], [[300, 3, 297], [255, 2, 343]]])
def test_a_window_shorter_than_the_sequence_equals_the_whole_forward(chunks):
    shape = small(**SHORT)
    assert shape.windows()[0] == 256
    model = build(shape)
    ids = random_ids(shape, len(chunks), 600)
    whole = model(ids)
    for (b, t), logits in run_chunks(model, ids, chunks).items():
        torch.testing.assert_close(logits, whole[b, t], atol=5e-5, rtol=2e-4)


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_a_prompt_of_one_token_equals_the_whole_forward(arch):
    shape = small(arch)
    model = build(shape)
    ids = random_ids(shape, 1, 1)
    assert list(run_chunks(model, ids, [[1]])) == [(0, 0)]
    torch.testing.assert_close(run_chunks(model, ids, [[1]])[0, 0], model(ids)[0, 0], atol=1e-5, rtol=1e-4)


def test_smear_reaches_across_the_border_of_a_chunk():
    shape = small("modern")
    model = build(shape)
    with torch.no_grad():
        model.smear_scale.fill_(2.0)
    ids = random_ids(shape, 1, 9)
    kv = DenseKV(shape, 1, 9)
    for start, stop in ((0, 4), (4, 9)):
        begin, last = torch.tensor([start]), torch.tensor([stop - start - 1])
        prev = torch.tensor([ids[0, start - 1] if start else -1])
        kv.begin(begin, last)
        logits = model.forward_cached(ids[:, start:stop], prev, begin, kv, last_B=last)
    torch.testing.assert_close(logits[0], model(ids)[0, -1], atol=2e-5, rtol=1e-4)
    kv.begin(begin, last)
    forgotten = model.forward_cached(ids[:, 4:], torch.tensor([-1]), begin, kv, last_B=last)
    assert (forgotten - logits).abs().max() > 1e-3


def test_padding_ids_never_matter():
    shape = small()
    model = build(shape)
    ids = random_ids(shape, 2, 8)
    results = []
    for filler in (0, 77):
        kv = DenseKV(shape, 2, 8)
        start, last = torch.tensor([0, 0]), torch.tensor([7, 2])
        step = ids.clone()
        step[1, 3:] = filler
        kv.begin(start, last)
        results.append(model.forward_cached(step, torch.tensor([-1, -1]), start, kv, last_B=last))
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0][1], model(ids[1:, :3])[0, -1], atol=2e-5, rtol=1e-4)


def test_padding_may_reach_past_the_context():
    shape = small(seq_len=16)
    model = build(shape)
    ids = random_ids(shape, 2, 16)
    whole = model(ids)
    kv = DenseKV(shape, 2, 16)
    kv.begin(torch.tensor([0, 0]), torch.tensor([14, 14]))
    model.forward_cached(
        ids[:, :15], torch.tensor([-1, -1]), torch.tensor([0, 0]), kv, last_B=torch.tensor([14, 14])
    )
    start, last = torch.tensor([15, 10]), torch.tensor([0, 5])
    step = torch.stack((torch.cat((ids[0, 15:], torch.zeros(5, dtype=torch.int64))), ids[1, 10:]))
    kv.begin(start, last)
    logits = model.forward_cached(step, torch.stack((ids[0, 14], ids[1, 9])), start, kv, last_B=last)
    torch.testing.assert_close(logits, whole[:, 15], atol=2e-5, rtol=1e-4)


def test_a_cache_that_would_overflow_says_so():
    kv = DenseKV(small(), 1, 8)
    with pytest.raises(ValueError, match="position 8"):
        kv.begin(torch.tensor([4]), torch.tensor([4]))

"""Greedy continuations of a few prompts, to read what a model has learnt so far.

Knows nothing of sampling parameters or streaming: that is the engine's part.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from nanochat.attention import DenseKV
from nanochat.gpt import GPT

SAMPLE_TOKENS = 48


@torch.no_grad()
def greedy(
    model: GPT, prompts: Sequence[Sequence[int]], *, stop: Collection[int], max_tokens: int = SAMPLE_TOKENS
) -> list[list[int]]:
    """Return the likeliest next ids of each prompt, up to a stop id, `max_tokens` or the end of the context.

    All prompts run as one batch. Prompts longer than the context keep their end.
    """
    seq_len = model.shape.seq_len
    kept = [list(prompt[-(seq_len - 1) :]) for prompt in prompts]
    out: list[list[int]] = [[] for _ in kept]
    if not kept:
        return out
    device = model.lm_head.weight.device
    lengths_B = torch.tensor([len(prompt) for prompt in kept], device=device)
    ids_BT = torch.zeros((len(kept), int(lengths_B.max())), dtype=torch.int64, device=device)
    for row, prompt in enumerate(kept):
        ids_BT[row, : len(prompt)] = torch.tensor(prompt, device=device)
    kv = DenseKV(model.shape, len(kept), seq_len, dtype=model.dtype, device=device)
    start_B, last_B = torch.zeros_like(lengths_B), lengths_B - 1
    previous_B = torch.full_like(lengths_B, -1)
    room = seq_len - int(lengths_B.max())
    done: set[int] = set()
    for _ in range(min(max_tokens, room)):
        kv.begin(start_B, last_B)
        next_B = model.forward_cached(ids_BT, previous_B, start_B, kv, last_B=last_B).argmax(dim=-1)
        for row, token in enumerate(next_B.tolist()):
            if token in stop:
                done.add(row)
            elif row not in done:
                out[row].append(token)
        if len(done) == len(kept):
            break
        previous_B = ids_BT[torch.arange(len(kept), device=device), last_B]
        start_B = start_B + last_B + 1
        last_B = torch.zeros_like(last_B)
        ids_BT = next_B[:, None]
    return out

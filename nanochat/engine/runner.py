"""Runs the model on what the scheduler planned: rows to batches, batches to drawn tokens.

Knows the model's cached forward, the KV pool and the sampler; nothing of queues or of text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from nanochat.attention import KVView
from nanochat.engine.kv import KVPool
from nanochat.engine.limits import Limits
from nanochat.engine.request import Sampled
from nanochat.engine.sampler import sample
from nanochat.engine.scheduler import Work
from nanochat.errors import ConfigError
from nanochat.shape import Shape


class CachedModel(Protocol):
    """What the engine needs of a model; `nanochat.gpt.GPT` is one. Call its `for_inference()` first."""

    shape: Shape
    dtype: torch.dtype

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def forward_cached(
        self, ids_BT: Tensor, prev_ids_B: Tensor, start_B: Tensor, kv: KVView, *, last_B: Tensor
    ) -> Tensor: ...


def set_threads(threads: int | None) -> None:
    """Set the compute threads of this process; None: one core is left for everything else."""
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) - 1))


def make_pool(model: CachedModel, limits: Limits) -> KVPool:
    """Return a pool for `limits`, on the model's device.

    Raises:
        ConfigError: the context is longer than the model's, or `max_tokens_in_kv` holds not even one.
    """
    context = limits.context or model.shape.seq_len
    if context > model.shape.seq_len:
        raise ConfigError(
            f"context is {context} tokens, but the model was made for {model.shape.seq_len}",
            hint="leave it out to use the model's",
        )
    slots = limits.max_running
    if limits.max_tokens_in_kv is not None:
        slots = min(slots, limits.max_tokens_in_kv // context)
        if slots < 1:
            raise ConfigError(
                f"max_tokens_in_kv is {limits.max_tokens_in_kv}: not one context of {context} tokens",
                hint=f"use at least {context}",
            )
    device = next(model.parameters()).device
    dtype = torch.float32 if device.type == "cpu" else model.dtype  # see kv._decode for the figures
    return KVPool(model.shape, slots=slots, capacity=context, dtype=dtype, device=device)


class Runner:
    """Turns works into tokens: one forward for all decoding rows, one for each group of similar chunks."""

    def __init__(self, model: CachedModel, pool: KVPool, *, exact: bool = False) -> None:
        """Take the model as it is. `exact`: one row a forward, so that no sum depends on the batch."""
        self.model = model
        self.pool = pool
        self.exact = exact

    @torch.inference_mode()
    def step_batch(self, works: Sequence[Work]) -> list[Sampled | None]:
        """Compute the works and draw for those that reach their request's last token."""
        result: list[Sampled | None] = [None] * len(works)
        for group in self._groups(works):
            batch = [works[i] for i in group]
            logits_BV = self._forward(batch)
            drawing = [i for i in group if works[i].draws]
            if not drawing:
                continue
            if len(drawing) < len(group):
                logits_BV = logits_BV[[n for n, work in enumerate(batch) if work.draws]]
            drawn = sample(logits_BV, [works[i].request for i in drawing])
            for i, sampled in zip(drawing, drawn, strict=True):
                result[i] = sampled
        return result

    def _groups(self, works: Sequence[Work]) -> list[list[int]]:
        """Return indices of works that share a forward; padding never more than doubles a chunk."""
        # In slot order the rows of a full batch are one stretch of the pool, read without a copy.
        order = sorted(range(len(works)), key=lambda i: works[i].request.slot)
        if self.exact:
            return [[i] for i in order]
        groups = [[i for i in order if works[i].count == 1]]
        chunks = sorted((i for i in order if works[i].count > 1), key=lambda i: -works[i].count)
        while chunks:
            longest = works[chunks[0]].count
            group = [i for i in chunks if 2 * works[i].count >= longest]
            groups.append(sorted(group, key=lambda i: works[i].request.slot))
            chunks = chunks[len(group) :]
        return [group for group in groups if group]

    def _forward(self, batch: Sequence[Work]) -> Tensor:
        starts = [work.start for work in batch]
        counts = [work.count for work in batch]
        kv = self.pool.view([work.request.slot for work in batch], starts, counts)
        longest = max(counts)
        ids, previous = [], []
        for work in batch:
            tokens, end = work.request.tokens, work.start + work.count
            ids.append(tokens[work.start : end] + [0] * (longest - work.count))
            previous.append(tokens[work.start - 1] if work.start else -1)
        device = self.pool.device
        return self.model.forward_cached(
            torch.tensor(ids, device=device),
            torch.tensor(previous, device=device),
            kv.start_B,
            kv,
            last_B=kv.last_B,
        )

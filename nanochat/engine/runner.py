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
from nanochat.engine.packed import Batching, batching
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
    dtype = torch.float32 if device.type == "cpu" else model.dtype  # see kv.StepKV for the figures
    return KVPool(model.shape, slots=slots, capacity=context, dtype=dtype, device=device)


class Runner:
    """Turns works into tokens: one forward for all decoding rows, one for each chunk of a prompt.

    The shapes that a request's tokens meet depend on the request alone, or make no difference (`batching`):
    its output is the same to the last bit whoever shares its steps.
    """

    def __init__(self, model: CachedModel, pool: KVPool) -> None:
        """Take the model as it is, and try how many rows its matrices may be given at once."""
        self.model = model
        self.pool = pool
        self.batching: Batching = batching(model, pool.slots) if isinstance(model, nn.Module) else "any"

    @torch.inference_mode()
    def step_batch(self, works: Sequence[Work]) -> list[Sampled | None]:
        """Compute the works and draw for those that reach their request's last token."""
        result: list[Sampled | None] = [None] * len(works)
        for group in self._groups(works):
            logits_BV = self._forward([works[i] for i in group])
            if works[group[0]].draws:
                drawn = sample(logits_BV, [works[i].request for i in group])
                for i, sampled in zip(group, drawn, strict=True):
                    result[i] = sampled
        return result

    def _groups(self, works: Sequence[Work]) -> list[list[int]]:
        """Return indices of works that share a forward; all of a group draw, or its only one may not."""
        decoding = [i for i, work in enumerate(works) if work.count == 1 and work.draws]
        alone = [[i] for i, work in enumerate(works) if work.count > 1 or not work.draws]
        if self.batching == "one":
            return [[i] for i in decoding] + alone
        return [decoding, *alone] if decoding else alone

    def _forward(self, batch: Sequence[Work]) -> Tensor:
        """Return logits_BV after each work's last token."""
        tokens = batch[0].count
        extra = self.pool.slots - len(batch) if tokens == 1 and self.batching == "full" else 0
        slots = [work.request.slot for work in batch] + [self.pool.spare] * extra
        kv = self.pool.view(slots, [work.start for work in batch] + [0] * extra, tokens)
        ids = [work.request.tokens[work.start : work.start + tokens] for work in batch] + [[0]] * extra
        previous = [work.request.tokens[work.start - 1] if work.start else -1 for work in batch]
        device = self.pool.device
        logits_BV = self.model.forward_cached(
            torch.tensor(ids, device=device),
            torch.tensor(previous + [-1] * extra, device=device),
            kv.start_B,
            kv,
            last_B=torch.full_like(kv.start_B, tokens - 1),
        )
        return logits_BV[: len(batch)]

"""Logits to tokens, for a batch whose rows have their own parameters and their own random numbers.

Knows logits and sampling parameters; nothing of the model or of scheduling. A row's token depends on its
own logits, parameters and number alone: sums run in order along the row, never across a padded width.

Shape suffixes: B rows of the batch, R rows of one group, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nanochat.engine.request import Request, Sampled

GREEDY_BELOW = 1e-4
"""Temperatures under this are greedy: dividing by them overflows fp32, and the draw would be the same."""
NUCLEUS = 256
"""Candidates tried before a whole row is sorted; sorting 4,096 takes 200 us, this 10 (2026-11, 1 core)."""


def uniform_stream(seed: int) -> Callable[[], float]:
    """Return a function that gives the numbers in [0, 1) of this seed, one a call: counter-based Philox."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64)).random


def sample(logits_BV: Tensor, rows: Sequence[Request]) -> list[Sampled]:
    """Draw one token a row; log probabilities are of the raw logits and only where asked for."""
    drawn = [b for b, row in enumerate(rows) if row.params.temperature >= GREEDY_BELOW]
    tokens = logits_BV.argmax(-1).tolist() if len(drawn) < len(rows) else [0] * len(rows)
    groups: dict[tuple[int, bool], list[int]] = {}
    for b in drawn:
        params = rows[b].params
        top_k = min(params.top_k, logits_BV.size(-1))
        groups.setdefault((top_k, params.top_p < 1.0), []).append(b)
    for (top_k, nucleus), members in groups.items():
        logits_RV = logits_BV if len(members) == len(rows) else logits_BV[members]
        for b, token in zip(
            members, _draw(logits_RV, [rows[b] for b in members], top_k, nucleus=nucleus), strict=True
        ):
            tokens[b] = token
    if all(row.params.logprobs is None for row in rows):
        return [Sampled(token) for token in tokens]
    return _with_logprobs(logits_BV, rows, tokens)


def _draw(logits_RV: Tensor, rows: Sequence[Request], top_k: int, *, nucleus: bool) -> list[int]:
    """Draw for rows that share `top_k` (0: none) and whether a `top_p` below 1 is asked for."""
    device = logits_RV.device
    uniform_R1 = torch.tensor([[row.uniform()] for row in rows], dtype=torch.float64, device=device)
    heat_R1 = torch.tensor([[row.params.temperature] for row in rows], device=device)
    if not top_k and not nucleus:
        return _pick(_cumulative(logits_RV, heat_R1), None, uniform_R1).tolist()
    value_RK, id_RK = logits_RV.topk(top_k or min(NUCLEUS, logits_RV.size(-1)), dim=-1)
    cumulative_RK = _cumulative(value_RK, heat_R1)
    if not nucleus:
        return _ids(id_RK, _pick(cumulative_RK, None, uniform_R1))
    top_p_R1 = torch.tensor([[row.params.top_p] for row in rows], dtype=torch.float64, device=device)
    mass_R1 = (cumulative_RK if top_k else _cumulative(logits_RV, heat_R1))[:, -1:]
    target_R1 = top_p_R1 * mass_R1
    tokens = _ids(id_RK, _pick(cumulative_RK, target_R1, uniform_R1))
    if not top_k:
        wide = (cumulative_RK[:, -1:] < target_R1)[:, 0].nonzero()[:, 0]
        if wide.numel():
            value_RK, id_RK = torch.sort(logits_RV[wide], dim=-1, descending=True, stable=True)
            index_R = _pick(_cumulative(value_RK, heat_R1[wide]), target_R1[wide], uniform_R1[wide])
            for r, token in zip(wide.tolist(), _ids(id_RK, index_R), strict=True):
                tokens[r] = token
    return tokens


def _cumulative(logits_RK: Tensor, heat_R1: Tensor) -> Tensor:
    """Return the running sum of the weights exp((x - max) / temperature), fp64, not normalised."""
    peak_R1 = logits_RK.amax(-1, keepdim=True)
    return ((logits_RK - peak_R1) / heat_R1).exp().double().cumsum(-1)


def _pick(cumulative_RK: Tensor, target_R1: Tensor | None, uniform_R1: Tensor) -> Tensor:
    """Return the index that each number falls on, among the first candidates that reach the target mass."""
    last_R1 = torch.full_like(uniform_R1, cumulative_RK.size(-1) - 1, dtype=torch.int64)
    if target_R1 is not None:
        last_R1 = torch.minimum(last_R1, (cumulative_RK < target_R1).sum(-1, keepdim=True))
    point_R1 = uniform_R1 * cumulative_RK.gather(-1, last_R1)
    return torch.minimum((cumulative_RK <= point_R1).sum(-1, keepdim=True), last_R1)[:, 0]


def _ids(id_RK: Tensor, index_R: Tensor) -> list[int]:
    ids: list[int] = id_RK.gather(1, index_R[:, None])[:, 0].tolist()
    return ids


def _with_logprobs(logits_BV: Tensor, rows: Sequence[Request], tokens: list[int]) -> list[Sampled]:
    asked = {b: row.params.logprobs for b, row in enumerate(rows) if row.params.logprobs is not None}
    members = list(asked)
    logprob_RV = torch.log_softmax(logits_BV[members], dim=-1)
    chosen_R = logprob_RV.gather(1, torch.tensor([[tokens[b]] for b in members], device=logits_BV.device))
    most = min(max(asked.values()), logits_BV.size(-1))
    value_RK, id_RK = logprob_RV.topk(most, dim=-1)
    result = [Sampled(token) for token in tokens]
    for b, logprob, ids, values in zip(
        members, chosen_R[:, 0].tolist(), id_RK.tolist(), value_RK.tolist(), strict=True
    ):
        result[b] = Sampled(tokens[b], logprob, list(zip(ids, values, strict=True))[: asked[b]])
    return result

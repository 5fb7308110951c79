"""Causal attention with a left window: whole sequences for training, stored keys and values for decoding.

The only file that picks an attention kernel. Knows nothing of layers' weights,
of rotary positions or of requests.

Shape suffixes: B rows, T tokens of this step, S stored tokens, H query heads, G key/value heads,
D head channels.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.shape import Shape

# Up to here two bf16 matmuls beat torch's CPU flash kernel: 2x at 256 tokens, 1.7x at 1,024 (2026-08).
EXPLICIT_TOKENS = 1024


def causal_attention(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, *, window: int) -> Tensor:
    """Return y_BTHD: each query attends to itself and to `window` tokens on its left.

    A window of T - 1 or more is plain causal attention. Scores are divided by sqrt(D).
    """
    tokens = q_BTHD.size(1)
    whole = window >= tokens - 1
    q_BHTD, k_BGTD, v_BGTD = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
    if q_BTHD.device.type == "cpu" and q_BTHD.dtype == torch.bfloat16 and tokens <= EXPLICIT_TOKENS:
        return _explicit(q_BHTD, k_BGTD, v_BGTD, window).transpose(1, 2)
    y_BHTD = F.scaled_dot_product_attention(
        q_BHTD,
        k_BGTD,
        v_BGTD,
        attn_mask=None if whole else band_mask(tokens, window, q_BTHD.device),
        is_causal=whole,
        enable_gqa=q_BTHD.size(2) != k_BTGD.size(2),
    )
    return y_BHTD.transpose(1, 2)


def _explicit(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, window: int) -> Tensor:
    """Attend with the score matrix in memory; softmax in fp32."""
    group = q_BHTD.size(1) // k_BGTD.size(1)
    if group > 1:
        k_BGTD, v_BGTD = (x.repeat_interleave(group, dim=1) for x in (k_BGTD, v_BGTD))
    scores_BHTT = (q_BHTD @ k_BGTD.mT).float() * q_BHTD.size(-1) ** -0.5
    hidden_TT = ~band_mask(q_BHTD.size(2), window, q_BHTD.device)
    weights_BHTT = torch.softmax(scores_BHTT.masked_fill(hidden_TT, -torch.inf), dim=-1)
    return weights_BHTT.to(v_BGTD.dtype) @ v_BGTD


def band_mask(tokens: int, window: int, device: torch.device) -> Tensor:
    """Return a boolean mask_TT, True where query t may see key s: t - window <= s <= t."""
    position_T = torch.arange(tokens, device=device)
    distance_TT = position_T[:, None] - position_T[None, :]
    return (distance_TT >= 0) & (distance_TT <= window)


class KVView(Protocol):
    """Keys and values of running sequences, as one forward step sees them.

    The view belongs to one step: its owner has already told it which positions the step's tokens take, and
    no other thread may use it until the forward pass returns.
    """

    def attend(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, *, window: int) -> Tensor:
        """Store k and v at each row's positions, then attend causally, within the window, to all stored.

        Returns y_BTHD; rows shorter than T are right-padded, and what padding holds is never read.
        """
        ...


class DenseKV:
    """The simplest `KVView`: one (B, capacity) table a layer. Reference for tests; evaluations use it too."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        size = (shape.depth, batch, capacity, shape.kv_heads, shape.head_dim)
        self.k_LBSGD = torch.zeros(size, dtype=dtype, device=device)
        self.v_LBSGD = torch.zeros(size, dtype=dtype, device=device)
        self.capacity = capacity

    def begin(self, start_B: Tensor, last_B: Tensor) -> None:
        """Say where the next step's tokens go: row b holds positions start_B[b] .. start_B[b] + last_B[b].

        Raises:
            ValueError: a position is beyond the capacity; nothing is dropped silently.
        """
        self.start_B, self.last_B = start_B, last_B
        self.stored = int((start_B + last_B).max()) + 1
        if self.stored > self.capacity:
            raise ValueError(f"position {self.stored - 1} is beyond the capacity of {self.capacity} tokens")

    def attend(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, *, window: int) -> Tensor:
        """See `KVView.attend`."""
        step_T = torch.arange(q_BTHD.size(1), device=q_BTHD.device)
        rows, columns = torch.nonzero(step_T[None, :] <= self.last_B[:, None], as_tuple=True)
        places = self.start_B[rows] + columns
        self.k_LBSGD[layer, rows, places] = k_BTGD[rows, columns].to(self.k_LBSGD.dtype)
        self.v_LBSGD[layer, rows, places] = v_BTGD[rows, columns].to(self.v_LBSGD.dtype)

        position_BT = self.start_B[:, None] + torch.minimum(step_T[None, :], self.last_B[:, None])
        stored_S = torch.arange(self.stored, device=q_BTHD.device)
        distance_BTS = position_BT[:, :, None] - stored_S[None, None, :]
        visible_BTS = (distance_BTS >= 0) & (distance_BTS <= window)
        y_BHTD = F.scaled_dot_product_attention(
            q_BTHD.transpose(1, 2),
            self.k_LBSGD[layer, :, : self.stored].transpose(1, 2).to(q_BTHD.dtype),
            self.v_LBSGD[layer, :, : self.stored].transpose(1, 2).to(q_BTHD.dtype),
            attn_mask=visible_BTS[:, None],
            enable_gqa=q_BTHD.size(2) != k_BTGD.size(2),
        )
        return y_BHTD.transpose(1, 2)

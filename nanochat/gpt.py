"""The GPT, both architectures: modern (default) and classic (`NanoChatForCausalLM` of Hugging Face).

One readable file: forward in the order of the recipe, initialisation, cached decoding. Knows nothing of
optimizers, data or devices; attention kernels are in `nanochat.attention`, sizes in `nanochat.shape`.

Shape suffixes: B rows, T tokens, C width, H query heads, G key/value heads, D head channels, V vocabulary,
N = B*T tokens, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.attention import KVView, causal_attention
from nanochat.shape import GATE_CHANNELS, MLP_RATIO, SMEAR_CHANNELS, Shape

Reduction = Literal["mean", "sum", "none"]
Attend = Callable[[int, Tensor, Tensor, Tensor, int], Tensor]

IGNORE = -1  # target id that has no loss
SOFTCAP = 15.0
NORM_EPS = 1e-6
VECTOR = 32  # elements that a CPU kernel takes at once: two vectors of the widest kind
QK_GAIN = 1.2  # modern: sharper attention than unit-norm q and k allow
ROPE_BASE = {"modern": 100_000.0, "classic": 10_000.0}


def rmsnorm(x: Tensor) -> Tensor:
    """Return x over its root mean square along the last axis; no parameters."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def rope_table(seq_len: int, head_dim: int, base: float) -> Tensor:
    """Return cos and sin, fp32 on the CPU, as one table of (2, seq_len, head_dim / 2)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    positions = torch.arange(seq_len, dtype=torch.float32, device="cpu")
    angle = torch.outer(positions, 1.0 / base**exponent)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x_BTHD: Tensor, cos_BT1D: Tensor, sin_BT1D: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) by -theta."""
    a, b = x_BTHD.chunk(2, dim=-1)
    return torch.cat((a * cos_BT1D + b * sin_BT1D, b * cos_BT1D - a * sin_BT1D), dim=-1)


class Linear(nn.Module):
    """A matrix without bias, stored in its own dtype and applied in that of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Table(nn.Module):
    """An embedding table: one row an id."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, dtype=dtype))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions, QK norm and, on some layers, gated value embeddings."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.q = Linear(shape.width, shape.heads * shape.head_dim)
        self.k = Linear(shape.width, shape.kv_width)
        self.v = Linear(shape.width, shape.kv_width)
        self.o = Linear(shape.heads * shape.head_dim, shape.width)
        self.gate = Linear(GATE_CHANNELS, shape.kv_heads) if shape.has_value_embedding(layer) else None
        self.gain = QK_GAIN if shape.arch == "modern" else 1.0
        self.layer, self.window = layer, shape.windows()[layer]

    def forward(
        self, x_BTC: Tensor, value_BTC: Tensor | None, rope: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        q_BTHD = self.q(x_BTC).view(batch, tokens, self.heads, self.head_dim)
        k_BTGD = self.k(x_BTC).view(batch, tokens, self.kv_heads, self.head_dim)
        v_BTGD = self.v(x_BTC).view(batch, tokens, self.kv_heads, self.head_dim)
        if self.gate is not None and value_BTC is not None:
            gate_BTG = 3.0 * sigmoid_rows(self.gate(x_BTC[..., :GATE_CHANNELS]))
            v_BTGD = v_BTGD + gate_BTG[..., None] * value_BTC.view_as(v_BTGD)
        q_BTHD, k_BTGD = rmsnorm(rotate(q_BTHD, *rope)), rmsnorm(rotate(k_BTGD, *rope))
        if self.gain != 1.0:
            q_BTHD, k_BTGD = q_BTHD * self.gain, k_BTGD * self.gain
        y_BTHD = attend(self.layer, q_BTHD, k_BTGD, v_BTGD, self.window)
        out_BTC: Tensor = self.o(y_BTHD.reshape(batch, tokens, -1))
        return out_BTC


class MLP(nn.Module):
    """Two matrices around a squared ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = Linear(width, MLP_RATIO * width)
        self.down = Linear(MLP_RATIO * width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        out_BTC: Tensor = self.down(F.relu(self.up(x_BTC)).square())
        return out_BTC


class Block(nn.Module):
    """One layer: attention, then MLP, each on the normed residual stream."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.attn = Attention(shape, layer)
        self.mlp = MLP(shape.width)

    def forward(
        self, x_BTC: Tensor, value_BTC: Tensor | None, rope: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        x_BTC = x_BTC + self.attn(rmsnorm(x_BTC), value_BTC, rope, attend)
        x_BTC = x_BTC + self.mlp(rmsnorm(x_BTC))
        return x_BTC


class GPT(nn.Module):
    """A language model over token ids, with fp32 master weights and `dtype` arithmetic.

    `table_dtype` is what the embedding tables are stored in (bf16 halves their memory and traffic on a GPU).
    Parameters are uninitialised memory until `init_weights` or a checkpoint writes them.
    """

    rope: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        dtype: torch.dtype = torch.float32,
        table_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        modern = shape.arch == "modern"
        rows = shape.padded_vocab()
        with torch.device(device):
            self.wte = Table(rows, shape.width, table_dtype)
            self.value_embeds = nn.ModuleDict(
                {
                    str(i): Table(rows, shape.kv_width, table_dtype)
                    for i in range(shape.depth)
                    if shape.has_value_embedding(i)
                }
            )
            self.blocks = nn.ModuleList(Block(shape, i) for i in range(shape.depth))
            self.lm_head = Linear(shape.width, rows)
            self.resid_L = nn.Parameter(torch.empty(shape.depth)) if modern else None
            self.embed_L = nn.Parameter(torch.empty(shape.depth)) if modern else None
            self.smear_gate = Linear(SMEAR_CHANNELS, 1) if modern else None
            self.smear_scale = nn.Parameter(torch.empty(())) if modern else None
            self.backout = nn.Parameter(torch.empty(())) if modern else None
        # Made on the CPU for every device: the same table everywhere, whatever the device's cosine.
        table = rope_table(shape.seq_len, shape.head_dim, ROPE_BASE[shape.arch])
        self.register_buffer("rope", table.to(device=device, dtype=dtype), persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int = 42) -> None:
        """Write every parameter; the same values for the same seed, whatever the table dtype."""
        generator = torch.Generator(device=self.lm_head.weight.device).manual_seed(seed)
        rules = (
            _modern_init(self.shape.width) if self.shape.arch == "modern" else _classic_init(self.shape.width)
        )
        for name, weight in self.named_parameters():
            part = [p for p in name.removesuffix(".weight").split(".") if not p.isdigit()][-1]
            kind, low, high = rules[part]
            draw = torch.empty_like(weight, dtype=torch.float32)
            if kind == "normal":
                draw.normal_(low, high, generator=generator)
            elif kind == "uniform":
                draw.uniform_(low, high, generator=generator)
            else:
                draw.copy_(torch.linspace(low, high, weight.numel()).view_as(weight))
            weight.copy_(draw)

    def for_inference(self) -> GPT:
        """Store the matrices and tables in the compute dtype for good, and stop recording gradients."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            if parameter.dim() == 2:
                parameter.data = parameter.data.to(self.dtype)
        return self.eval()

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor | None = None, *, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return fp32 logits_BTV over the real vocabulary, or the loss in nats when targets are given.

        Target -1 has no loss. `mean` divides by the number of targets (0 when there are none), `none` returns
        loss_BT with 0 where the target is -1.

        Raises:
            ValueError: T is longer than the rotary table.
        """
        tokens = ids_BT.size(1)
        if tokens > self.shape.seq_len:
            raise ValueError(f"{tokens} tokens are longer than the context of {self.shape.seq_len}")
        cos_1T1D, sin_1T1D = self.rope[:, None, :tokens, None].unbind()
        x_BTC = self._trunk(ids_BT, None, (cos_1T1D, sin_1T1D), _attend_whole)
        if targets_BT is None:
            return self._logits(x_BTC)
        return self._loss(x_BTC, targets_BT, reduction)

    @torch.no_grad()
    def forward_cached(
        self, ids_BT: Tensor, prev_ids_B: Tensor, start_B: Tensor, kv: KVView, *, last_B: Tensor
    ) -> Tensor:
        """Return fp32 logits_BV after token `last_B[b]` of each row, with earlier tokens read from `kv`.

        ids int64, right-padded with any valid id; prev_ids_B is the token before ids_BT[:, 0], or -1 at
        position 0; start_B is the position of ids_BT[:, 0]; `kv` already knows these positions.
        """
        step_T = torch.arange(ids_BT.size(1), device=ids_BT.device)
        # Padding may reach past the table's end; its result is never read, so any position will do.
        position_BT = (start_B[:, None] + step_T).clamp_(max=self.shape.seq_len - 1)
        cos_BT1D, sin_BT1D = self.rope[:, position_BT, None].unbind()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
            return kv.attend(layer, q, k, v, window=window)

        x_BTC = self._trunk(ids_BT, prev_ids_B, (cos_BT1D, sin_BT1D), attend)
        last_BC = x_BTC[torch.arange(x_BTC.size(0), device=x_BTC.device), last_B]
        return self._logits(last_BC)

    def _trunk(
        self, ids_BT: Tensor, prev_ids_B: Tensor | None, rope: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        x_BTC = rmsnorm(self.wte(ids_BT, self.dtype))
        x_BTC = self._smear(x_BTC, prev_ids_B)
        x0_BTC = mid_BTC = x_BTC
        for i, block in enumerate(self.blocks):
            if self.resid_L is not None and self.embed_L is not None:
                x_BTC = self.resid_L[i] * x_BTC + self.embed_L[i] * x0_BTC
            value_BTC = self.value_embeds[str(i)](ids_BT, self.dtype) if str(i) in self.value_embeds else None
            x_BTC = block(x_BTC, value_BTC, rope, attend)
            if i == self.shape.depth // 2:
                mid_BTC = x_BTC
        if self.backout is not None:
            x_BTC = x_BTC - self.backout * mid_BTC
        return rmsnorm(x_BTC)

    def _smear(self, x_BTC: Tensor, prev_ids_B: Tensor | None) -> Tensor:
        """Mix into each token a gated part of the one before it, also across the border of a chunk."""
        if self.smear_gate is None or self.smear_scale is None:
            return x_BTC
        first_B1C = torch.zeros_like(x_BTC[:, :1])
        if prev_ids_B is not None:
            first_B1C = rmsnorm(self.wte(prev_ids_B.clamp(min=0)[:, None], self.dtype))
            first_B1C = first_B1C * (prev_ids_B >= 0)[:, None, None]
        before_BTC = torch.cat((first_B1C, x_BTC[:, :-1]), dim=1)
        gate_BT1 = self.smear_scale * sigmoid_rows(self.smear_gate(x_BTC[..., :SMEAR_CHANNELS]))
        return x_BTC + gate_BT1 * before_BTC

    def _logits(self, x: Tensor) -> Tensor:
        # Over the padded width, a multiple of every vector's: see `sigmoid_rows`.
        return softcap(self.lm_head(x))[..., : self.shape.vocab_size]

    def _loss(self, x_BTC: Tensor, targets_BT: Tensor, reduction: Reduction) -> Tensor:
        logits_BTV = self._logits(x_BTC)
        # The softcap bounds every logit by 15, so the sum of exponentials needs no running maximum.
        total_BT = logits_BTV.exp().sum(dim=-1).log()
        counted_BT = targets_BT != IGNORE
        picked_BT = logits_BTV.gather(-1, targets_BT.clamp(min=0)[..., None])[..., 0]
        loss_BT = torch.where(counted_BT, total_BT - picked_BT, 0.0)
        if reduction == "none":
            return loss_BT
        if reduction == "sum":
            return loss_BT.sum()
        return loss_BT.sum() / counted_BT.sum().clamp(min=1)


def sigmoid_rows(x: Tensor) -> Tensor:
    """Return the sigmoid; when answering, a row's bits do not depend on how many rows there are.

    Eager CPU kernels take a tensor's elements in vectors and the few that remain one by one, with other last
    bits; a row as wide as the widest vectors never remains.
    """
    if torch.is_grad_enabled():
        return torch.sigmoid(x)
    return torch.sigmoid(F.pad(x, (0, -x.size(-1) % VECTOR)))[..., : x.size(-1)]


def softcap(logits: Tensor) -> Tensor:
    """Return 15 * tanh(logits / 15) in fp32: bf16 would quantise the large ones."""
    # tanh(x) = 2 * sigmoid(2x) - 1, whose vector code costs half as much: 7% of a tiny CPU step (2026-08).
    return 2 * SOFTCAP * torch.sigmoid(logits.float() * (2 / SOFTCAP)) - SOFTCAP


def _attend_whole(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, window: int) -> Tensor:
    return causal_attention(q_BTHD, k_BTGD, v_BTGD, window=window)


def _modern_init(width: int) -> dict[str, tuple[str, float, float]]:
    """Return, by the last name of a parameter, (distribution, low or mean, high or deviation)."""
    bound = math.sqrt(3.0 / width)
    return {
        "wte": ("normal", 0.0, 0.8),
        "value_embeds": ("uniform", -bound, bound),
        "q": ("uniform", -bound, bound),
        "k": ("uniform", -bound, bound),
        "v": ("uniform", -bound, bound),
        "o": ("constant", 0.0, 0.0),
        "gate": ("uniform", 0.0, 0.02),
        "up": ("uniform", -0.4 * bound, 0.4 * bound),
        "down": ("constant", 0.0, 0.0),
        "lm_head": ("normal", 0.0, 0.001),
        "smear_gate": ("uniform", 0.0, 0.02),
        "smear_scale": ("constant", 0.0, 0.0),
        "backout": ("constant", 0.2, 0.2),
        "resid_L": ("ramp", 1.15, 1.05),
        "embed_L": ("ramp", 0.20, 0.05),
    }


def _classic_init(width: int) -> dict[str, tuple[str, float, float]]:
    deviation = 1.0 / math.sqrt(width)
    return {
        "wte": ("normal", 0.0, 1.0),
        **dict.fromkeys(("q", "k", "v", "up"), ("normal", 0.0, deviation)),
        **dict.fromkeys(("o", "down", "lm_head"), ("constant", 0.0, 0.0)),
    }

"""Keys and values of everything that runs: a pool of slots, and the view that one forward step has of it.

Knows slots, positions and windows; nothing of requests or weights. A slot holds one whole context;
callers only say how many tokens they will store, so that blocks can replace slots behind `acquire`.

Shape suffixes: B rows, T tokens of this step, S stored tokens, H query heads, G key/value heads,
R = H/G queries of one key head, D head channels, X = B*G.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.errors import ConfigError
from nanochat.shape import Shape


class KVPool:
    """`slots` contexts of `capacity` tokens each. Only the engine's thread calls it."""

    def __init__(
        self,
        shape: Shape,
        *,
        slots: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate and zero the tables: 2 * depth * (slots + 1) * capacity * kv_width elements.

        Zeroed, because a masked key still meets a weight of 0, and 0 times uninitialised memory may be NaN.
        """
        if slots < 1 or capacity < 2:
            raise ConfigError(f"the KV pool has {slots} slots of {capacity} tokens, but needs 1 of 2")
        self.slots, self.capacity = slots, capacity
        self.groups, self.channels = shape.kv_heads, shape.head_dim
        rows = (slots + 1) * self.groups * capacity  # one more slot takes what padding stores
        self.k_L = [torch.zeros(rows, self.channels, dtype=dtype, device=device) for _ in range(shape.depth)]
        self.v_L = [torch.zeros(rows, self.channels, dtype=dtype, device=device) for _ in range(shape.depth)]
        self.dtype = dtype
        self.device = self.k_L[0].device
        self._free = list(range(slots))
        self._held: dict[int, int] = {}

    @property
    def total_tokens(self) -> int:
        return self.slots * self.capacity

    @property
    def used_tokens(self) -> int:
        return len(self._held) * self.capacity

    @property
    def free_tokens(self) -> int:
        return len(self._free) * self.capacity

    def acquire(self, tokens: int) -> int | None:
        """Return the lowest free slot for at most `tokens` tokens, None when all are taken.

        Raises:
            ValueError: no slot is that large; nothing is ever stored beyond a slot's end.
        """
        if tokens > self.capacity:
            raise ValueError(f"{tokens} tokens do not fit a slot of {self.capacity}")
        if not self._free:
            return None
        slot = heapq.heappop(self._free)
        self._held[slot] = tokens
        return slot

    def release(self, slot: int) -> None:
        """Take a slot back; what it held is overwritten by the next owner before it is read."""
        del self._held[slot]
        heapq.heappush(self._free, slot)

    def intact(self, *, idle: bool) -> bool:
        """Return whether free + used is total, nothing is both, and, when idle, nothing is used."""
        whole = self.free_tokens + self.used_tokens == self.total_tokens
        return whole and self._held.keys().isdisjoint(self._free) and not (idle and self._held)

    def view(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> StepKV:
        """Return what one forward step sees: row b stores counts[b] tokens of its slot from starts[b] on."""
        return StepKV(self, slots, starts, counts)


class StepKV:
    """A `KVView` of one step; index and mask tensors are made once and shared by all layers."""

    def __init__(
        self, pool: KVPool, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> None:
        self.pool = pool
        self.first, self.contiguous = slots[0], list(slots) == list(range(slots[0], slots[0] + len(slots)))
        self.starts, self.counts = starts, counts
        self.tokens = max(counts)
        device = pool.device
        self.slots_B = torch.tensor(slots, device=device)
        self.start_B = torch.tensor(starts, device=device)
        self.last_B = torch.tensor([c - 1 for c in counts], device=device)
        self.places = self._places()
        self._spans: dict[int, tuple[int, int, Tensor | None]] = {}

    def attend(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, *, window: int) -> Tensor:
        """See `nanochat.attention.KVView.attend`."""
        pool = self.pool
        k, v = pool.k_L[layer], pool.v_L[layer]
        k.index_copy_(0, self.places, k_BTGD.reshape(-1, pool.channels).to(pool.dtype))
        v.index_copy_(0, self.places, v_BTGD.reshape(-1, pool.channels).to(pool.dtype))
        if window not in self._spans:
            self._spans[window] = self._decode_span(window) if self.tokens == 1 else self._chunk_span(window)
        low, high, mask = self._spans[window]
        k_BGSD, v_BGSD = self._stored(k, low, high), self._stored(v, low, high)
        q_BTHD_pool = q_BTHD.to(pool.dtype)
        if self.tokens == 1:
            y_BTHD = _decode(q_BTHD_pool, k_BGSD, v_BGSD, mask)
        else:
            y_BTHD = F.scaled_dot_product_attention(
                q_BTHD_pool.transpose(1, 2),
                k_BGSD,
                v_BGSD,
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=q_BTHD.size(2) != k_BTGD.size(2),
            ).transpose(1, 2)
        return y_BTHD.to(q_BTHD.dtype)

    def _places(self) -> Tensor:
        """Return, for each (row, token, head) of this step, the row of the layer's table that stores it."""
        pool = self.pool
        head_G = torch.arange(pool.groups, device=pool.device) * pool.capacity
        base_BG = self.slots_B[:, None] * (pool.groups * pool.capacity) + head_G
        if self.tokens == 1:
            return (base_BG + self.start_B[:, None]).view(-1)
        step_T = torch.arange(self.tokens, device=pool.device)
        place_BTG = base_BG[:, None, :] + (self.start_B[:, None] + step_T)[:, :, None]
        padding_BT = step_T > self.last_B[:, None]
        trash_BTG = (pool.slots * pool.groups * pool.capacity + head_G).expand_as(place_BTG)
        return torch.where(padding_BT[:, :, None], trash_BTG, place_BTG).view(-1)

    def _stored(self, table: Tensor, low: int, high: int) -> Tensor:
        pool = self.pool
        table_NGSD = table.view(pool.slots + 1, pool.groups, pool.capacity, pool.channels)[:, :, low:high]
        if self.contiguous:
            return table_NGSD[self.first : self.first + len(self.starts)]
        return table_NGSD.index_select(0, self.slots_B)

    def _decode_span(self, window: int) -> tuple[int, int, Tensor | None]:
        """Return the bounds of the stored tokens that any row sees and, where rows differ, their mask_B1S."""
        lows = [max(0, start - window) for start in self.starts]
        low, high = min(lows), max(self.starts) + 1
        if max(lows) == low and min(self.starts) + 1 == high:
            return low, high, None
        stored_S = torch.arange(low, high, device=self.pool.device)
        distance_BS = self.start_B[:, None] - stored_S
        return low, high, self._mask((distance_BS >= 0) & (distance_BS <= window))[:, None]

    def _chunk_span(self, window: int) -> tuple[int, int, Tensor | None]:
        """Return the bounds and the mask_B1TS of a step of several tokens; None is plain causal."""
        low = max(0, min(self.starts) - window)
        high = max(start + count for start, count in zip(self.starts, self.counts, strict=True))
        if high == self.tokens and max(self.starts) == 0 and window >= self.tokens - 1:
            return low, high, None
        step_T = torch.arange(self.tokens, device=self.pool.device)
        # Padding sees what the row's last token sees: a row of masked keys alone would be NaN.
        position_BT = self.start_B[:, None] + torch.minimum(step_T, self.last_B[:, None])
        distance_BTS = position_BT[:, :, None] - torch.arange(low, high, device=self.pool.device)
        return low, high, self._mask((distance_BTS >= 0) & (distance_BTS <= window))[:, None]

    def _mask(self, visible: Tensor) -> Tensor:
        zeros = torch.zeros(visible.shape, dtype=self.pool.dtype, device=self.pool.device)
        return zeros.masked_fill_(~visible, float("-inf"))


def _decode(q_B1HD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask_B1S: Tensor | None) -> Tensor:
    """Attend with one query a row; two batched matrix-vector products.

    SDPA takes 722 us for 8 rows x 2 heads x 256 bf16 tokens on one core, this 95; in fp32 77 and 62
    (2026-11, AVX512-bf16), hence keys come first in the product and a CPU pool is fp32.
    The weights are summed in fp64: in fp32 the sum's last bit depends on how far other rows reach.
    """
    rows, groups, stored, channels = k_BGSD.shape
    q_XRD = q_B1HD.view(rows * groups, -1, channels) * channels**-0.5
    k_XSD, v_XSD = k_BGSD.flatten(0, 1), v_BGSD.flatten(0, 1)
    score_XRS = torch.bmm(k_XSD, q_XRD.transpose(1, 2)).transpose(1, 2)
    if mask_B1S is not None:
        score_XRS = (score_XRS.view(rows, groups, -1, stored) + mask_B1S[:, None]).view_as(score_XRS)
    weight_XRS = (score_XRS - score_XRS.amax(-1, keepdim=True)).exp_()
    total_XR1 = weight_XRS.sum(-1, keepdim=True, dtype=torch.float64).to(weight_XRS.dtype)
    return (torch.bmm(weight_XRS, v_XSD) / total_XR1).view(rows, 1, -1, channels)

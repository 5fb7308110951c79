"""Matrices laid out once for the CPU's bf16 kernels instead of on every call.

Knows modules with a `weight`; nothing of the engine or of the model around them. With oneDNN's packed
product a row's result is also the same whatever the number of rows (checked 1 to 64, AVX512-bf16, 2026-11).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanochat.gpt import Linear

MIN_SIZE = 64
"""Smaller matrices gain nothing."""


class PackedLinear(nn.Module):
    """`Linear` over a packed copy of its weight. Cannot be saved or trained."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = linear.weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the transposed weight, bf16."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return result


def can_pack() -> bool:
    """Return whether this build and processor have bf16 matrix kernels for packed weights."""
    ops = torch.ops.mkldnn
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(ops, name) for name in names) and bool(ops._is_mkldnn_bf16_supported())


def pack(model: nn.Module) -> int:
    """Replace the model's bf16 matrices on the CPU by packed ones; return how many.

    8 rows x 256 -> 1,024: 29 us plain, 20 packed; 768 -> 3,072: 179 and 106; one row: the same (one core,
    2026-11). The model answers as before, but can no longer be saved or trained.
    """
    if not can_pack():
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear) and _fits(child.weight):
                setattr(parent, name, PackedLinear(child))
                count += 1
    return count


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and min(weight.shape) >= MIN_SIZE

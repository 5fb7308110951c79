"""Matrix products whose rows do not depend on one another, so that batching never changes an answer.

Knows modules with a `weight`; nothing of the engine or of the model around them. A BLAS picks its kernel,
and with it the order of a sum, by the number of rows. oneDNN's product over a weight that was laid out once
does not, and is faster; what holds on this machine is measured, not assumed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nanochat.gpt import Linear

Batching = Literal["any", "full", "one"]
"""Rows of a forward that leave each row's bits alone: any number, always the largest, or one."""


class PackedLinear(nn.Module):
    """`Linear` over a packed copy of its weight. Cannot be saved or trained."""

    dtype: torch.dtype
    device: torch.device

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = linear.weight.shape
        self.dtype, self.device = linear.weight.dtype, linear.weight.device
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the transposed weight, in the weight's dtype."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return result


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this build and processor have matrix kernels for packed weights of that type."""
    ops = torch.ops.mkldnn
    if not all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    if dtype == torch.bfloat16:
        return hasattr(ops, "_is_mkldnn_bf16_supported") and bool(ops._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(model: nn.Module) -> int:
    """Replace the model's matrices on the CPU by packed ones; return how many.

    bf16, 8 rows x 256 -> 1,024: 29 us plain, 20 packed; 768 -> 3,072: 179 and 106; one row: the same (one
    core, 2026-11). The model answers as before, but can no longer be saved or trained.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (
                isinstance(child, Linear)
                and child.weight.device.type == "cpu"
                and can_pack(child.weight.dtype)
            ):
                setattr(parent, name, PackedLinear(child))
                count += 1
    return count


@torch.no_grad()
def batching(model: nn.Module, rows: int) -> Batching:
    """Try each kind of matrix of the model on random rows, up to `rows` of them; return what is safe.

    Plain matrices are never safe at any number: bf16 rounds the differences away often, not always.
    """
    kinds: dict[tuple[int, int, bool], Linear | PackedLinear] = {}
    for module in model.modules():
        if isinstance(module, Linear):
            kinds.setdefault((module.weight.size(1), module.weight.size(0), False), module)
        elif isinstance(module, PackedLinear):
            kinds.setdefault((module.inputs, module.outputs, True), module)
    found = {_batching(module, inputs, rows) for (inputs, _, _), module in kinds.items()}
    return "one" if "one" in found else "full" if "full" in found else "any"


def _batching(linear: Linear | PackedLinear, inputs: int, rows: int) -> Batching:
    packed = isinstance(linear, PackedLinear)
    stored = linear if isinstance(linear, PackedLinear) else linear.weight
    generator = torch.Generator().manual_seed(0)
    x_B1C = torch.randn(rows, 1, inputs, generator=generator).to(stored.device, stored.dtype)
    y_B1C = linear(x_B1C)
    parts = ((first, count) for count in range(1, rows) for first in {0, rows - count})
    if packed and all(torch.equal(linear(x_B1C[f : f + n]), y_B1C[f : f + n]) for f, n in parts):
        return "any"
    turned = (linear(x_B1C.roll(shift, 0)).roll(-shift, 0) for shift in range(1, rows))
    return "full" if all(torch.equal(y, y_B1C) for y in turned) else "one"

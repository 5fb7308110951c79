"""Which parameter is trained how: AdamW or Muon, learning rate, betas, weight decay.

Names and numbers only; the update rules are in `muon` and `muon_adamw`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nanochat.shape import Preset, Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How one kind of parameter is trained, before the schedule."""

    kind: Literal["adamw", "muon"]
    lr: float
    betas: tuple[float, float] = (0.8, 0.95)
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimHyper:
    """Numbers of the optimizer that do not change during a stage."""

    arch: Literal["modern", "classic"] = "modern"
    width: int
    lr_scale: float = 1.0
    """s of the recipe: sqrt(B / 2^19)."""
    eps: float = 1e-10
    muon_bf16: bool = True
    """Orthogonalise in bf16; fp32 for exactness, and wherever compute is fp32."""
    compiled: bool = False
    """Compile the update rules (needs a compiler)."""

    @classmethod
    def for_preset(cls, preset: Preset, *, muon_bf16: bool = True, compiled: bool = False) -> OptimHyper:
        """Return the hyper-parameters of a preset."""
        return cls.for_shape(preset.shape, lr_scale=preset.lr_scale, muon_bf16=muon_bf16, compiled=compiled)

    @classmethod
    def for_shape(
        cls, shape: Shape, *, lr_scale: float = 1.0, muon_bf16: bool = True, compiled: bool = False
    ) -> OptimHyper:
        """Return the hyper-parameters of a shape trained at batch scale `lr_scale`."""
        return cls(
            arch=shape.arch, width=shape.width, lr_scale=lr_scale, muon_bf16=muon_bf16, compiled=compiled
        )

    def rule(self, name: str) -> Rule:
        """Return how the parameter `name` of a GPT is trained."""
        scale = self.lr_scale
        narrow = scale * (self.width / 768) ** -0.5
        if name.startswith("blocks."):
            return Rule(kind="muon", lr=0.02 * scale)
        if self.arch == "classic":
            return Rule(kind="adamw", lr={"wte.weight": 0.2, "lm_head.weight": 0.004}[name] * narrow)
        if name.startswith("value_embeds."):
            return Rule(kind="adamw", lr=0.15 * narrow, betas=(0.8, 0.995), weight_decay=0.01)
        return {
            "lm_head.weight": Rule(kind="adamw", lr=0.008 * narrow, betas=(0.8, 0.96), weight_decay=0.01),
            "wte.weight": Rule(kind="adamw", lr=0.3 * narrow, betas=(0.8, 0.995), weight_decay=0.001),
            "resid_L": Rule(kind="adamw", lr=0.005 * scale, weight_decay=0.05),
            "embed_L": Rule(kind="adamw", lr=0.5 * scale, betas=(0.96, 0.95)),
            "smear_gate.weight": Rule(kind="adamw", lr=0.2),
            "smear_scale": Rule(kind="adamw", lr=0.2),
            "backout": Rule(kind="adamw", lr=0.2),
        }[name]


def muon_lr(lr: float, rows: int, columns: int) -> float:
    """Return a matrix's learning rate: tall matrices take larger steps."""
    return lr * math.sqrt(max(1.0, rows / columns))


def stacks_by_shape(sizes: Iterable[tuple[str, tuple[int, int]]]) -> dict[tuple[int, int], list[str]]:
    """Return matrix names grouped by equal shape, in the order given."""
    stacks: dict[tuple[int, int], list[str]] = {}
    for name, size in sizes:
        stacks.setdefault(size, []).append(name)
    return stacks

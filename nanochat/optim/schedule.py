"""Schedules of the optimizer: pure functions of the step, exact at every step.

A stage's whole schedule is one `Schedule`, so no stage repeats another's code.
Knows nothing of parameters or gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanochat.shape import Preset


def lr_multiplier(step: int, steps: int, *, warmup: int, warmdown: int, final: float) -> float:
    """Return the learning-rate multiplier of step 0 .. steps - 1.

    Linear warmup (step + 1) / warmup, then 1, then over the last `warmdown` steps linearly towards `final`.
    """
    if step < warmup:
        return (step + 1) / warmup
    if step <= steps - warmdown:
        return 1.0
    left = (steps - step) / warmdown
    return left + (1.0 - left) * final


def muon_momentum(
    step: int,
    steps: int,
    *,
    warmup: int = 400,
    warmdown: int = 0,
    start: float = 0.85,
    peak: float = 0.97,
    end: float = 0.90,
) -> float:
    """Return Muon's momentum: start -> peak over `warmup` steps, peak, then -> end over the last `warmdown`.

    Where the two overlap the warmup wins.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    begin = steps - warmdown
    if warmdown and step >= begin:
        return peak + (end - peak) * (step - begin) / warmdown
    return peak


def muon_weight_decay(step: int, steps: int, *, base: float) -> float:
    """Return Muon's weight decay: from `base` along half a cosine to 0."""
    return base * 0.5 * (1.0 + math.cos(math.pi * step / steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepHyper:
    """What `MuonAdamW.step` takes at one step."""

    lr_mult: float
    muon_momentum: float
    muon_wd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Everything about a training stage that depends on the step."""

    steps: int
    peak: float = 1.0
    """Multiplier of every learning rate between warmup and warmdown."""
    warmup: int
    warmdown: int
    final: float
    momentum_warmup: int
    momentum_warmdown: int = 0
    momentum_peak: float = 0.97
    momentum_end: float = 0.90
    weight_decay: float = 0.0

    def at(self, step: int) -> StepHyper:
        """Return the hyper-parameters of step 0 .. steps - 1."""
        multiplier = lr_multiplier(
            step, self.steps, warmup=self.warmup, warmdown=self.warmdown, final=self.final
        )
        momentum = muon_momentum(
            step,
            self.steps,
            warmup=self.momentum_warmup,
            warmdown=self.momentum_warmdown,
            peak=self.momentum_peak,
            end=self.momentum_end,
        )
        return StepHyper(
            lr_mult=self.peak * multiplier,
            muon_momentum=momentum,
            muon_wd=muon_weight_decay(step, self.steps, base=self.weight_decay),
        )


def base_schedule(preset: Preset) -> Schedule:
    """Return the schedule of base training."""
    steps = preset.base_steps
    modern = preset.shape.arch == "modern"
    warmdown = round(preset.lr_warmdown_fraction * steps)
    return Schedule(
        steps=steps,
        warmup=round(preset.lr_warmup_fraction * steps),
        warmdown=warmdown,
        final=preset.lr_final,
        momentum_warmup=round(preset.momentum_warmup_fraction * steps),
        momentum_warmdown=warmdown if modern else 0,
        momentum_peak=0.97 if modern else 0.95,
        weight_decay=preset.weight_decay,
    )


def mid_schedule(preset: Preset) -> Schedule:
    """Return the schedule of midtraining: full rate, the last 20% linear to 0."""
    return _finetune(preset.mid_steps, peak=1.0, warmdown=0.2)


def sft_schedule(preset: Preset) -> Schedule:
    """Return the schedule of supervised fine-tuning: 0.8 of the rate, the last half linear to 0."""
    return _finetune(preset.sft_steps, peak=0.8, warmdown=0.5)


def _finetune(steps: int, *, peak: float, warmdown: float) -> Schedule:
    return Schedule(
        steps=steps,
        peak=peak,
        warmup=0,
        warmdown=round(warmdown * steps),
        final=0.0,
        momentum_warmup=min(300, 3 * steps // 4),  # 300 is the recipe's; short stages must reach the peak too
        momentum_peak=0.95,
    )

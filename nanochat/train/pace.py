"""How fast training goes and when it ends. Knows nothing of what a step does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

WARM_STEPS = 2  # steps of a process that compile, allocate and touch memory for the first time
RECENT_STEPS = 50


@dataclass(slots=True)
class Pace:
    """Speed from the step times of this process; the first steps count only until later ones exist."""

    tokens_per_step: int
    """Over all ranks and all micro-batches of an optimizer step."""
    flops_per_token: int
    peak_flops: float | None = None
    """Of all ranks together, per second."""
    _seen: int = 0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    def add(self, seconds: float) -> None:
        """Record one optimizer step."""
        self._seen += 1
        if self._seen <= WARM_STEPS + 1:
            self._recent.clear()
        self._recent.append(seconds)

    @property
    def step_s(self) -> float | None:
        """Median seconds of a recent step."""
        return median(self._recent) if self._recent else None

    @property
    def tok_per_s(self) -> float | None:
        """Tokens per second of all ranks."""
        return self.tokens_per_step / self.step_s if self.step_s else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, None where the device's peak is not known."""
        if self.tok_per_s is None or not self.peak_flops:
            return None
        return self.tok_per_s * self.flops_per_token / self.peak_flops

    def eta_s(self, steps_left: int) -> float | None:
        """Seconds until the last step at this pace."""
        return self.step_s * steps_left if self.step_s is not None else None

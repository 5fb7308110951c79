"""Figures with their uncertainty: Wilson intervals, chance levels, centred means.

Knows nothing of models or tasks beyond their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

CHAT_CORE = {"arc_easy": 0.25, "arc_challenge": 0.25, "mmlu": 0.25, "gsm8k": 0.0, "humaneval": 0.0}
"""The five tasks of ChatCORE and the accuracy that guessing gives."""
Z95 = 1.959964  # two-sided 95% of a normal distribution


def wilson(correct: int, total: int, *, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; (0, 1) without any observation."""
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    spread = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # Rounding must not put a bound on the wrong side of what was seen.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


@dataclass(frozen=True, slots=True)
class Score:
    """How many of a task's problems were answered right, and how many guessing would get."""

    task: str
    correct: int
    total: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Share of right answers; 0 without problems."""
        return self.correct / self.total if self.total else 0.0

    def fields(self) -> dict[str, float | int | str]:
        """Return the fields of an `eval` event: name, value, n, chance, low, high."""
        low, high = wilson(self.correct, self.total)
        return {
            "name": self.task,
            "value": round(self.accuracy, 6),
            "unit": "accuracy",
            "n": self.total,
            "chance": round(self.chance, 6),
            "low": round(low, 6),
            "high": round(high, 6),
        }


def centred(accuracy: float, chance: float) -> float:
    """Return 0 at chance level and 1 when all is right."""
    return (accuracy - chance) / (1.0 - chance)


def chat_core(accuracies: Mapping[str, float]) -> float | None:
    """Return ChatCORE, the mean centred accuracy of its five tasks; None unless all five are there."""
    if not CHAT_CORE.keys() <= accuracies.keys():
        return None
    return sum(centred(accuracies[task], chance) for task, chance in CHAT_CORE.items()) / len(CHAT_CORE)


def centred_mean(scores: list[Score]) -> tuple[str, float] | None:
    """Return the name and value of the mean centred accuracy of `scores`.

    The name is `chatcore` only for its five tasks; any other set is named after its tasks. None for fewer
    than two scores: the mean of one says nothing new.
    """
    if len(scores) < 2:
        return None
    accuracies = {score.task: score.accuracy for score in scores}
    core = chat_core(accuracies) if accuracies.keys() == CHAT_CORE.keys() else None
    if core is not None:
        return "chatcore", core
    mean = sum(centred(score.accuracy, score.chance) for score in scores) / len(scores)
    return f"centred_mean({','.join(sorted(accuracies))})", mean

"""Stable hashes and random streams: the same on every machine, Python version and run.

Knows nothing of the tasks. Seeds are strings, never small integers: Python's
generator takes the absolute value of an integer, so seeds 1 and -1 give one stream.
"""

from __future__ import annotations

import random
import re

from nanochat.data.split import bucket

_NOT_WORD = re.compile(r"[^\w]+")


def fraction(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the text of `parts` alone."""
    return bucket("\x1f".join(str(part) for part in parts))


def stream(*parts: object) -> random.Random:
    """Return a random generator of its own for the text of `parts`."""
    return random.Random("\x1f".join(str(part) for part in parts))


def normalise(text: str) -> str:
    """Return `text` in lower case with every run of punctuation and space as one space."""
    return _NOT_WORD.sub(" ", text.lower()).strip()

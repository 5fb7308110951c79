"""Stable hashes and random streams: the same on every machine, Python version and run.

Knows nothing of the tasks. Seeds are strings, never small integers: Python's
generator takes the absolute value of an integer, so seeds 1 and -1 give one stream.
"""

from __future__ import annotations

import hashlib
import random
import re

_NOT_WORD = re.compile(r"[^\w]+")


def fraction(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the text of `parts` alone."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def stream(*parts: object) -> random.Random:
    """Return a random generator of its own for the text of `parts`."""
    return random.Random("\x1f".join(str(part) for part in parts))


def normalise(text: str) -> str:
    """Return `text` in lower case with every run of punctuation and space as one space."""
    return _NOT_WORD.sub(" ", text.lower()).strip()

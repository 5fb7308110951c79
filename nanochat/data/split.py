"""Which side of a split a thing falls on, decided by a stable hash of its text.

Knows nothing of what the things are, so the same article, conversation, question
or word lands on the same side in every run, on every machine.
"""

from __future__ import annotations

import hashlib


def bucket(text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the characters of `text`."""
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def is_held_out(text: str, fraction: float) -> bool:
    """Return whether `text` belongs to the held-out `fraction` (0 to 1)."""
    return bucket(text) < fraction

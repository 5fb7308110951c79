"""Finds held-out questions inside training text, by runs of 13 normalised words; counts words on the way.

Words are compared in lower case without punctuation. A question of 8 to 12
words counts as a whole; a shorter one occurs by chance and is not looked for.
Knows nothing of files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

RUN_WORDS = 13
SHORTEST_WORDS = 8
_WORD = re.compile(r"[^\W_]+")
_TABLE_BITS = 22
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORD.findall(text.lower())


class Overlap:
    """The runs of words of a set of held-out questions; tells which texts contain one."""

    def __init__(self, questions: Iterable[str]) -> None:
        self.ids: dict[str, int] = {}
        self.runs: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        for question in questions:
            words = normalise(question)
            length = min(len(words), RUN_WORDS)
            if length < SHORTEST_WORDS:
                continue
            for start in range(len(words) - length + 1):
                self.runs[length].add(tuple(words[start : start + length]))
        for runs in self.runs.values():
            for run in runs:
                for word in run:
                    self.ids.setdefault(word, len(self.ids) + 1)
        self._tables = {length: self._table(length, runs) for length, runs in self.runs.items()}

    def _table(self, length: int, runs: set[tuple[str, ...]]) -> npt.NDArray[np.bool_]:
        ids = np.array([[self.ids[word] for word in run] for run in runs], dtype=np.uint64)
        table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        hashed = np.zeros(len(ids), dtype=np.uint64)
        for column in range(length):
            hashed = hashed * _PRIME + ids[:, column]
        table[hashed >> np.uint64(64 - _TABLE_BITS)] = True
        return table

    def find(self, text: str) -> str | None:
        """Return the first run of a held-out question that `text` contains; None where it contains none."""
        hits = self.find_all([text])
        return hits.get(0)

    def find_all(self, texts: Sequence[str]) -> dict[int, str]:
        """Return, by index, a held-out run for each text that contains one."""
        if not self.runs:
            return {}
        words: list[list[str]] = [normalise(text) for text in texts]
        get = self.ids.get
        ids = np.fromiter((get(word, 0) for some in words for word in (*some, "")), dtype=np.uint64)
        ends = np.cumsum([len(some) + 1 for some in words])
        hits: dict[int, str] = {}
        for length, table in self._tables.items():
            for position in self._candidates(ids, length, table):
                index = int(np.searchsorted(ends, position, side="right"))
                start = int(position) - (int(ends[index - 1]) if index else 0)
                run = tuple(words[index][start : start + length])
                if run in self.runs[length]:
                    hits.setdefault(index, " ".join(run))
        return hits

    @staticmethod
    def _candidates(
        ids: npt.NDArray[np.uint64], length: int, table: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.intp]:
        """Return positions where a run may begin: all of its words are known and its hash is in the table."""
        count = len(ids) - length + 1
        if count <= 0:
            return np.empty(0, dtype=np.intp)
        known = np.concatenate([[0], np.cumsum(ids != 0)])
        starts = np.flatnonzero(known[length:] - known[:-length] == length)
        hashed = np.zeros(len(starts), dtype=np.uint64)
        for offset in range(length):
            hashed = hashed * _PRIME + ids[starts + offset]
        found: npt.NDArray[np.intp] = starts[table[hashed >> np.uint64(64 - _TABLE_BITS)]]
        return found


def frequent_words(texts: Iterable[str], *, minimum: int = 3) -> list[str]:
    """Return the sorted words of 3 to 12 letters a-z that stand in lower case at least `minimum` times."""
    counts: dict[str, int] = defaultdict(int)
    pattern = re.compile(r"(?<![\w'’-])[a-z]{3,12}(?![\w'’-])")
    for text in texts:
        for word in pattern.findall(text):
            counts[word] += 1
    return sorted(word for word, count in counts.items() if count >= minimum)

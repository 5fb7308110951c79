"""Finds held-out questions inside training text, by runs of 13 normalised words; counts words on the way.

Words are compared in lower case without punctuation. A question of 8 to 12
words counts as a whole; a shorter one occurs by chance and is not looked for.
Knows nothing of files.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

RUN_WORDS = 13
SHORTEST_WORDS = 8
_WORD = re.compile(r"[^\W_]+")
_PLAIN_WORD = re.compile(r"(?<![\w'’-])[a-z]{3,12}(?![\w'’-])")
_TABLE_BITS = 22
_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing
_Hashes = npt.NDArray[np.uint64]


def normalise(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORD.findall(text.lower())


def _run_hashes(ids: _Hashes, starts: npt.NDArray[np.intp], length: int) -> _Hashes:
    """Return the 64-bit hash of the `length` word ids from each start on."""
    hashed = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(length):
        hashed = (hashed + ids[starts + offset]) * _STEP
        hashed ^= hashed >> np.uint64(29)
    return hashed


class Overlap:
    """The runs of words of a set of held-out questions; tells which texts contain one.

    Runs are compared by a 64-bit hash; a false hit (about 1 in 10^7 for a corpus) drops one document.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        self._ids: dict[str, int] = {}
        by_length: dict[int, list[list[int]]] = defaultdict(list)
        for question in questions:
            words = normalise(question)
            if len(words) >= SHORTEST_WORDS:
                ids = [self._ids.setdefault(word, len(self._ids) + 1) for word in words]
                by_length[min(len(words), RUN_WORDS)].append(ids)
        self._hashes = {length: self._hash_runs(length, rows) for length, rows in by_length.items()}
        self._tables = {length: self._table(hashes) for length, hashes in self._hashes.items()}

    @staticmethod
    def _hash_runs(length: int, rows: list[list[int]]) -> _Hashes:
        ids = np.array([word for row in rows for word in row], dtype=np.uint64)
        sizes = np.array([len(row) for row in rows])
        last = np.repeat(np.cumsum(sizes) - length, sizes)  # last start inside the row of each word
        starts = np.flatnonzero(np.arange(len(ids)) <= last)
        return np.unique(_run_hashes(ids, starts, length))

    @staticmethod
    def _table(hashes: _Hashes) -> npt.NDArray[np.bool_]:
        table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        table[hashes >> np.uint64(64 - _TABLE_BITS)] = True
        return table

    def find(self, text: str) -> str | None:
        """Return the first run of a held-out question that `text` contains; None where it contains none."""
        return self.find_all([text]).get(0)

    def find_all(self, texts: Sequence[str]) -> dict[int, str]:
        """Return, by index, a held-out run for each text that contains one."""
        words = [normalise(text) for text in texts]
        get = self._ids.get
        ids = np.fromiter((get(word, 0) for some in words for word in (*some, "")), dtype=np.uint64)
        ends = np.cumsum([len(some) + 1 for some in words])
        known = np.concatenate([[0], np.cumsum(ids != 0)])
        hits: dict[int, str] = {}
        for length, hashes in self._hashes.items():
            starts = np.flatnonzero(known[length:] - known[:-length] == length)
            for position in self._matches(ids, starts, length, hashes):
                index = int(np.searchsorted(ends, position, side="right"))
                start = int(position) - (int(ends[index - 1]) if index else 0)
                hits.setdefault(index, " ".join(words[index][start : start + length]))
        return hits

    def _matches(
        self, ids: _Hashes, starts: npt.NDArray[np.intp], length: int, hashes: _Hashes
    ) -> npt.NDArray[np.intp]:
        """Return the starts whose run is a held-out one; the table sorts out nearly all others at once."""
        hashed = _run_hashes(ids, starts, length)
        likely = self._tables[length][hashed >> np.uint64(64 - _TABLE_BITS)]
        starts, hashed = starts[likely], hashed[likely]
        place = np.minimum(np.searchsorted(hashes, hashed), len(hashes) - 1)
        found: npt.NDArray[np.intp] = starts[hashes[place] == hashed]
        return found


def frequent_words(
    texts: Iterable[str], *, minimum: int = 3, known_from: Iterable[str] | None = None
) -> list[str]:
    """Return the sorted words of 3 to 12 letters a-z that stand in lower case at least `minimum` times.

    `known_from`: only words that also stand in these texts (edited ones, so that misspellings drop out).
    """
    counts = Counter(word for text in texts for word in _PLAIN_WORD.findall(text))
    allowed = counts.keys() if known_from is None else {w for t in known_from for w in _PLAIN_WORD.findall(t)}
    return sorted(word for word, count in counts.items() if count >= minimum and word in allowed)

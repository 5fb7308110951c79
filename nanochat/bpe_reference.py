"""Byte pair encoding in plain Python: the documentation and the oracle of the Rust extension.

Slow and short. Knows nothing of special tokens, threads or files; needs only the
standard library. Characters newer than Python's Unicode tables count as symbols.

1. `split` cuts text into chunks: words with one leading space, numbers of at most two
   digits, punctuation, white space. Merges never cross a chunk.
2. `train` starts from the 256 bytes and, as often as asked, makes a token of the most
   frequent pair of neighbours; of equally frequent ones the smaller pair.
3. `encode` merges the pair of lowest rank, of equals the leftmost, until none is left.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

_WHITE_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_CONTRACTIONS = ("s", "d", "m", "t", "ll", "ve", "re", "\u017f")  # the long s folds to s

Pair = tuple[int, int]


def _kind(character: str) -> str:
    """Return L for letters, N for numbers, S for white space, P for all else and E for no character."""
    if character in _WHITE_SPACE:
        return "S"
    category = unicodedata.category(character)[0] if character else "E"
    return category if category in "LNE" else "P"


def _end_of_run(text: str, start: int, kind: str) -> int:
    while start < len(text) and _kind(text[start]) == kind:
        start += 1
    return start


def _end_of_chunk(text: str, start: int) -> int:
    first, second = text[start], text[start + 1 : start + 2]
    kind, next_kind = _kind(first), _kind(second)
    if first == "'":
        for ending in _CONTRACTIONS:
            if text[start + 1 : start + 1 + len(ending)].lower() == ending:
                return start + 1 + len(ending)
    if kind == "L" or (next_kind == "L" and kind != "N" and first not in "\r\n"):
        return _end_of_run(text, start + 1, "L")
    if kind == "N":
        return start + 2 if next_kind == "N" else start + 1
    if kind == "P" or (first == " " and next_kind == "P"):
        end = _end_of_run(text, start + 1, "P")
        while end < len(text) and text[end] in "\r\n":
            end += 1
        return end
    end = _end_of_run(text, start, "S")
    newline = max(text.rfind("\n", start, end), text.rfind("\r", start, end))
    if newline >= 0:
        return newline + 1
    # The last white space before a word belongs to the word.
    return end if end == len(text) or end == start + 1 else end - 1


def split(text: str) -> Iterator[str]:
    """Yield the chunks of `text`; together they are `text`."""
    start = 0
    while start < len(text):
        end = _end_of_chunk(text, start)
        yield text[start:end]
        start = end


def _merge(ids: list[int], pair: Pair, token: int) -> list[int]:
    """Return `ids` with `token` for each occurrence of `pair`, from left to right."""
    out: list[int] = []
    i = 0
    while i < len(ids):
        found = (ids[i], ids[i + 1]) == pair if i + 1 < len(ids) else False
        out.append(token if found else ids[i])
        i += 2 if found else 1
    return out


def train(texts: Iterable[str], vocab_size: int) -> list[bytes]:
    """Return 256 bytes and up to `vocab_size - 256` merged tokens, in the order of their ranks."""
    chunks = Counter(chunk.encode() for text in texts for chunk in split(text))
    words = [(list(chunk), count) for chunk, count in chunks.items()]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        pairs: Counter[Pair] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = [(_merge(ids, best, len(tokens)), count) for ids, count in words]
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens


def encode(tokens: list[bytes], text: str) -> list[int]:
    """Return the ids of `text` under `tokens` in the order of their ranks."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ids: list[int] = []
    for chunk in split(text):
        data = chunk.encode()
        parts = [data] if data in ranks else [bytes([byte]) for byte in data]
        while True:
            pairs = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts))]
            rank, i = min(pairs, default=(len(ranks), 0))
            if rank == len(ranks):
                break
            parts[i : i + 2] = [tokens[rank]]
        ids.extend(ranks[part] for part in parts)
    return ids

"""The BPE against the index's `rustbpe` and `tiktoken`: CPU seconds of the same work on the same texts.

Knows nothing of models. Every contender runs in this process, in turn, several rounds; the minimum counts,
because other load can only add. Run: `python -m tests.bench bpe`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nanochat_rustbpe
import pyarrow.parquet as pq
import tiktoken

import rustbpe
from nanochat.settings import home
from tests.bench.row import Row

DATASET = "packages-cpu"
ROUNDS = 3
COMMAND = "python -m tests.bench bpe"


def corpus(folder: Path) -> list[str]:
    """Return every training text of a prepared dataset."""
    shards = sorted(folder.glob("shard_*.parquet"))[:-1]
    return [text for shard in shards for text in pq.read_table(shard).column("text").to_pylist()]


def measure(
    contenders: dict[str, Callable[[], Any]], *, rounds: int = ROUNDS
) -> dict[str, tuple[float, float]]:
    """Return the least CPU and wall seconds of each contender, over rounds in which all take a turn."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, work in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken = time.process_time() - cpu, time.perf_counter() - wall
            cpu_s, wall_s = best.get(name, taken)
            best[name] = min(cpu_s, taken[0]), min(wall_s, taken[1])
    return best


def train_rustbpe(texts: Sequence[str], vocab_size: int) -> rustbpe.Tokenizer:
    """Train the oracle with our pattern."""
    tokenizer = rustbpe.Tokenizer()
    pattern = nanochat_rustbpe.GPT4_PATTERN
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=pattern)
    return tokenizer


def train_rows(texts: Sequence[str], vocab_size: int) -> Iterator[Row]:
    """Compare training; the merges must be equal."""
    ours = nanochat_rustbpe.Tokenizer.train(texts, vocab_size).mergeable_ranks()
    theirs = train_rustbpe(texts, vocab_size).get_mergeable_ranks()
    equal = ours == [(bytes(token), rank) for token, rank in theirs]
    seconds = measure(
        {
            "ours": lambda: nanochat_rustbpe.Tokenizer.train(texts, vocab_size),
            "rustbpe 0.1.0": lambda: train_rustbpe(texts, vocab_size),
        }
    )
    yield from _rows(f"BPE training, V = {vocab_size:,}", texts, seconds, equal=equal, what="merges")


def encode_rows(texts: list[str], vocab_size: int) -> Iterator[Row]:
    """Compare encoding to lists of ids, one text after another; the ids must be equal."""
    ours = nanochat_rustbpe.Tokenizer.train(texts, vocab_size)
    theirs = train_rustbpe(texts, vocab_size)
    third = tiktoken.Encoding(
        "ours",
        pat_str=nanochat_rustbpe.GPT4_PATTERN,
        mergeable_ranks=dict(ours.mergeable_ranks()),
        special_tokens={},
    )
    contenders: dict[str, Callable[[str], list[int]]] = {
        "ours": ours.encode_ordinary,
        "rustbpe 0.1.0": theirs.encode,
        f"tiktoken {tiktoken.__version__}": third.encode_ordinary,
    }
    equal = all(len({tuple(encode(text)) for encode in contenders.values()}) == 1 for text in texts)
    seconds = measure({name: _over(encode, texts) for name, encode in contenders.items()})
    yield from _rows(f"BPE encoding, V = {vocab_size:,}", texts, seconds, equal=equal, what="ids")
    packed = measure(
        {"ours": lambda: ours.encode_packed(texts), "rustbpe 0.1.0": lambda: theirs.batch_encode(texts)}
    )
    yield from _rows(
        f"BPE encoding of a batch to 16-bit ids, V = {vocab_size:,}", texts, packed, equal=equal, what="ids"
    )


def _over(encode: Callable[[str], list[int]], texts: Sequence[str]) -> Callable[[], None]:
    def work() -> None:
        for text in texts:
            encode(text)

    return work


def _rows(
    name: str, texts: Sequence[str], seconds: dict[str, tuple[float, float]], *, equal: bool, what: str
) -> Iterator[Row]:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    cpu_s, wall_s = seconds["ours"]
    for peer, (peer_cpu_s, peer_wall_s) in seconds.items():
        if peer != "ours":
            yield Row(
                name=name,
                figure=megabytes / cpu_s,
                unit="MB per CPU s",
                bound=megabytes / peer_cpu_s if equal else float("inf"),
                better="higher",
                peer=peer,
                peer_figure=megabytes / peer_cpu_s,
                ratio=peer_cpu_s / cpu_s,
                command=COMMAND,
                notes=f"{megabytes:.0f} MB; {what} {'equal' if equal else 'DIFFER'}; "
                f"CPU {cpu_s:.2f} s, peer {peer_cpu_s:.2f} s; wall {wall_s:.2f} s, peer {peer_wall_s:.2f} s",
            )


def rows(texts: list[str] | None = None, *, vocab_sizes: Sequence[int] = (4_096, 32_768)) -> list[Row]:
    """Measure every bar; on the prepared dataset unless texts are given."""
    if texts is None:
        texts = corpus(home().dataset(DATASET))
    return [
        row
        for vocab_size in vocab_sizes
        for part in (train_rows(texts, vocab_size), encode_rows(texts, vocab_size))
        for row in part
    ]

"""Stage `tok_train`: the run's own tokenizer, trained on the first characters of the training shards.

Knows nothing of the algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from nanochat.data.shards import iter_documents
from nanochat.run.context import StageContext, StageResult
from nanochat.shape import resolve
from nanochat.tokenizer import Tokenizer


def run(context: StageContext) -> StageResult:
    """Train and save `tokenizer.json`."""
    preset = resolve(context.spec)
    began = time.perf_counter()
    counted = Counted(iter_documents(context.dataset_dir, "train"))
    texts = capped(counted, characters=preset.tokenizer_characters, document=preset.document_characters)
    tokenizer = Tokenizer.train(texts, preset.shape.vocab_size)
    path = context.dir / "tokenizer.json"
    tokenizer.save(path)
    context.emit("step", step=1, steps=1, unit="tokenizer")
    metrics = {
        "vocab_size": tokenizer.vocab_size,
        "documents": counted.documents,
        "train_s": round(time.perf_counter() - began, 3),
    }
    return StageResult(outputs=[path], metrics=metrics)


class Counted:
    """Counts what passes through."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.documents += 1
            yield text


def capped(texts: Iterable[str], *, characters: int, document: int) -> Iterator[str]:
    """Yield texts, each cut to `document` characters, until `characters` are reached."""
    left = characters
    for text in texts:
        part = text[: min(document, left)]
        left -= len(part)
        yield part
        if left <= 0:
            return

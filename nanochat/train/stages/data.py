"""Stage `data`: fetches, cleans, splits and writes the dataset of the run; knows nothing of models."""

from __future__ import annotations

from nanochat.data.manifest import load
from nanochat.data.prepare import prepare
from nanochat.run.context import StageContext, StageResult
from nanochat.shape import resolve


def run(context: StageContext) -> StageResult:
    """Prepare the dataset that the run names; a no-op when it is there already.

    Raises:
        NanochatError: as `prepare`.
    """
    spec = context.spec
    emit = context.reporter()

    def report(what: str, done: int, total: int) -> None:
        context.raise_if_stopped("what was downloaded stays in the cache")
        emit(what, done, total)

    base = resolve(spec)
    folder = prepare(
        context.home,
        source=spec.source,
        identity=spec.identity,
        preset=spec.preset,
        tokens=base.base_steps * base.total_batch_tokens,
        report=report,
    )
    manifest = load(folder)
    metrics = {
        "dataset": manifest.hash,
        "documents": manifest.documents,
        "utf8_bytes": manifest.utf8_bytes,
        "shards": len(manifest.shards),
        "held_out_bytes": {
            entry.origin or name: entry.utf8_bytes
            for name, entry in manifest.files.items()
            if entry.kind == "heldout"
        },
    }
    return StageResult(outputs=[folder / "manifest.json", folder / "DATASET.md"], metrics=metrics)

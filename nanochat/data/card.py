"""`DATASET.md`: what a dataset holds, in sizes, licences and attributions; reads nothing but the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.data.manifest import DatasetManifest
from nanochat.files import write_text

_MEANING = {
    "train": "training text",
    "val": "validation text (held-out documents of all sources, mixed)",
    "heldout": "held-out text of one source, never trained on",
    "chat": "conversations",
    "eval": "evaluation problems",
    "words": "words for the spelling task",
    "identity": "identity conversations given by the user",
}


def write_card(folder: Path, manifest: DatasetManifest, notes: Sequence[str]) -> None:
    """Write `DATASET.md`: contents, sources with licence and attribution, and how it was split."""
    lines = [
        f"# Dataset `{manifest.name}`",
        "",
        f"Source `{manifest.source}`: {manifest.documents:,} training documents, "
        f"{manifest.utf8_bytes:,} bytes of UTF-8 text "
        f"in {len(manifest.train_shards)} shards; `{manifest.validation_shard}` is validation.",
        f"Dataset hash `{manifest.hash}`.",
        "",
        "## Files",
        "",
        "| file | what | rows | text bytes |",
        "|---|---|---:|---:|",
    ]
    for name, entry in sorted(manifest.files.items()):
        size = f"{entry.utf8_bytes:,}" if entry.utf8_bytes is not None else ""
        lines.append(f"| `{name}` | {_MEANING[entry.kind]} | {entry.rows:,} | {size} |")
    lines += [
        "",
        "## Sources, licences, attribution",
        "",
        "| source | from | licence | attribution |",
        "|---|---|---|---|",
    ]
    for source in manifest.sources:
        origin = (
            f"{source.package} {source.version}" if source.package else source.url or "made by this program"
        )
        lines.append(f"| {source.name} | {origin} | {source.licence} | {source.attribution} |")
    if notes:
        lines += ["", "## Splits and limits", ""] + [f"- {note}" for note in notes]
    write_text(folder / "DATASET.md", "\n".join(lines) + "\n")

"""Checks a dataset folder against its manifest; knows only sizes and checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nanochat.data.manifest import DatasetManifest, load
from nanochat.errors import DataError
from nanochat.files import sha256_file

HINT = "delete that file and run `nanochat data prepare`: it makes what is missing anew"
QUICK_BYTES = 256 << 20
"""Up to this size a repeated `prepare` reads every byte again (0.3 s); above, sizes alone."""


def check_file(folder: Path, name: str, *, manifest: DatasetManifest, content: bool = True) -> None:
    """Compare one file with its entry.

    Raises:
        DataError: names the file and what differs.
    """
    entry, path = manifest.files[name], folder / name
    if not path.is_file():
        raise DataError(f"dataset `{manifest.name}`: `{path}` is missing", hint=HINT)
    size = path.stat().st_size
    if size != entry.bytes:
        raise DataError(
            f"dataset `{manifest.name}`: `{path}` has {size:,} bytes, its manifest says {entry.bytes:,}",
            hint=HINT,
        )
    if content and sha256_file(path) != entry.sha256:
        raise DataError(
            f"dataset `{manifest.name}`: `{path}` is damaged: its sha256 differs from the manifest", hint=HINT
        )


def verify_dataset(
    folder: Path, *, content: bool = True, report: Callable[[str, int, int], None] | None = None
) -> DatasetManifest:
    """Check every file of a dataset and return its manifest.

    Args:
        folder: the dataset's folder.
        content: read every byte; otherwise only sizes.
        report: called with (file, files checked, files in all).

    Raises:
        DataError: the first file that is missing, cut or changed, by name.
    """
    manifest = load(folder)
    for done, name in enumerate(sorted(manifest.files)):
        if report is not None:
            report(name, done, len(manifest.files))
        check_file(folder, name, manifest=manifest, content=content)
    return manifest


def is_complete(folder: Path, recipe: str) -> bool:
    """Return whether the folder holds a finished, undamaged dataset of exactly this recipe."""
    try:
        manifest = load(folder)
        if manifest.recipe != recipe:
            return False
        size = sum(entry.bytes for entry in manifest.files.values())
        verify_dataset(folder, content=size <= QUICK_BYTES)
    except DataError:
        return False
    return True

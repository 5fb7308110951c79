"""Adds the user's identity conversations to a finished dataset, or takes them out; leaves all else alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanochat.data.build import json_line
from nanochat.data.manifest import FileEntry, load
from nanochat.files import sha256_file, write_bytes

NAME = "chat/identity.jsonl"


def apply_identity(folder: Path, rows: list[dict[str, Any]] | None) -> None:
    """Make `chat/identity.jsonl` hold exactly `rows`; remove it for None.

    The dataset's hash stays: identity is chat material, the text does not depend on it.

    Raises:
        StorageError: the volume is full.
    """
    manifest = load(folder)
    path = folder / NAME
    files = {name: entry for name, entry in manifest.files.items() if name != NAME}
    if rows is not None:
        data = b"".join(map(json_line, rows))
        write_bytes(path, data)
        files[NAME] = FileEntry(sha256=sha256_file(path), bytes=len(data), kind="identity", rows=len(rows))
    if files != manifest.files:
        manifest.model_copy(update={"files": files}).save(folder)
    if rows is None:
        path.unlink(missing_ok=True)

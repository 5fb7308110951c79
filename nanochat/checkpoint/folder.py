"""Committed folders: files and a manifest of their sizes and sha256, published by one rename.

Used for checkpoints and for exported models. Knows nothing of tensors.

A folder is written under a hidden name, every file is fsynced, `manifest.json` is
written last, the hidden folder is renamed once, its parent is fsynced. So a reader
sees a whole folder or none, at every instant and after power loss.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nanochat.errors import DataError
from nanochat.files import fsync_dir, hash_json, sha256_file, storage_errors

MANIFEST = "manifest.json"
Entry = dict[str, Any]
"""`{"bytes": int, "sha256": str}`"""


class Sink(Protocol):
    """Where bytes of one file go."""

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`."""
        ...


class HashingFile:
    """A new file that hashes what is written, so that nothing is read back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data` (a raw file may take less at once)."""
        view = memoryview(data).cast("B")
        size = len(view)
        self._hash.update(view)
        while view:
            view = view[self._file.write(view) or 0 :]
        self._bytes += size
        return size

    def close(self) -> Entry:
        """Make the file durable; returns its manifest entry."""
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def abort(self) -> None:
        """Close without a promise."""
        self._file.close()


@contextmanager
def hashing_file(path: Path) -> Iterator[tuple[HashingFile, Entry]]:
    """Yield a file to write and the entry that is filled in when the block ends well.

    Raises:
        StorageError: the volume is full or failing.
    """
    entry: Entry = {}
    with storage_errors(path):
        file = HashingFile(path)
        try:
            yield file, entry
            entry.update(file.close())
        except BaseException:
            file.abort()
            raise


def write_file(path: Path, data: bytes) -> Entry:
    """Write and fsync a new file; returns its manifest entry."""
    with hashing_file(path) as (file, entry):
        file.write(data)
    return entry


def encode_json(value: Any) -> bytes:
    """Return indented JSON with sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed `manifest.json`: facts of the writer, and the files. It also holds its own sha256."""

    values: dict[str, Any]
    files: dict[str, Entry]


def read_manifest(folder: Path) -> Manifest:
    """Parse a folder's manifest and compare the names and sizes of its files.

    Raises:
        DataError: names the first file that is missing, left over or of another size.
    """
    where = f"{folder.parent.name}/{folder.name}"
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        own = values.pop("sha256")
        files = {str(name): _entry(entry) for name, entry in values.pop("files").items()}
    except FileNotFoundError:
        raise DataError(f"`{where}` has no `{MANIFEST}`") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"`{where}/{MANIFEST}` does not parse: {error}") from None
    if own != hash_json({**values, "files": files}):
        raise DataError(f"`{where}/{MANIFEST}` does not match its own sha256")
    for name, entry in files.items():
        if "/" in name or name.startswith("."):
            raise DataError(f"`{where}/{MANIFEST}` names `{name}`, which is not a plain file name")
        path = folder / name
        size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
        if size is None:
            raise DataError(f"`{where}` does not match its manifest: `{name}` is missing")
        if size != entry["bytes"]:
            raise DataError(
                f"`{where}` does not match its manifest: `{name}` has {size:,} bytes,"
                f" expected {entry['bytes']:,}"
            )
    left = {path.name for path in folder.iterdir()} - files.keys() - {MANIFEST}
    if extra := sorted(name for name in left if not name.startswith(".")):
        raise DataError(f"`{where}` does not match its manifest: `{extra[0]}` is not in it")
    return Manifest(values, files)


def _entry(entry: Entry) -> Entry:
    if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
        raise TypeError("a file's entry needs `bytes` and `sha256`")
    return entry


def verify(folder: Path) -> Manifest:
    """Read the manifest and hash every file.

    Raises:
        DataError: names the first file that differs.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        if sha256_file(folder / name) != entry["sha256"]:
            raise DataError(
                f"`{folder.parent.name}/{folder.name}` does not match its manifest:"
                f" `{name}` has another sha256"
            )
    return manifest


def set_aside(folder: Path) -> Path:
    """Rename a damaged folder to `damaged-<name>`, which no reader takes; returns the new path."""
    target = folder.with_name(f"damaged-{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged-{folder.name}-{number}")
    with storage_errors(target):
        folder.rename(target)
        fsync_dir(folder.parent)
    return target


def publish(
    incoming: Path,
    target: Path,
    *,
    values: dict[str, Any],
    files: dict[str, Entry],
    fence: Callable[[], None],
) -> bool:
    """Write the manifest and rename `incoming` to `target`; False when a valid target was there already.

    Args:
        incoming: the hidden folder with all files, each fsynced.
        target: its final name in the same parent.
        values: facts for the manifest beside `files`.
        files: name -> entry of each file.
        fence: raises when this writer has been replaced by a newer one.

    Raises:
        StorageError: the volume is full or failing.
    """
    facts = {**values, "files": files}
    with storage_errors(target):
        write_file(incoming / MANIFEST, encode_json({**facts, "sha256": hash_json(facts)}))
        fsync_dir(incoming)
        fence()
        if target.exists():
            try:
                verify(target)
            except DataError:
                set_aside(target)
            else:
                remove(incoming)
                return False
        incoming.rename(target)
        fsync_dir(target.parent)
    return True


def remove(folder: Path) -> None:
    """Delete a folder: renamed first, so that a reader never sees a part of it under its name."""
    hidden = folder if folder.name.startswith(".") else folder.with_name(f".removing-{folder.name}")
    if hidden is not folder:
        if hidden.exists():
            shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)

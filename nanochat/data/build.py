"""Builds a dataset folder beside its final place and moves it there when it is whole.

`kill -9` at any instant leaves either the old dataset, the new one, or a hidden
folder that the next build removes. Knows nothing of what the documents say.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.data.card import write_card
from nanochat.data.manifest import MANIFEST, DatasetManifest, FileEntry, Kind, SourceEntry, dataset_hash, load
from nanochat.data.shards import shard_name, write_shard
from nanochat.errors import DataError
from nanochat.files import atomic_writer, fsync_dir, sha256_file, storage_errors

SHUFFLE_SEED = 20_251_013


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold a kernel lock on a dataset's name, so that two runs do not build it at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}


def json_line(row: Any) -> bytes:
    """Return a JSON value as one line, also for readers that take the rarer Unicode line ends for one."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS).encode() + b"\n"


class Builder:
    """Collects the files of one dataset in a hidden folder; `finish` puts it in place."""

    def __init__(self, target: Path, *, in_place: bool = False) -> None:
        """Begin a dataset.

        Args:
            target: its final folder.
            in_place: add to the final folder, where large downloads lie already; its manifest, written last,
                says that it is whole.
        """
        self.target = target
        self.folder = target if in_place else target.with_name(f".{target.name}.building")
        self.previous = _previous_files(target) if in_place else {}
        self.files: dict[str, FileEntry] = {}
        self.shards: list[str] = []
        with storage_errors(self.folder):
            if in_place:
                (target / MANIFEST).unlink(missing_ok=True)
            else:
                shutil.rmtree(self.folder, ignore_errors=True)
            for name in ("heldout", "chat", "eval"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)

    def add_shards(self, train: Sequence[str], val: Sequence[str], *, shard_bytes: int) -> None:
        """Write shuffled training shards of about `shard_bytes` of text each, then the validation shard."""
        order = list(train)
        random.Random(SHUFFLE_SEED).shuffle(order)
        total = sum(len(text.encode()) for text in order)
        count = max(1, round(total / shard_bytes))
        groups: list[list[str]] = [[]]
        filled = 0
        for text in order:
            if filled >= total * len(groups) / count and len(groups) < count:
                groups.append([])
            groups[-1].append(text)
            filled += len(text.encode())
        for index, group in enumerate(groups):
            self._shard(shard_name(index), "train", group)
        mixed = list(val)
        random.Random(SHUFFLE_SEED).shuffle(mixed)
        self._shard(shard_name(len(groups)), "val", mixed)

    def _shard(self, name: str, kind: Kind, texts: Sequence[str]) -> None:
        self.shards.append(name)
        self._documents(name, kind, texts, origin=None)

    def _documents(self, name: str, kind: Kind, texts: Sequence[str], *, origin: str | None) -> None:
        written = write_shard(self.folder / name, texts)
        self.register(name, kind, written.documents, utf8_bytes=written.utf8_bytes, origin=origin)

    def add_held_out(self, source: str, texts: Sequence[str]) -> None:
        """Write the whole held-out split of one source, in its own order."""
        self._documents(f"heldout/{source}.parquet", "heldout", texts, origin=source)

    def add_jsonl(self, name: str, kind: Kind, rows: Iterable[Any], *, origin: str | None = None) -> None:
        """Write one JSON value a line."""
        count = 0
        with atomic_writer(self.folder / name) as file:
            for row in rows:
                file.write(json_line(row))
                count += 1
        self.register(name, kind, count, origin=origin)

    def add_words(self, words: Sequence[str]) -> None:
        """Write `chat/words.txt`, one word a line."""
        with atomic_writer(self.folder / "chat/words.txt") as file:
            file.write("".join(word + "\n" for word in words).encode())
        self.register("chat/words.txt", "words", len(words))

    def register(
        self, name: str, kind: Kind, rows: int, *, utf8_bytes: int | None = None, origin: str | None = None
    ) -> None:
        path = self.folder / name
        self.files[name] = FileEntry(
            sha256=sha256_file(path),
            bytes=path.stat().st_size,
            kind=kind,
            rows=rows,
            utf8_bytes=utf8_bytes,
            origin=origin,
        )

    def finish(
        self,
        *,
        source: str,
        profile: str | None,
        recipe: str,
        sources: Sequence[SourceEntry],
        notes: Sequence[str],
    ) -> DatasetManifest:
        """Write card and manifest, then move the folder to its place, replacing what was there."""
        training = [entry for entry in self.files.values() if entry.kind == "train"]
        manifest = DatasetManifest(
            name=self.target.name,
            source=source,
            profile=profile,
            recipe=recipe,
            documents=sum(entry.rows for entry in training),
            utf8_bytes=sum(entry.utf8_bytes or 0 for entry in training),
            shards=tuple(self.shards),
            files=self.files,
            sources=tuple(sources),
            hash=dataset_hash(self.files),
        )
        write_card(self.folder, manifest, notes)
        manifest.save(self.folder)
        if self.folder != self.target:
            replace_folder(self.folder, self.target)
        return manifest


def _previous_files(target: Path) -> dict[str, FileEntry]:
    try:
        return dict(load(target).files)
    except DataError:
        return {}


def replace_folder(new: Path, target: Path) -> None:
    """Rename `new` to `target`; an older folder there is moved aside first and removed after."""
    old = target.with_name(f".{target.name}.old")
    with storage_errors(target):
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        new.rename(target)
        fsync_dir(target.parent)
        shutil.rmtree(old, ignore_errors=True)

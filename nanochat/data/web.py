"""The production datasets: hub shards as they are, beside chat and evaluation sets made from hub files.

Puts downloads, checks and converters together; knows nothing of HTTP.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanochat.data import hubsets
from nanochat.data.build import Builder
from nanochat.data.fetch import Item, offline_hint
from nanochat.data.manifest import DatasetManifest, FileEntry, load
from nanochat.data.overlap import Overlap, frequent_words
from nanochat.data.shards import read_texts
from nanochat.data.sources import Hub, Sources
from nanochat.data.verify import check_file
from nanochat.data.wheels import Report
from nanochat.errors import ConfigError, DataError, UnavailableError
from nanochat.files import hash_json, sha256_file, storage_errors

SETS = (
    "smoltalk-train",
    "smoltalk-test",
    "mmlu-auxiliary",
    "mmlu-test",
    "gsm8k-train",
    "gsm8k-test",
    "arc_easy-train",
    "arc_easy-test",
    "arc_challenge-train",
    "arc_challenge-test",
    "humaneval",
    "core",
)
HELD_OUT_BYTES = 2 << 20
"""Of the validation shard, for bits per byte over a whole split."""
WORD_DOCUMENTS = 20_000
_CHAT_BATCH = 8192


class Fetcher(Protocol):
    """What downloads: `nanochat.data.fetch.Downloader`, or a stand-in."""

    def fetch(self, items: list[Item], *, report: Any) -> None:
        """Fetch all items that are not there yet."""


def text_hub(sources: Sources, name: str) -> tuple[Hub, int]:
    """Return a hub of pretraining text and its number of files.

    Raises:
        ConfigError: the entry is not a template of files.
    """
    hub = sources.hub[name]
    if hub.files is None or "{index" not in hub.url:
        raise ConfigError(
            f"sources.toml: hub.{name}.url `{hub.url}` has no `{{index}}`, or `files` is missing"
        )
    return hub, hub.files


def shard_items(folder: Path, sources: Sources, *, name: str, shards: int) -> list[Item]:
    """Return what to fetch: the first `shards - 1` files and the last one, which is validation."""
    hub, files = text_hub(sources, name)
    count = max(2, min(shards, files))
    items = []
    for index in (*range(count - 1), files - 1):
        file = f"shard_{index:05d}.parquet"
        url = hub.url.format(index=index)
        pinned = hub.sha256.get(url.rpartition("/")[2])
        items.append(Item(url, folder / file, pinned, lambda path: hubsets.check_columns(path, hub.columns)))
    return items


def set_items(cache: Path, sources: Sources) -> dict[str, list[Item]]:
    """Return, by set, the files of the chat and evaluation sets."""
    result: dict[str, list[Item]] = {}
    for name in SETS:
        hub = sources.hub[name]
        urls = [hub.url.format(index=index) for index in range(hub.files or 1)]
        result[name] = [_set_item(cache / name, hub, url) for url in urls]
    return result


def _set_item(folder: Path, hub: Hub, url: str) -> Item:
    file = url.rpartition("/")[2].partition("?")[0]

    def check(path: Path) -> None:
        if hub.members:
            hubsets.check_members(path, hub.members)
        else:
            hubsets.check_columns(path, hub.columns)

    # The address is part of the folder, so that another mirror's file is not taken for this one's.
    return Item(url, folder / hash_json(url)[:8] / file, hub.sha256.get(file), check)


def recipe(sources: Sources, name: str, *, version: int) -> str:
    """Return the hash of what a hub dataset is derived from, without the number of shards."""
    hubs = {key: sources.hub[key].model_dump() for key in (name, *SETS)}
    return hash_json({"builder": version, "hub": hubs})


def is_enough(folder: Path, wanted: str, *, shards: int) -> bool:
    """Return whether a finished dataset of this recipe has that many shards, all of the right size."""
    try:
        manifest = load(folder)
        if manifest.recipe != wanted or len(manifest.shards) < shards:
            return False
        for file in manifest.files:
            check_file(folder, file, manifest=manifest, content=False)
    except DataError:
        return False
    return True


def build_web(
    folder: Path,
    *,
    name: str,
    shards: int,
    cache: Path,
    sources: Sources,
    version: int,
    fetcher: Fetcher,
    report: Report,
) -> DatasetManifest:
    """Fetch what is missing, make chat and evaluation sets, write card and manifest.

    Raises:
        UnavailableError, DataError, StorageError: as `Downloader.fetch`; the hint says what is cached.
    """
    text = shard_items(folder, sources, name=name, shards=shards)
    sets = set_items(cache, sources)
    items = [item for group in sets.values() for item in group] + text
    try:
        fetcher.fetch(items, report=lambda done, total: report(f"download {name}", done, total))
    except UnavailableError as error:
        raise UnavailableError(error.message, hint=offline_hint(error, items, folder)) from error
    builder = Builder(folder, in_place=True)
    _register_shards(builder, text, report)
    _write_held_out(builder, name, text[-1].path)
    questions = _write_evals(builder, sets)
    _write_chat(builder, sets, Overlap(questions), report)
    words = itertools.islice(read_texts(text[0].path), WORD_DOCUMENTS)
    builder.add_words(frequent_words(words))
    return builder.finish(
        source=name,
        profile=None,
        recipe=recipe(sources, name, version=version),
        sources=[sources.hub[key].entry(key) for key in (name, *SETS)],
        notes=[
            f"`heldout/{name}.parquet` is the beginning of the validation shard.",
            "Conversations and training problems that hold a held-out question (a run of 13 words) were left "
            "out; the pretraining shards are taken as they are.",
        ],
    )


def inspect_shard(path: Path) -> tuple[int, int]:
    """Return (documents, UTF-8 bytes) of a shard, every page of it decoded.

    Raises:
        DataError: the shard is damaged.
    """
    documents = size = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["text"], use_threads=False).column("text")
                documents += len(column)
                size += pc.sum(pc.binary_length(column)).as_py() or 0
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"shard `{path}` is damaged: {error}", hint="delete it and run the command again"
        ) from error
    return documents, size


def _register_shards(builder: Builder, items: list[Item], report: Report) -> None:
    """Enter the shards, in threads: hashing and decoding release the GIL."""
    known = builder.previous

    def entry(position: int) -> FileEntry:
        path = items[position].path
        old = known.get(path.name)
        if old is not None and old.bytes == path.stat().st_size:
            return old.model_copy(update={"kind": "val" if position == len(items) - 1 else "train"})
        documents, size = inspect_shard(path)
        return FileEntry(
            sha256=sha256_file(path),
            bytes=path.stat().st_size,
            kind="val" if position == len(items) - 1 else "train",
            rows=documents,
            utf8_bytes=size,
        )

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for done, (item, made) in enumerate(zip(items, pool.map(entry, range(len(items))), strict=True)):
            builder.shards.append(item.path.name)
            builder.files[item.path.name] = made
            report("check shards", done + 1, len(items))


def _write_held_out(builder: Builder, name: str, path: Path) -> None:
    texts, size = [], 0
    for text in read_texts(path):
        texts.append(text)
        size += len(text.encode())
        if size >= HELD_OUT_BYTES:
            break
    builder.add_held_out(name, texts)


def _rows(sets: dict[str, list[Item]], name: str) -> Iterator[dict[str, Any]]:
    for item in sets[name]:
        yield from hubsets.convert(item.path, name)


def _write_evals(builder: Builder, sets: dict[str, list[Item]]) -> list[str]:
    """Write the test sets; return their questions."""
    questions: list[str] = []
    for task in ("arc_easy", "arc_challenge", "mmlu", "gsm8k"):
        problems = list(_rows(sets, f"{task}-test"))
        questions += [problem["question"] for problem in problems]
        builder.add_jsonl(f"eval/{task}-test.jsonl", "eval", problems, origin=f"{task}-test")
    builder.add_jsonl("eval/humaneval-test.jsonl", "eval", _rows(sets, "humaneval"), origin="humaneval")
    bundle = builder.folder / "eval/core_bundle.zip"
    with storage_errors(bundle):
        bundle.unlink(missing_ok=True)
        shutil.copyfile(sets["core"][0].path, bundle)
    builder.register("eval/core_bundle.zip", "eval", 1, origin="core")
    return questions


def _write_chat(builder: Builder, sets: dict[str, list[Item]], overlap: Overlap, report: Report) -> None:
    def clean(rows: Iterable[dict[str, Any]], what: str) -> Iterator[dict[str, Any]]:
        rows = iter(rows)
        for number in itertools.count(1):
            batch = list(itertools.islice(rows, _CHAT_BATCH))
            if not batch:
                return
            hits = overlap.find_all([_text(row) for row in batch])
            yield from (row for index, row in enumerate(batch) if index not in hits)
            report(what, number, number + 1)

    train = clean(_rows(sets, "smoltalk-train"), "write smoltalk")
    builder.add_jsonl("chat/smoltalk-train.jsonl", "chat", train, origin="smoltalk-train")
    builder.add_jsonl(
        "chat/smoltalk-test.jsonl", "chat", _rows(sets, "smoltalk-test"), origin="smoltalk-test"
    )
    choice = itertools.chain(
        *(_rows(sets, name) for name in ("mmlu-auxiliary", "arc_easy-train", "arc_challenge-train"))
    )
    builder.add_jsonl("chat/mc-train.jsonl", "chat", clean(choice, "write problems"), origin="mmlu-auxiliary")
    problems = clean(_rows(sets, "gsm8k-train"), "write problems")
    builder.add_jsonl("eval/gsm8k-train.jsonl", "eval", problems, origin="gsm8k-train")


def _text(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "\n".join(message["content"] for message in row["messages"])
    return "\n".join([row["question"], *row.get("choices", ()), str(row["answer"])])

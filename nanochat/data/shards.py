"""Parquet shards: one `text` column, zstd 3, row groups of 1,024 documents, a checksum on every page.

Knows nothing of where documents come from. A damaged page, a cut file or a
missing column is a `DataError` that names the file, never silently fewer rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data.manifest import load
from nanochat.errors import DataError
from nanochat.files import atomic_writer

ROW_GROUP_DOCUMENTS = 1024
SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False)])


@dataclass(frozen=True, slots=True)
class Written:
    """What a shard holds: documents and their raw UTF-8 bytes."""

    documents: int
    utf8_bytes: int


def write_shard(path: Path, texts: Iterable[str]) -> Written:
    """Write documents to a parquet file, atomically.

    Raises:
        StorageError: the volume is full, failing or read-only.
    """
    documents = size = 0
    texts = iter(texts)
    with atomic_writer(path) as file:
        writer = pq.ParquetWriter(
            file,
            SCHEMA,
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        with writer:
            while group := list(itertools.islice(texts, ROW_GROUP_DOCUMENTS)):
                column = pa.array(group, pa.string())
                writer.write_table(pa.table([column], SCHEMA), row_group_size=ROW_GROUP_DOCUMENTS)
                documents += len(group)
                size += sum(len(text.encode()) for text in group)
    return Written(documents, size)


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"shard_{index:05d}.parquet"


def _open(path: Path) -> pq.ParquetFile:
    file = pq.ParquetFile(path, page_checksum_verification=True)
    names = file.schema_arrow.names
    if "text" not in names or not (
        pa.types.is_string(kind := file.schema_arrow.field("text").type) or pa.types.is_large_string(kind)
    ):
        raise DataError(f"shard `{path}` has no string column `text`; its columns are {names}")
    return file


def read_texts(path: Path) -> Iterator[str]:
    """Yield the documents of a shard in order, one row group in memory at a time.

    Raises:
        DataError: the file is missing, cut, damaged or has no `text` column.
    """
    try:
        with _open(path) as file:
            for group in range(file.num_row_groups):
                texts = (
                    file.read_row_group(group, columns=["text"], use_threads=False).column("text").to_pylist()
                )
                if None in texts:
                    raise DataError(f"shard `{path}` has an empty value in row group {group}")
                yield from texts
    except FileNotFoundError:
        raise DataError(f"shard `{path}` is missing", hint="run `nanochat data prepare` again") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"shard `{path}` is damaged: {(str(error) or type(error).__name__).strip().splitlines()[0]}",
            hint="delete that file and run `nanochat data prepare`; `nanochat data verify` checks every file",
        ) from error


def iter_documents(folder: Path, split: Literal["train", "val"]) -> Iterator[str]:
    """Yield the documents of a dataset's training shards, or of its validation shard, in order.

    Raises:
        DataError: the dataset is unfinished or a shard is damaged.
    """
    manifest = load(folder)
    for name in manifest.train_shards if split == "train" else (manifest.validation_shard,):
        yield from read_texts(folder / name)

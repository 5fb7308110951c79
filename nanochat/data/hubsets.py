"""Hub files (parquet) to the JSON lines of chat and evaluation sets, one row at a time.

Knows the columns of each set; nothing of downloads.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.errors import DataError

Row = dict[str, Any]
_BATCH_ROWS = 4096


def check_columns(path: Path, columns: tuple[str, ...]) -> None:
    """Raise `DataError` unless the file is parquet, has rows, and has the columns."""
    try:
        with pq.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a parquet file: {error}") from error
    if missing := [name for name in columns if name not in names]:
        raise DataError(f"it has no column `{missing[0]}`; its columns are {sorted(names)}")
    if not rows:
        raise DataError("it has no rows")


def check_members(path: Path, members: tuple[str, ...]) -> None:
    """Raise `DataError` unless the file is an undamaged zip archive with the members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"not a zip file: {error}") from error
    if damaged is not None:
        raise DataError(f"its member `{damaged}` is damaged")
    if missing := [name for name in members if name not in names]:
        raise DataError(f"it has no member `{missing[0]}`")


def rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"`{path}` is damaged: {error}", hint="delete it and run the command again"
        ) from error


def _choice(question: str, choices: list[str], answer: int, subject: str | None) -> Row:
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer} of {len(choices)} choices")
    return {"question": question, "choices": choices, "answer": answer, "subject": subject}


def arc(row: Row) -> Row:
    """Return an ARC row as a multiple-choice problem."""
    labels: list[str] = row["choices"]["label"]
    return _choice(row["question"], row["choices"]["text"], labels.index(row["answerKey"]), None)


def mmlu(row: Row) -> Row:
    """Return an MMLU row as a multiple-choice problem; auxiliary rows stand inside a column `train`."""
    row = row.get("train") or row
    return _choice(row["question"], row["choices"], int(row["answer"]), row.get("subject") or None)


def gsm8k(row: Row) -> Row:
    """Return a GSM8K row with its calculator marks."""
    return {"question": row["question"], "answer": row["answer"]}


def humaneval(row: Row) -> Row:
    """Return a HumanEval row."""
    return {name: row[name] for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}


def smoltalk(row: Row) -> Row | None:
    """Return a conversation; None where roles do not alternate or a message is empty."""
    messages = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    expected = [("user", "assistant")[index % 2] for index in range(len(turns))]
    fits = len(turns) >= 2 and len(turns) % 2 == 0 and [message["role"] for message in turns] == expected
    return {"messages": messages} if fits and all(message["content"] for message in messages) else None


def convert(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of the hub file of source `name` in our schema.

    Raises:
        DataError: the file is damaged, or a row is not of the known form.
    """
    converter = _CONVERTERS[name.removesuffix("-train").removesuffix("-test").removesuffix("-auxiliary")]
    for number, row in enumerate(rows(path)):
        try:
            made = converter(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"`{path}`, row {number}: not a {name} row: {error!r}") from error
        if made is not None:
            yield made


_CONVERTERS: dict[str, Any] = {
    "arc_easy": arc,
    "arc_challenge": arc,
    "mmlu": mmlu,
    "gsm8k": gsm8k,
    "humaneval": humaneval,
    "smoltalk": smoltalk,
}

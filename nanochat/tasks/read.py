"""Reading the chat and evaluation files of a dataset, a chosen few lines of them without parsing the rest.

Knows nothing of mixtures or scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.errors import DataError


def rows(path: Path, wanted: frozenset[int] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 0, object) of a JSONL file; only the lines `wanted`, where given.

    Raises:
        DataError: the file is missing, or a line does not hold a JSON object.
    """
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"`{path}` does not exist", hint="run `nanochat data prepare` again") from error
    with file:
        for index, line in enumerate(file):
            if wanted is not None and index not in wanted:
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"`{path}` line {index + 1} is not valid JSON: {error}") from error
            if not isinstance(value, dict):
                raise DataError(f"`{path}` line {index + 1} is not a JSON object")
            yield index, value


def count(path: Path) -> int:
    """Return the number of lines of a file; 0 when it is missing."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def where(path: Path, index: int) -> str:
    """Return how an error names a line: file and number from 1."""
    return f"`{path}` line {index + 1}"

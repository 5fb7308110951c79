"""`manifest.json` of a dataset: what is in the folder, where it came from, and one hash for all of it.

Written last, so a folder without it is unfinished. Knows nothing of how the
files were made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.errors import DataError
from nanochat.files import hash_json, read_json, write_json

MANIFEST = "manifest.json"
Kind = Literal["train", "val", "heldout", "chat", "eval", "words", "identity"]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileEntry(_Closed):
    """One file below the dataset's folder."""

    sha256: str
    bytes: int = Field(ge=0)
    kind: Kind
    rows: int = Field(ge=0)
    """Documents, conversations, problems or words."""
    utf8_bytes: int | None = None
    """Raw UTF-8 bytes of all documents; None where rows are not documents."""
    origin: str | None = None
    """The source it came from; None where several are mixed."""


class SourceEntry(_Closed):
    """One source of the dataset, for the card and the report."""

    name: str
    package: str | None = None
    version: str | None = None
    sha256: str | None = None
    licence: str
    attribution: str
    url: str | None = None


class DatasetManifest(_Closed):
    """The whole of `manifest.json`."""

    version: Literal[1] = 1
    name: str
    source: str
    profile: str | None = None
    recipe: str
    """Hash of everything the content was derived from; another value means: build anew."""
    documents: int
    """Training documents."""
    utf8_bytes: int
    """Raw UTF-8 bytes of the training documents."""
    shards: tuple[str, ...]
    """Shard files in order; the last is validation."""
    files: dict[str, FileEntry]
    sources: tuple[SourceEntry, ...]
    hash: str
    """Identifies the dataset; the user's identity conversations do not count, all other files do."""

    @property
    def train_shards(self) -> tuple[str, ...]:
        """All shards but the last."""
        return self.shards[:-1]

    @property
    def validation_shard(self) -> str:
        """The last shard."""
        return self.shards[-1]

    def save(self, folder: Path) -> None:
        """Write `manifest.json`, atomically."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))


def dataset_hash(files: dict[str, FileEntry]) -> str:
    """Return the sha256 over the sorted (path, sha256) pairs, without the user's identity file.

    Identity conversations are chat material that a user may swap; the text, and with it
    the order of the training rows, is the same with and without them.
    """
    return hash_json(
        sorted([name, entry.sha256] for name, entry in files.items() if entry.kind != "identity")
    )


def load(folder: Path) -> DatasetManifest:
    """Read the manifest of a dataset folder.

    Raises:
        DataError: the folder is not a finished dataset, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(
            f"`{folder}` is not a finished dataset: it has no `{MANIFEST}`",
            hint="run `nanochat data prepare`",
        )
    try:
        return DatasetManifest.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"`{path}`: `{field}`: {first['msg']}", hint="run `nanochat data prepare` again"
        ) from None

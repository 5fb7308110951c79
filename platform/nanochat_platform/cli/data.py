"""`nanochat data prepare` and `nanochat data verify`. Knows nothing of what is in the data."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from nanochat_platform.cli import options as o

app = typer.Typer(
    help="Prepare and verify datasets.", no_args_is_help=True, rich_markup_mode=None, suggest_commands=False
)

Profile = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="cpu or core; for --source packages.")
]
Dataset = Annotated[
    str | None, typer.Option("--dataset", metavar="NAME", help="Folder below datasets/, e.g. packages-cpu.")
]


@app.command("prepare")
def prepare(
    *,
    source: o.Source = None,
    profile: Profile = None,
    preset: o.Preset = None,
    identity: o.Identity = None,
    as_json: o.Json = False,
) -> None:
    """Fetch and prepare a dataset; continues where it stopped, does nothing when it is complete."""
    from nanochat import settings, shape
    from nanochat.data import manifest
    from nanochat.data.prepare import prepare as prepare_data
    from nanochat_platform import local

    if source is None:
        source = shape.preset(preset).source if preset is not None and profile is None else "packages"
    full = local.full_source(source, profile)
    folder = prepare_data(settings.home(), source=full, identity=identity, preset=preset, report=Talk())
    found = manifest.load(folder)
    facts = {
        "folder": str(folder),
        "hash": found.hash,
        "documents": found.documents,
        "bytes": found.utf8_bytes,
    }
    _print(facts, as_json)


@app.command("verify")
def verify(*, dataset: Dataset = None, as_json: o.Json = False) -> None:
    """Read every byte of a dataset and compare it with its manifest; without --dataset, of all."""
    from nanochat import settings
    from nanochat.data.verify import verify_dataset
    from nanochat.errors import DataError

    home = settings.home()
    if dataset is not None:
        folders = [home.dataset(dataset)]
    else:
        folders = sorted(path.parent for path in (home.root / "datasets").glob("*/manifest.json"))
    if not folders:
        raise DataError(f"there is no dataset in `{home.root}`", hint="make one with `nanochat data prepare`")
    for folder in folders:
        found = verify_dataset(folder, report=Talk())
        _print({"folder": str(folder), "hash": found.hash, "files": len(found.files), "ok": True}, as_json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        o.print_json(facts)
    else:
        print("  ".join(f"{name}={value}" for name, value in facts.items()), flush=True)


class Talk:
    """Progress of data work: a line on stderr at most every two seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how far `what` is."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 2.0
            print(f"data {what} {done:,}/{total:,}", file=sys.stderr, flush=True)

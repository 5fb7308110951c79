"""`nanochat checkpoints` and `nanochat export`. Knows folders, not what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_platform.cli import options as o

Verify = Annotated[bool, typer.Option("--verify", help="Hash every file.")]
To = Annotated[Path, typer.Option("--to", metavar="FOLDER", help="New folder to write.")]
Format = Annotated[
    str, typer.Option("--format", metavar="NAME", help="nanochat, or hf (classic architecture only).")
]
FromStage = Annotated[
    str | None, typer.Option("--stage", metavar="STAGE", help="Take this stage's model, not the newest.")
]


def checkpoints(*, run: o.Run = None, verify: Verify = False, as_json: o.Json = False) -> None:
    """List the checkpoints and exported models of a run."""
    from nanochat import settings
    from nanochat_platform.local import DEFAULT_PRESET

    rows = list_folders(settings.home(), run or DEFAULT_PRESET, verify=verify)
    if as_json:
        o.print_json(rows)
        return
    for row in rows:
        size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] is not None else "-"
        print(f"{row['kind']:<11} {row['name']:<32} {size:>12}  {row['state']}", flush=True)


def list_folders(home: Any, run: str, *, verify: bool) -> list[dict[str, Any]]:
    """Return one row a checkpoint or model folder: kind, name, step, bytes, state.

    Raises:
        ConfigError: there is no such run.
    """
    from nanochat.checkpoint import folder as committed
    from nanochat.checkpoint.models import list_models
    from nanochat.errors import ConfigError, DataError, did_you_mean
    from nanochat.run.stage import STAGES

    run_dir = home.run(run)
    if not run_dir.is_dir():
        known = sorted(path.name for path in run_dir.parent.glob("*") if path.is_dir())
        hint = did_you_mean(run, known) if known else "start one with `nanochat speedrun`"
        raise ConfigError(f"there is no run `{run}` in `{home.root}`", hint=hint)
    found: list[tuple[str, str, Path]] = []
    for stage in STAGES:
        paths = sorted((run_dir / stage.name / "checkpoints").glob("*step-*"))
        found += [("checkpoint", f"{stage.name}/{p.name}", p) for p in paths if not p.name.startswith(".")]
    found += [("model", model.id, model.path) for model in list_models(home, run)]
    rows = []
    for kind, name, path in found:
        row: dict[str, Any] = {"kind": kind, "name": name, "path": str(path), "bytes": None}
        try:
            manifest = (committed.verify if verify else committed.read_manifest)(path)
            row["bytes"] = sum(entry["bytes"] for entry in manifest.files.values())
            row["state"] = "verified" if verify else "complete"
        except DataError as error:
            row["state"] = f"damaged: {error.message}"
        rows.append(row)
    return rows


def export(
    *,
    run: o.Run = None,
    to: To,
    stage: FromStage = None,
    format: Format = "nanochat",  # noqa: A002
    as_json: o.Json = False,
) -> None:
    """Copy a run's newest model to a folder, in our format or as a Hugging Face model."""
    from nanochat import settings
    from nanochat.checkpoint import models
    from nanochat.errors import ConfigError, TakenError, did_you_mean
    from nanochat_platform.local import DEFAULT_PRESET

    formats = ("nanochat", "hf")
    if format not in formats:
        raise ConfigError(f"--format is `{format}`", hint=did_you_mean(format, formats))
    if to.exists() and any(to.iterdir() if to.is_dir() else [to]):
        raise TakenError(f"`{to}` exists and is not an empty folder", hint="choose a new folder with --to")
    home, name = settings.home(), run or DEFAULT_PRESET
    model = models.find_model(home, name, stage) if stage else models.resolve_model(home, name)
    if format == "hf":
        from nanochat.hf import save_classic

        weights, tokenizer = model.load()
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.special("assistant_end")}
        save_classic(weights, to, **ids)
    else:
        models.copy_model(model, to)
    facts = {"model": model.id, "folder": str(to.absolute()), "format": format}
    if as_json:
        o.print_json(facts)
    else:
        print(f"{model.id} -> {to}", flush=True)

"""What a step tells its backend: figures, cards that say what is where, Markdown and HTML.

Reads the completion record of a stage and what it lists; copies no weights. A card's
URI stays the one that the backend gave it, because a backend fetches every input
artifact before a step starts and knows its own object store alone. Knows nothing of
how the stage was run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nanochat.errors import DataError
from nanochat.files import write_bytes, write_json, write_text
from nanochat.report import facts
from nanochat.report.collect import scores
from nanochat.report.markdown import table
from nanochat.run.reason import flat_numbers
from nanochat.run.record import Record, missing_output
from nanochat.settings import Home

_STORES = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}
"""Where a backend's launcher looks for what it uploads to a store."""
_PATIENCE_S = 75.0  # a network volume may show a new file only when its attribute cache ends, after 60 s


def local_path(uri: str) -> Path:
    """Return the file behind an artifact's URI inside the step's container.

    Raises:
        DataError: a store that no launcher maps to a folder.
    """
    for scheme, root in _STORES.items():
        if uri.startswith(scheme):
            return Path(root + uri.removeprefix(scheme))
    if "://" in uri:
        raise DataError(
            f"artifact URI `{uri}` is of an unknown store",
            hint="use a pipeline root at gs://, s3:// or minio://",
        )
    return Path(uri)


def wait_for_record(
    home: Home,
    stage_dir: Path,
    expected: str | None = None,
    *,
    patience_s: float = _PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> Record:
    """Return the completion record of a stage, the one with hash `expected` where that is known.

    Raises:
        DataError: it or one of its outputs does not appear on this volume in `patience_s` seconds, or it
            is damaged.
    """
    deadline = clock() + patience_s
    while True:
        record = Record.load(stage_dir)
        if record is None:
            problem: str | None = f"`{stage_dir}` has no record"
        elif expected not in (None, record.hash):
            problem = f"`{stage_dir}` has the record of another result"
        else:
            problem = missing_output(record, home)
            if problem is None:
                return record
        if clock() >= deadline:
            raise DataError(
                f"the stage is done, but {problem}",
                hint="is the step's `claim` the volume that the training pods write to?",
            )
        wait(1.0)


def figures(record: Record) -> dict[str, float]:
    """Return the numbers of a record by name: its own metrics, its scores, wall time and attempts."""
    found = {"wall_s": record.wall_s, "attempts": float(record.attempts), **flat_numbers(record.metrics)}
    found |= {score.name: score.value for score in scores(record)}
    for row in record.metrics.get("compression", ()):
        found |= flat_numbers(row["bytes_per_token"], f"bytes_per_token/{row['text']}/")
    return found


def card(record: Record, home: Home, *, run: str, claim: str, identity: str) -> dict[str, Any]:
    """Return what stands for a result in a pipeline: which files on which volume, with size and sha256."""
    files = {
        path: {"bytes": output.bytes, "sha256": output.sha256} for path, output in record.outputs.items()
    }
    folders = {str(PurePosixPath(path).parent) for path in files}
    return {
        "run": run,
        "stage": record.stage,
        "record": identity,
        "revision": record.revision,
        "claim": claim,
        "path": str(home.root / min(folders, key=len)) if folders else "",
        "files": files,
    }


def scores_markdown(record: Record) -> str:
    """Return an evaluation's figures as Markdown: with n, chance and interval where they have them."""
    rows = [
        [
            facts.label(score.name),
            facts.figure(score),
            "" if score.n is None else f"{score.n:,}",
            "" if score.chance is None else f"{score.chance:.1%}",
            "" if score.low is None or score.high is None else f"{score.low:.1%} to {score.high:.1%}",
        ]
        for score in scores(record)
    ]
    title = f"# {record.stage}\n\n"
    if rows:
        return title + table(("Metric", "value", "n", "chance", "95% interval"), rows, align="lrrrr") + "\n"
    plain = [[name, f"{value:,.4g}"] for name, value in figures(record).items()]
    return title + table(("Metric", "value"), plain, align="lr") + "\n"


def write_outputs(
    executor_input: Mapping[str, Any],
    home: Home,
    record: Record,
    *,
    run: str,
    claim: str,
    identity: str | None = None,
) -> None:
    """Write every output artifact that the step was provisioned with, then the account of them.

    Args:
        executor_input: the backend's.
        home: the volume that the record's outputs are on.
        record: of the stage.
        run: its run.
        claim: the name of the volume.
        identity: the record's hash, where `record` is not the whole one.

    Raises:
        DataError: the record lacks a file that the step must leave, or a URI is of an unknown store.
        StorageError: a file cannot be written.
    """
    asked = executor_input.get("outputs", {})
    what = card(record, home, run=run, claim=claim, identity=identity or record.hash)
    numbers = figures(record)
    told = {}
    for name, artifacts in asked.get("artifacts", {}).items():
        if name == "executor-logs":  # the backend's own
            continue
        artifact = artifacts["artifacts"][0]
        path = local_path(artifact["uri"])
        metadata: dict[str, Any] = {key: value for key, value in what.items() if key != "files"}
        if name == "metrics":
            metadata = dict(numbers)
        elif name == "report":
            write_bytes(path, record.output(home, "report.md").read_bytes())
        elif name == "page":
            write_bytes(path, record.output(home, "report.html").read_bytes())
        elif name == "scores":
            write_text(path, scores_markdown(record))
        else:
            write_json(path, {**what, "metrics": record.metrics})
            metadata |= numbers
        told[name] = {"artifacts": [{**artifact, "metadata": {**artifact.get("metadata", {}), **metadata}}]}
    if asked.get("outputFile"):
        write_text(Path(asked["outputFile"]), json.dumps({"artifacts": told}))

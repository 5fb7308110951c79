"""What this machine can tell a plan: its speed, measured in a process of its own, and its prepared data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.data.sources import load_sources
from nanochat.errors import ConfigError, DataError
from nanochat.run.config import RunConfig
from nanochat.settings import Home
from nanochat.shape import PACKING_LOSS, resolve
from nanochat_platform.plan.model import DataFacts

if TYPE_CHECKING:
    from nanochat.data.manifest import DatasetManifest


def measure_here(spec: RunConfig) -> Mapping[str, Any]:
    """Return what `python -m nanochat.train.measure` measures: three steps of base training on this machine.

    Raises:
        ConfigError: the measurement failed; carries its last words.
    """
    command = [sys.executable, "-m", "nanochat.train.measure", "--preset", spec.preset, "--dtype", spec.dtype]
    for option in ("depth", "device_batch_size", "steps"):
        if (value := getattr(spec, option)) is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no output"]
        raise ConfigError(f"could not measure three steps on this machine: {words[-1]}")
    figures: Mapping[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def known_data(home: Home, spec: RunConfig) -> DataFacts | None:
    """Return what the home's dataset of the run's source holds; None until it is tokenized whole.

    Raises:
        DataError: the dataset's manifest is damaged.
    """
    from nanochat.data import loader, manifest  # numpy takes 0.2 s to import

    folder = home.dataset(spec.dataset())
    if not (folder / manifest.MANIFEST).exists():
        return None
    dataset = manifest.load(folder)
    tokens = _tokens(folder, dataset)
    if not tokens:
        return None
    text = sum(dataset.files[name].utf8_bytes or 0 for name in dataset.train_shards)
    short = resolve(spec).shape.seq_len < loader.SPLIT_BELOW  # such contexts keep what does not fit a row
    return DataFacts(
        utf8_bytes=None if spec.source in load_sources().hub else text,
        bytes_per_token=text / tokens,
        packing_loss=1.05 if short else PACKING_LOSS,
    )


def _tokens(folder: Path, dataset: DatasetManifest) -> int:
    """Return the training tokens of the newest token files that are of this dataset and whole, else 0."""
    from nanochat.data.tokens import TokenFiles

    for path in sorted(folder.glob("tokens-*/manifest.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            files = TokenFiles.load(path.parent)
        except DataError:  # begun, or damaged: the stage writes them anew
            continue
        if files.dataset == dataset.hash and len(files.shards) == len(dataset.shards):
            return sum(shard.tokens for shard in files.split("train"))
    return 0

"""Exported models: `models/<run>/<stage>-<step>/`: manifest, `config.json` (the shape), weights, tokenizer.

Written by training stages with the commit protocol, read by evaluation, chat and
serving, which take weights from nowhere else. Knows nothing of how they were trained.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.checkpoint.commit import MODEL
from nanochat.checkpoint.folder import (
    Entry,
    encode_json,
    hashing_file,
    publish,
    read_manifest,
    remove,
    verify,
    write_file,
)
from nanochat.checkpoint.tensors import Tensors, entry_of, read_tensors, write_tensors
from nanochat.errors import ConfigError, DataError, did_you_mean
from nanochat.files import fsync_dir, read_json, sha256_file, storage_errors
from nanochat.settings import Home

if TYPE_CHECKING:
    import torch

    from nanochat.gpt import GPT
    from nanochat.tokenizer import Tokenizer

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_CHAT = ("chat_rl", "chat_sft")
_ORDER = (*_CHAT, "mid_train", "base_train")
_NAME = re.compile(r"([a-z_]+)-(\d+)")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One exported model; nothing is verified until `verify` or `load`."""

    path: Path

    @property
    def id(self) -> str:
        """`<run>/<stage>-<step>`: its name in the API."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def stage(self) -> str:
        """The stage that exported it."""
        return self.path.name.rsplit("-", 1)[0]

    @property
    def step(self) -> int:
        """Optimizer steps of that stage."""
        return int(self.path.name.rsplit("-", 1)[1])

    def verify(self) -> dict[str, Any]:
        """Hash every file; returns the manifest's values.

        Raises:
            DataError: names the first file that is missing or differs.
        """
        return verify(self.path).values

    def shape(self) -> dict[str, Any]:
        """Return the shape's JSON.

        Raises:
            DataError: the file is missing or does not parse.
        """
        shape: dict[str, Any] = read_json(self.path / CONFIG)
        return shape

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer alone, unverified and without torch."""
        from nanochat.tokenizer import Tokenizer

        return Tokenizer.load(self.path / TOKENIZER)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> tuple[GPT, Tokenizer]:
        """Return the verified model, ready for inference, and its tokenizer.

        Args:
            device: where the weights go.
            dtype: compute type, and the type that matrices are kept in; fp32 without it.

        Raises:
            DataError: a file is damaged; names it.
        """
        import torch

        from nanochat.gpt import GPT
        from nanochat.shape import Shape

        self.verify()
        dtype = dtype or torch.float32
        model = GPT(Shape.from_json(self.shape()), dtype=dtype, table_dtype=dtype, device=device)
        try:
            model.load_state_dict(read_tensors(self.path / MODEL))
        except RuntimeError as error:
            raise DataError(f"`{self.id}/{MODEL}` does not fit `{CONFIG}`: {error}") from None
        return model.for_inference(), self.tokenizer()


def export_model(
    home: Home,
    run: str,
    stage: str,
    step: int,
    *,
    model_state: Tensors | None,
    shape_json: dict[str, Any],
    tokenizer_path: Path,
) -> Path:
    """Publish a model; returns its folder.

    Weights equal to those of the stage's checkpoint of that step are hard links to it.

    Args:
        home: the home folder.
        run: the run's name.
        stage: the training stage.
        step: its optimizer steps.
        model_state: tensors by parameter name; None: those of the checkpoint.
        shape_json: `Shape.to_json()`.
        tokenizer_path: the run's `tokenizer.json`.

    Raises:
        StorageError: the volume is full or failing.
        DataError: `model_state` is None and there is no such checkpoint.
    """
    target = home.models(run) / f"{stage}-{step}"
    incoming = target.with_name(f".incoming-{target.name}-{os.getpid()}")
    with storage_errors(incoming):
        for left in target.parent.glob(f".incoming-{target.name}-*"):
            remove(left)
        incoming.mkdir(parents=True)
    checkpoint = home.stage(run, stage) / "checkpoints" / f"step-{step:08d}"
    try:
        files = {
            MODEL: _weights(incoming / MODEL, checkpoint, model_state),
            CONFIG: write_file(incoming / CONFIG, encode_json(shape_json)),
            TOKENIZER: link_or_copy(tokenizer_path, incoming / TOKENIZER),
        }
        values = {"version": 1, "id": f"{run}/{target.name}", "run": run, "stage": stage, "step": step}
        if target.exists() and not _same(target, files):
            # An earlier export of the same step with other weights: replaced, as its stage is made again.
            remove(target)
        publish(incoming, target, values=values, files=files, fence=lambda: None)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(incoming)
        raise
    return target


def _same(target: Path, files: dict[str, Entry]) -> bool:
    """Return whether a folder is worth keeping: the same files, or damaged (which `publish` sets aside)."""
    try:
        return read_manifest(target).files == files
    except DataError:
        return True


def _weights(path: Path, checkpoint: Path, state: Tensors | None) -> Entry:
    try:
        saved = read_manifest(checkpoint).files.get(MODEL)
    except (DataError, OSError):
        saved = None
    if state is None:
        if saved is None:
            raise DataError(f"there is no valid checkpoint `{checkpoint}` to export")
        return link_or_copy(checkpoint / MODEL, path, entry=saved)
    if saved is not None and entry_of(state) == saved:
        return link_or_copy(checkpoint / MODEL, path, entry=saved)
    return write_tensors(path, state)


def link_or_copy(source: Path, target: Path, *, entry: Entry | None = None) -> Entry:
    """Hard-link a file, or copy it durably where the volume has no links; returns its manifest entry.

    Raises:
        DataError: the source does not exist.
        StorageError: the volume is full or failing.
    """
    if not source.exists():
        raise DataError(f"`{source}` does not exist")
    with storage_errors(target):
        try:
            os.link(source, target)
        except OSError:
            return write_file(target, source.read_bytes())
        fsync_dir(target.parent)
    return entry or {"bytes": target.stat().st_size, "sha256": sha256_file(target)}


def copy_model(model: ModelFolder, target: Path) -> None:
    """Copy a verified model to a new or empty folder, with the commit protocol.

    Raises:
        DataError: the model is damaged.
        StorageError: the volume is full or failing.
    """
    manifest = verify(model.path)
    incoming = target.with_name(f".incoming-{target.name}-{os.getpid()}")
    with storage_errors(target):
        incoming.mkdir(parents=True)
        try:
            for name in manifest.files:
                with (model.path / name).open("rb") as source, hashing_file(incoming / name) as (file, _):
                    shutil.copyfileobj(source, file, 8 << 20)
            if target.exists():
                target.rmdir()
            publish(incoming, target, values=manifest.values, files=manifest.files, fence=lambda: None)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(incoming)
            raise


def list_models(home: Home, run: str) -> list[ModelFolder]:
    """Return a run's models, best first: chat models before others, later stages and steps before earlier."""
    folder = home.models(run)
    if not folder.is_dir():
        return []
    found = [ModelFolder(path) for path in folder.iterdir() if _is_model(path)]
    return sorted(found, key=lambda model: (_ORDER.index(model.stage), -model.step))


def _is_model(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    return match is not None and match[1] in _ORDER and path.is_dir()


def resolve_model(home: Home, run: str) -> ModelFolder:
    """Return the newest chat model of a run, else its newest model.

    Raises:
        ConfigError: the run has no model.
        DataError: it is damaged; an older one is not taken in silence.
    """
    return _pick(home, run, lambda model: True, "model")


def find_model(home: Home, run: str, stage: str) -> ModelFolder:
    """Return the newest model that a stage of a run exported.

    Raises:
        ConfigError: there is none.
    """
    return _pick(home, run, lambda model: model.stage == stage, f"model of stage `{stage}`")


def _pick(home: Home, run: str, wanted: Callable[[ModelFolder], bool], what: str) -> ModelFolder:
    for model in list_models(home, run):
        if not wanted(model):
            continue
        read_manifest(model.path)
        return model
    root = home.root / "models"
    runs = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    hint = "make one with `nanochat speedrun`"
    if runs and run not in runs:
        hint = did_you_mean(run, runs)
    raise ConfigError(f"run `{run}` has no {what} in `{home.root}`", hint=hint)

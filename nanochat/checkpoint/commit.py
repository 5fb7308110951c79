"""Checkpoints of a training stage: saved by all ranks as one commit, loaded at any rank count.

Layout: `checkpoints/step-00001000/{manifest.json, model.safetensors,
optim-rank00000-of-00008.safetensors, state.json}`. Knows nothing of the model;
state is keyed by parameter name.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.checkpoint.folder import (
    Entry,
    Manifest,
    encode_json,
    publish,
    read_manifest,
    remove,
    set_aside,
    verify,
    write_file,
)
from nanochat.checkpoint.group import Group, current
from nanochat.checkpoint.tensors import Tensors, read_tensors, write_tensors
from nanochat.errors import ConfigError, DataError, NanochatError, RunLockedError, StorageError
from nanochat.files import fsync_dir, read_json, storage_errors
from nanochat.settings import Topology

if TYPE_CHECKING:
    from torch import Tensor

MODEL, STATE = "model.safetensors", "state.json"
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed folder whose hashes were verified."""

    path: Path
    step: int
    manifest: Manifest

    def load_model(self, *, device: str = "cpu") -> dict[str, Tensor]:
        """Return the model's tensors by parameter name."""
        return read_tensors(self.path / MODEL, device=device)

    def load_optim(self, *, device: str = "cpu") -> dict[str, Tensor]:
        """Return the optimizer's tensors of all ranks that saved, by name."""
        merged: dict[str, Tensor] = {}
        for name in sorted(self.manifest.files):
            if name.startswith("optim-"):
                merged.update(read_tensors(self.path / name, device=device))
        return merged

    @property
    def state(self) -> dict[str, Any]:
        """The JSON state that was saved with it."""
        state: dict[str, Any] = read_json(self.path / STATE)
        return state

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(entry["bytes"]) for entry in self.manifest.files.values())


class CheckpointStore:
    """The checkpoints of one stage folder. Every rank of a process group calls `save` and `latest` alike."""

    def __init__(self, stage_dir: Path, keep: int = 2, *, group: Group | None = None) -> None:
        """Remember the attempt in `owner`: a later one fences this writer.

        Raises:
            ConfigError: `keep` is below 2; the newest may be damaged, so there must be another.
        """
        if keep < 2:
            raise ConfigError(f"keep is {keep}, but at least 2 checkpoints must be kept")
        self.folder = stage_dir / "checkpoints"
        self.keep = keep
        self._owner = stage_dir.parent / "owner"
        self._attempt = _attempt(self._owner)
        self._given = group

    @property
    def _group(self) -> Group:
        return self._given or current()

    def save(
        self,
        step: int,
        *,
        model: Tensors,
        optim: Tensors,
        state: dict[str, Any],
        topology: Topology | None = None,
    ) -> int:
        """Commit a checkpoint; returns the bytes that this rank wrote.

        Args:
            step: optimizer steps done; names the folder.
            model: tensors by parameter name; read on rank 0 alone.
            optim: this rank's share of the optimizer's tensors by name.
            state: JSON (schedules, data position, random state, losses); read on rank 0 alone.
            topology: which rank this is; one rank without it.

        Raises:
            StorageError: some rank could not write; raised on every rank, nothing is published.
            RunLockedError: a newer attempt owns the run.
        """
        place, group = topology or Topology(), self._group
        attempt = group.share(self._attempt)  # another node may see an older `owner` through its cache
        incoming = self.folder / f".incoming-{step:08d}-{attempt}"
        first = place.rank == 0
        if first:
            self._sweep(keep=incoming)
        failure: NanochatError | OSError | None = None
        entries: dict[str, Entry] = {}
        try:
            entries = self._write(incoming, place, model=model, optim=optim, state=state)
        except (NanochatError, OSError) as error:
            failure = error
        if group.agree(failure is None) and first:
            try:
                self._publish(incoming, step, place, entries)
                self._retire()
            except (NanochatError, OSError) as error:
                failure = error
        if first:
            self._sweep()
        # After the tidying: ranks that stop here end together, and nobody is killed for being slow.
        ok = group.agree(failure is None)
        if failure is not None:
            raise failure
        if not ok:
            raise StorageError(f"checkpoint of step {step} was not saved: another rank could not write")
        return sum(int(entry["bytes"]) for entry in entries.values())

    def _write(
        self, incoming: Path, place: Topology, *, model: Tensors, optim: Tensors, state: dict[str, Any]
    ) -> dict[str, Entry]:
        """Write this rank's files; ranks other than 0 also leave `<file>.json` with the entry for rank 0."""
        with storage_errors(incoming):
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                fsync_dir(self.folder.parent)
            incoming.mkdir(exist_ok=True)
        shard = f"optim-rank{place.rank:05d}-of-{place.world_size:05d}.safetensors"
        entries = {shard: write_tensors(incoming / shard, optim)}
        if place.rank == 0:
            entries[MODEL] = write_tensors(incoming / MODEL, model)
            entries[STATE] = write_file(incoming / STATE, encode_json(state))
        else:
            write_file(incoming / f"{shard}.json", encode_json(entries))
        return entries

    def _publish(self, incoming: Path, step: int, place: Topology, entries: dict[str, Entry]) -> None:
        files = dict(entries)
        for rank in range(1, place.world_size):
            told = incoming / f"optim-rank{rank:05d}-of-{place.world_size:05d}.safetensors.json"
            files.update(read_json(told))
            told.unlink()
        values = {"version": 1, "step": step, "world_size": place.world_size, "attempt": self._attempt}
        publish(incoming, self.folder / f"step-{step:08d}", values=values, files=files, fence=self._fence)

    def _fence(self) -> None:
        now = _attempt(self._owner)
        if now != self._attempt:
            raise RunLockedError(
                f"attempt {now} took over the run from attempt {self._attempt}; this one publishes nothing"
            )

    def _sweep(self, *, keep: Path | None = None) -> None:
        """Remove what dead writers left; a writer that a later attempt fenced touches nothing of its."""
        with contextlib.suppress(OSError):
            if _attempt(self._owner) != self._attempt:
                return
            for left in [*self.folder.glob(".incoming-*"), *self.folder.glob(".removing-*")]:
                if left != keep:
                    remove(left)

    def _retire(self) -> None:
        for step in self.steps()[: -self.keep]:
            with contextlib.suppress(OSError):
                remove(self.folder / f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Return the steps that have a folder, oldest first; nothing is verified."""
        if not self.folder.is_dir():
            return []
        matches = (_STEP.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def latest(self) -> Checkpoint | None:
        """Return the newest valid checkpoint, or None; damaged ones are renamed and named on stderr.

        With several ranks, rank 0 verifies and all load the one it found.
        """
        group = self._group
        found = self._newest_valid() if group.rank == 0 else None
        step = group.share(found.step if found else -1)
        if step < 0 or found is not None:
            return found
        path = self.folder / f"step-{step:08d}"
        return Checkpoint(path, step, read_manifest(path))

    def _newest_valid(self) -> Checkpoint | None:
        for step in reversed(self.steps()):
            path = self.folder / f"step-{step:08d}"
            try:
                return Checkpoint(path, step, verify(path))
            except DataError as error:
                moved = set_aside(path)
                print(f"notice: {error.message}; renamed to `{moved.name}`", file=sys.stderr, flush=True)
        return None


def _attempt(owner: Path) -> int:
    try:
        value = json.loads(owner.read_text(encoding="utf-8"))
        return int(value["attempt"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0

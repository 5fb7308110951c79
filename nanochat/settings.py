"""Where things are and what the environment says: the only reader of environment variables.

Knows the folder layout (one `Home`) and the process topology; knows nothing of
what stages do with them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import ConfigError

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def check_name(field: str, value: str) -> str:
    """Return a run or dataset name that is safe as a folder and as a Kubernetes label.

    Raises:
        ConfigError: the name holds other characters or is longer than 63.
    """
    if not _NAME.fullmatch(value) or ".." in value:
        raise ConfigError(
            f"{field} `{value}` is not a valid name",
            hint="use 1 to 63 of a-z, 0-9, `-`, `_` and `.`, starting and ending with a letter or digit",
        )
    return value


@dataclass(frozen=True, slots=True)
class Home:
    """The folders below NANOCHAT_HOME (a PVC mount in a cluster)."""

    root: Path

    def dataset(self, name: str) -> Path:
        """Return the folder of a dataset: manifest, shards, token folders."""
        return self.root / "datasets" / check_name("dataset", name)

    def run(self, run: str) -> Path:
        """Return the folder of a run: spec, plan, owner, one folder a stage."""
        return self.root / "runs" / check_name("run", run)

    def stage(self, run: str, stage: str) -> Path:
        """Return the folder of a stage: config, events, record, outputs."""
        return self.run(run) / stage

    def models(self, run: str) -> Path:
        """Return the folder of a run's exported models, `<stage>-<step>` each."""
        return self.root / "models" / check_name("run", run)

    @property
    def cache(self) -> Path:
        """Downloads and compiled kernels; safe to delete."""
        return self.root / "cache"


@dataclass(frozen=True, slots=True)
class Topology:
    """Which rank of how many this process is, and on which local device."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def _integer(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"environment variable {name} is `{text}`, not an integer") from None


def home(env: Mapping[str, str] | None = None) -> Home:
    """Return the home folder: NANOCHAT_HOME, else `~/.cache/nanochat`."""
    env = os.environ if env is None else env
    return Home(Path(env.get("NANOCHAT_HOME") or Path.home() / ".cache" / "nanochat").absolute())


def topology(env: Mapping[str, str] | None = None) -> Topology:
    """Return the rank variables that torchrun or torch elastic set; one rank without them."""
    env = os.environ if env is None else env
    return Topology(
        rank=_integer(env, "RANK", 0),
        local_rank=_integer(env, "LOCAL_RANK", 0),
        world_size=_integer(env, "WORLD_SIZE", 1),
    )


def termination_log(env: Mapping[str, str] | None = None) -> Path | None:
    """Return the file Kubernetes reads a container's last words from, where there is one."""
    env = os.environ if env is None else env
    path = Path(env.get("NANOCHAT_TERMINATION_LOG") or "/dev/termination-log")
    return path if path.exists() else None

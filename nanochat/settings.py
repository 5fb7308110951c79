"""Where things are and what the environment says: the only reader and writer of environment variables.

Knows the folder layout (one `Home`) and the process topology; knows nothing of
what stages do with them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
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


def _integer(
    env: Mapping[str, str], name: str, default: int, *, low: int | None = None, high: int | None = None
) -> int:
    text = env.get(name, "")
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        raise ConfigError(f"environment variable {name} is `{text}`, not an integer") from None
    if (low is not None and value < low) or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"{low} to {high}"
        raise ConfigError(f"environment variable {name} is {value}; it should be {limit}")
    return value


def home(env: Mapping[str, str] | None = None) -> Home:
    """Return the home folder: NANOCHAT_HOME, else `~/.cache/nanochat`.

    Raises:
        ConfigError: neither the variable nor the user's own folder is known.
    """
    env = os.environ if env is None else env
    if env.get("NANOCHAT_HOME"):
        return Home(Path(env["NANOCHAT_HOME"]).absolute())
    try:
        return Home(Path.home() / ".cache" / "nanochat")
    except RuntimeError:  # a container's user without an entry in the password file
        raise ConfigError("this user has no home folder", hint="set NANOCHAT_HOME") from None


def stage_config(env: Mapping[str, str] | None = None) -> str | None:
    """Return NANOCHAT_CONFIG, the JSON of a stage's configuration that a pod is given; None without."""
    env = os.environ if env is None else env
    return env.get("NANOCHAT_CONFIG") or None


def topology(env: Mapping[str, str] | None = None) -> Topology:
    """Return the rank variables that torchrun or torch elastic set; one rank without them."""
    env = os.environ if env is None else env
    return Topology(
        rank=_integer(env, "RANK", 0),
        local_rank=_integer(env, "LOCAL_RANK", 0),
        world_size=_integer(env, "WORLD_SIZE", 1),
    )


@dataclass(frozen=True, slots=True)
class Elastic:
    """Ranks and nodes of a stage, and where the nodes meet; the defaults are one rank on one machine."""

    nodes: int = 1
    node_rank: int = 0
    local_ranks: int | None = 1
    """None: one a GPU."""
    host: str = "127.0.0.1"
    """Of the first node, which listens."""
    port: int = 0
    """0: any free one."""


def elastic(nproc: int, env: Mapping[str, str] | None = None) -> Elastic:
    """Return what the PET_* variables of a PyTorchJob or TrainJob ask for; `nproc` ranks here without them.

    RANK and WORLD_SIZE, which the same operators set, count nodes and are not read.

    Raises:
        ConfigError: a variable is not a number or out of range, or several nodes could not meet.
    """
    env = os.environ if env is None else env
    local: int | None = nproc
    if env.get("PET_NPROC_PER_NODE") in ("auto", "gpu", "cpu"):
        local = None
    elif env.get("PET_NPROC_PER_NODE"):
        local = _integer(env, "PET_NPROC_PER_NODE", nproc, low=1)
    nodes = _integer({"PET_NNODES": env.get("PET_NNODES", "").split(":")[-1]}, "PET_NNODES", 1, low=1)
    node_rank = _integer(env, "PET_NODE_RANK", 0, low=0, high=nodes - 1)
    if nodes == 1:
        return Elastic(local_ranks=local)
    endpoint = env.get("PET_RDZV_ENDPOINT", "")
    host, _, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", "")
    host = host or env.get("PET_MASTER_ADDR") or env.get("MASTER_ADDR") or ""
    port = port or env.get("PET_MASTER_PORT") or env.get("MASTER_PORT") or "29400"
    for name, value in (("PET_NODE_RANK", env.get("PET_NODE_RANK")), ("PET_MASTER_ADDR", host)):
        if not value:
            raise ConfigError(
                f"environment variable {name} is not set, but PET_NNODES is {nodes}",
                hint="every node needs its number from 0 and node 0's address; an elastic policy gives none",
            )
    number = _integer({"PET_MASTER_PORT": port}, "PET_MASTER_PORT", 0, low=1, high=65535)
    return Elastic(nodes=nodes, node_rank=node_rank, local_ranks=local, host=host, port=number)


def under_torchrun(env: Mapping[str, str] | None = None) -> bool:
    """Return whether torchrun started this process as one of its ranks."""
    env = os.environ if env is None else env
    return bool(env.get("TORCHELASTIC_RUN_ID"))


def termination_log(env: Mapping[str, str] | None = None) -> Path | None:
    """Return the file Kubernetes reads a container's last words from, where there is one."""
    env = os.environ if env is None else env
    path = Path(env.get("NANOCHAT_TERMINATION_LOG") or "/dev/termination-log")
    return path if path.exists() else None


def environment(**changes: str) -> dict[str, str]:
    """Return a copy of this process's environment, with changes: for a child, or for who looks names up."""
    return {**os.environ, **changes}


@contextlib.contextmanager
def quiet_import(**variables: str) -> Iterator[None]:
    """Set variables that a library reads while it is imported, unless the user did; children see none."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def tell_libraries(**variables: str) -> None:
    """Set environment variables that a library reads later in this process or in its children."""
    os.environ.update(variables)

"""The completion record of a stage: what it was asked, what it read, what it left.

A stage is finished when its `record.json` exists, matches the question and its
outputs are there. Knows nothing of what stages do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from nanochat.errors import ConfigError, DataError
from nanochat.files import hash_json, read_json, sha256_file, write_json
from nanochat.run.config import Frozen, StageConfig
from nanochat.run.stage import Stage
from nanochat.run.stage import stage as find_stage
from nanochat.settings import Home


class Output(Frozen):
    """One file that a stage left."""

    sha256: str
    bytes: int


class Record(Frozen):
    """`runs/<run>/<stage>/record.json`."""

    version: int = 1
    stage: str
    config: dict[str, Any]
    """The settings that the result depends on."""
    config_hash: str
    inputs: dict[str, str] = Field(default_factory=dict)
    """Stage read -> hash of its record."""
    revision: str = ""
    """Code that made it: git commit, `-dirty` with local changes; else the package's version."""
    outputs: dict[str, Output] = Field(default_factory=dict)
    """Path below NANOCHAT_HOME -> what it held."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    wall_s: float = 0.0
    """Seconds of work, all attempts together."""
    attempts: int = 1
    started: float = 0.0
    finished: float = 0.0
    """Unix seconds."""
    hardware: dict[str, Any] = Field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Identity of the result; times, metrics and the machine are not part of it."""
        outputs = {path: output.sha256 for path, output in self.outputs.items()}
        return hash_json(
            {"stage": self.stage, "config": self.config_hash, "inputs": self.inputs, "outputs": outputs}
        )

    def save(self, stage_dir: Path) -> None:
        """Write `record.json`, atomically: from now on the stage is finished."""
        write_json(stage_dir / "record.json", self.model_dump(mode="json"))

    @classmethod
    def load(cls, stage_dir: Path) -> Record | None:
        """Return the record of a stage folder, None without one.

        Raises:
            DataError: the file is damaged.
        """
        path = stage_dir / "record.json"
        if not path.exists():
            return None
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"`{path}` is not a record: `{field}`: {first['msg']}",
                hint="delete the file; the stage runs again",
            ) from None

    def output(self, home: Home, name: str) -> Path:
        """Return the path of the output whose file name is `name`.

        Raises:
            DataError: the record lists none.
        """
        for path in self.outputs:
            if Path(path).name == name:
                return home.root / path
        raise DataError(f"the record of stage `{self.stage}` lists no `{name}`")


def difference(record: Record, config: StageConfig) -> str | None:
    """Return which setting differs between a record and a question, in words; None when none does."""
    return setting_difference(record.config, config.spec.relevant(find_stage(record.stage)))


def setting_difference(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """Return the first setting that differs, in words; None when none does."""
    for name in sorted({*recorded, *asked}):
        if recorded.get(name) != asked.get(name):
            return f"`{name}` was {json.dumps(recorded.get(name))}, now {json.dumps(asked.get(name))}"
    return None


def missing_output(record: Record, home: Home) -> str | None:
    """Return which output is gone or has another size, in words; None when all are there."""
    for name, output in record.outputs.items():
        try:
            size = (home.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return f"`{name}` is missing"
        if size != output.bytes:
            return f"`{name}` has {size:,} bytes, expected {output.bytes:,}"
    return None


def find_inputs(stage: Stage, run_dir: Path) -> dict[str, Record]:
    """Return the records that `stage` reads, by the name of the stage that left them.

    Raises:
        ConfigError: one is missing; the hint says which command makes it.
    """
    found: dict[str, Record] = {}
    for read in stage.reads:
        names = read.rstrip("?").split("|")
        records = ((name, Record.load(run_dir / name)) for name in names)
        match = next(((name, record) for name, record in records if record is not None), None)
        if match is not None:
            found[match[0]] = match[1]
        elif not read.endswith("?"):
            raise ConfigError(
                f"stage `{stage.name}` reads `{names[0]}`, which is not finished in run `{run_dir.name}`",
                hint=f"run `nanochat run {names[0]} --run {run_dir.name}` first, or `nanochat speedrun`",
            )
    return found


def hash_outputs(paths: Iterable[Path], home: Home) -> dict[str, Output]:
    """Hash the files among `paths`, and those inside folders among them, by path below the home folder.

    Raises:
        DataError: a path does not exist.
    """
    outputs: dict[str, Output] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"stage output `{path}` does not exist")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.absolute().relative_to(home.root).as_posix()
            outputs[name] = Output(sha256=sha256_file(file), bytes=file.stat().st_size)
    return outputs


def code_revision(root: Path | None = None) -> str:
    """Return the git commit of the source tree (`-dirty` with local changes), else the package version."""
    root = root or Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is not None and (root / ".git").exists():
        commands = (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        try:
            revision, status = (
                subprocess.run(
                    [git, "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
                ).stdout.strip()
                for command in commands
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return f"{revision}-dirty" if status else revision
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nanochat-platform")
    except PackageNotFoundError:
        return "unknown"


def hardware() -> dict[str, Any]:
    """Describe this machine: system, processor, usable cores, memory, and GPUs where torch is loaded."""
    import platform  # with its own imports 3 ms, which only the end of a stage needs

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor() or platform.processor() or platform.machine(),
        "cores": cores,
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["torch"] = torch.__version__
        if torch.cuda.is_available():
            facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""

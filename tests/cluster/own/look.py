"""What a container of ours finds out about itself, as one JSON line; `test_images.py` runs it inside."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

MODULES = (
    "kubernetes",
    "nanochat",
    "nanochat.serve.main",
    "nanochat_platform.cli.app",
    "nanochat_platform.pipeline.step",
    "nanochat_platform.ray_serve",
    "nanochat_rustbpe",
    "pyarrow.parquet",
    "ray",
    "ray.serve",
    "torch",
)


def write(folder: str) -> str:
    """Return `yes`, or why no file can be made there."""
    path = Path(folder, "probe")
    try:
        path.touch()
    except OSError as error:
        return str(error.strerror)
    path.unlink()
    return "yes"


def load(module: str) -> str:
    """Return `yes`, or why the module cannot be imported."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return "yes"


def byte_code(module: str) -> str:
    """Return where the byte code of a module belongs."""
    return importlib.util.cache_from_source(str(importlib.import_module(module).__file__))


installed = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
facts = {
    "ids": [os.getuid(), os.getgid(), sorted(os.getgroups())],
    "init": Path("/proc/1/comm").read_text(encoding="utf-8").strip(),
    "write": {folder: write(folder) for folder in ("/", "/opt/venv", "/usr", "/tmp", "/home/nanochat")},  # noqa: S108
    "import": {module: load(module) for module in MODULES},
    "help": subprocess.run(["nanochat", "--help"], stdout=subprocess.DEVNULL, check=False).returncode,  # noqa: S607
    "python": [shutil.which(name) for name in ("python", "python3", "nanochat")],
    "compilers": [name for name in ("gcc", "g++", "cc", "clang") if shutil.which(name)],
    "byte_code": byte_code("pydantic"),
    "installed": installed,  # read first: Ray adds the copies that it carries to the path
    "sbom": json.loads(Path("/usr/share/nanochat/sbom.json").read_text(encoding="utf-8")),
}
print(json.dumps(facts))

"""Our three images from their Dockerfiles, for the CPU, once per content of what goes in.

PyTorch's wheel from the index wants 3 GB of NVIDIA libraries to be imported. Here, and only here, they are
left out and a wheel of stubs (`tests/cluster/stubs`) enters beside our own two; the output says so, and so
does the image's bill of materials.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from tests.cluster.harness.host import ROOT, cached, run, say
from tests.cluster.harness.images import base_image, build_image
from tests.cluster.harness.oci import Image

STUBS = ROOT / "tests/cluster/stubs"
SOURCES = (
    "LICENSE",
    "README.md",
    "nanochat",
    "platform",
    "pyproject.toml",
    "rustbpe/Cargo.lock",
    "rustbpe/Cargo.toml",
    "rustbpe/README.md",
    "rustbpe/pyproject.toml",
    "rustbpe/src",
)
CONTEXT = ("images/tools", "pyproject.toml", "requirements.lock")
CUDA = "nvidia-* cuda-*"


def _digest(paths: tuple[str, ...]) -> str:
    """Hash what git would commit of some paths."""
    listed = run(["git", "ls-files", "-coz", "--exclude-standard", "--", *paths], cwd=ROOT).stdout
    digest = hashlib.sha256()
    for name in sorted(filter(None, listed.split("\0"))):
        if (ROOT / name).is_file():
            digest.update(f"{name}\0".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()[:12]


def wheels() -> Path:
    """Return the folder with our two wheels, built by the checkout's own environment."""

    def make(folder: Path) -> None:
        bin_ = Path(sys.executable).parent
        run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT)
        crate: list[str | Path] = [
            "--release",
            "--manifest-path",
            ROOT / "rustbpe/Cargo.toml",
            "--out",
            folder,
        ]
        run([bin_ / "maturin", "build", *crate], cwd=ROOT, timeout=600)

    return cached("wheels", _digest(SOURCES), make)


def stubs() -> Path:
    """Return the folder with the wheel of stand-ins for NVIDIA's libraries."""
    key = hashlib.sha256((STUBS / "make.py").read_bytes()).hexdigest()[:12]

    def make(folder: Path) -> None:
        run([sys.executable, STUBS / "make.py", folder], timeout=300)

    return cached("stubs", f"{version('torch')}-{key}", make)


def _build(name: str, args: Mapping[str, str], wheels: Iterable[Path]) -> Image:
    return build_image(
        ROOT / f"images/{name}.Dockerfile",
        f"localhost/nanochat/{name}:test",
        inputs=CONTEXT,
        base=base_image(),
        args=args,
        extra={f"dist/{wheel.name}": wheel for wheel in wheels},
    )


def _with_stubs(name: str) -> Image:
    say(f"image {name}: TEST ONLY, stubs stand in for NVIDIA's libraries; the rest is the Dockerfile's")
    return _build(name, {"VARIANT": "cpu", "EXCLUDE": CUDA}, [*wheels().iterdir(), *stubs().iterdir()])


def train_image() -> Image:
    """Return `localhost/nanochat/train:test`."""
    return _with_stubs("train")


def serve_image() -> Image:
    """Return `localhost/nanochat/serve:test`."""
    return _with_stubs("serve")


def submit_image() -> Image:
    """Return `localhost/nanochat/submit:test`."""
    return _build("submit", {}, wheels().iterdir())

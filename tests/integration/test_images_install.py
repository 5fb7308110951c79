"""`images/tools/install.py` against a package index on loopback: real pip and uv, wheels made here.

The index serves a `uv` whose program is the environment's own, so nothing is fetched from outside.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "images/tools/install.py"
UV = Path(sys.executable).parent / "uv"


def wheel(folder: Path, name: str, version: str, *requires: str, script: str = "") -> str:
    """Write a wheel into the index's folder of its project; return its hash."""
    project = folder / "simple" / name
    project.mkdir(parents=True, exist_ok=True)
    stem, info = f"{name}-{version}", f"{name}-{version}.dist-info"
    files = {
        f"{name}_module.py": f"version = {version!r}\n",
        f"{info}/METADATA": "".join(
            f"{line}\n"
            for line in (
                "Metadata-Version: 2.1",
                f"Name: {name}",
                f"Version: {version}",
                *(f"Requires-Dist: {required}" for required in requires),
            )
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        files[f"{stem}.data/scripts/{name}"] = script
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = project / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            entry = zipfile.ZipInfo(member)
            entry.external_attr = (0o100755 if "/scripts/" in member else 0o100644) << 16
            archive.writestr(entry, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with (project / "index.html").open("a", encoding="utf-8") as page:
        page.write(f'<a href="{path.name}">{path.name}</a>\n')
    return digest


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield the index's address, the lock's hashes, and the address of an index with another torch."""
    folder = tmp_path_factory.mktemp("index")
    hashes = {
        "uv==1.0": wheel(folder / "a", "uv", "1.0", script=f'#!/bin/sh\nexec {UV} "$@"\n'),
        "torch==2.15.0": wheel(folder / "a", "torch", "2.15.0", "nvidia-lib", "sympy"),
        "sympy==1.14": wheel(folder / "a", "sympy", "1.14"),
        "nvidia-lib==13.0": wheel(folder / "a", "nvidia_lib", "13.0"),
        "triton==3.9": wheel(folder / "a", "triton", "3.9"),
    }
    (folder / "a/simple/nvidia_lib").rename(folder / "a/simple/nvidia-lib")
    wheel(folder / "a", "sympy", "1.15")  # newer than the lock
    hashes["torch==2.15.0+cpu"] = wheel(folder / "b", "torch", "2.15.0+cpu", "sympy")
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield f"{address}/a/simple", hashes, f"{address}/b/simple"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def project(tmp_path, index):
    """Write a project; return a function that locks and installs it and returns (process, what is there)."""
    address, hashes, _ = index
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "demo"\nversion = "1"\ndependencies = []\n'
        '[project.optional-dependencies]\ntrain = ["torch>=2", "nanochat-rustbpe"]\n'
    )
    lock = {name: digest for name, digest in hashes.items() if "+" not in name}
    home = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PIP_NO_CACHE_DIR": "1",
        "UV_CACHE_DIR": str(tmp_path / "c"),
    }

    def install(*args: str, drop: str = "", spoil: str = ""):
        lines = [
            f"{name} \\\n    --hash=sha256:{'0' * 64 if name == spoil else digest}\n"
            for name, digest in lock.items()
            if name != drop
        ]
        (tmp_path / "requirements.lock").write_text("".join(lines))
        command = [
            sys.executable,
            INSTALL,
            tmp_path / "venv",
            "--index-url",
            address,
            "--extra",
            "train",
            *args,
        ]
        done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, check=False)
        found = sorted(
            path.name.removesuffix(".dist-info")
            for path in (tmp_path / "venv").glob("lib/python3*/site-packages/*.dist-info")
        )
        return done, found

    return install


def test_the_extra_is_installed_at_the_lock_s_versions_without_what_is_left_out(project):
    done, found = project("--variant", "cpu", "--exclude", "nvidia-*")
    assert done.returncode == 0, done.stderr
    assert found == ["sympy-1.14", "torch-2.15.0"]
    assert "without nanochat-rustbpe nvidia-lib triton" in done.stdout


def test_a_wheel_whose_hash_is_not_the_lock_s_stops_the_build(project):
    done, found = project("--variant", "cuda", spoil="sympy==1.14")
    assert done.returncode != 0
    assert "Hash mismatch for `sympy==1.14`" in done.stderr
    assert "error: uv stopped with exit code" in done.stderr
    assert found == []


def test_a_dependency_that_the_lock_lacks_stops_the_build(project):
    done, found = project("--variant", "cuda", drop="nvidia-lib==13.0")
    assert done.returncode != 0
    assert "no trusted hash was provided for: `nvidia-lib`" in done.stderr
    assert found == []


def test_an_index_of_cpu_wheels_gives_torch_alone_and_by_its_hash(project, index):
    _, hashes, other = index
    args = ("--variant", "cpu", "--torch-index-url", other, "--torch-sha256")
    done, found = project(*args, hashes["torch==2.15.0+cpu"])
    assert done.returncode == 0, done.stderr
    assert found == ["sympy-1.14", "torch-2.15.0+cpu"], "nothing NVIDIA, the rest from the lock"


def test_another_index_without_a_hash_is_refused_in_one_line(project, index):
    done, found = project("--variant", "cpu", "--torch-index-url", index[2])
    assert done.returncode == 64
    assert "TORCH_INDEX_URL needs TORCH_SHA256" in done.stderr
    assert "Traceback" not in done.stderr
    assert found == []

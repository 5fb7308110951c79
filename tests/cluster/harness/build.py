"""Build the cluster's programs from their pinned Go modules, once per content of the module files.

Knows nothing of how they are run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .host import HarnessError, cached, need_space, run, say

GO = Path(__file__).resolve().parents[1] / "go"
GO_VERSION = (1, 26)


@dataclass(frozen=True)
class Program:
    """A folder of `go/` and the packages in it that become binaries."""

    name: str
    packages: tuple[str, ...]


KUBE = Program("kube", (".", "./coredns", "tool"))
KUBERAY = Program("kuberay", ("tool",))
PAUSE = Program("pause", (".",))


def module_version(program: Program, module: str) -> str:
    """Return the version of `module` that the program's go.mod asks for, like `v1.36.3`."""
    found = re.search(
        rf"^\s*(?:require )?{re.escape(module)} (v\S+)", (GO / program.name / "go.mod").read_text(), re.M
    )
    if found is None:
        raise HarnessError(f"go/{program.name}/go.mod does not name {module}")
    return found[1]


def key(program: Program) -> str:
    """Return the hash of everything of ours that decides the binaries."""
    folder = GO / program.name
    digest = hashlib.sha256()
    for path in sorted([folder / "go.mod", *folder.glob("go.sum"), *folder.rglob("*.go")]):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _go() -> str:
    go = shutil.which("go")
    wanted = ".".join(map(str, GO_VERSION))
    if go is None:
        raise HarnessError(
            f"no Go toolchain on PATH: Kubernetes is built from source; install Go {wanted} or newer"
        )
    version = run([go, "env", "GOVERSION"]).stdout.strip()
    found = re.match(r"go(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < GO_VERSION:
        raise HarnessError(f"Go {wanted} or newer is needed to build Kubernetes; `{go}` is {version}")
    return go


def _stamps() -> str:
    """Return the linker flags without which kubectl and helm cannot read the server's version."""
    version = module_version(KUBE, "k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".")
    base, client = "k8s.io/component-base/version", "k8s.io/client-go/pkg/version"
    stamps = {f"{base}.gitVersion": version, f"{base}.gitMajor": major, f"{base}.gitMinor": minor}
    return " ".join(
        f"-X {name}={value}" for name, value in {**stamps, f"{client}.gitVersion": version}.items()
    )


def _build(program: Program, folder: Path) -> None:
    go = _go()
    need_space(6)
    flags = f"-s -w {_stamps()}" if program is KUBE else "-s -w"
    command = [go, "build", "-v", "-trimpath", "-ldflags", flags, "-o", f"{folder}/", *program.packages]
    say(f"building {program.name} with {go} (about five minutes for Kubernetes when Go's own cache is empty)")
    started = last = time.monotonic()
    output: list[str] = []
    with subprocess.Popen(
        command,
        cwd=GO / program.name,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            output.append(line)
            if time.monotonic() - last > 30:
                last = time.monotonic()
                say(f"building {program.name}: {len(output)} packages, {last - started:.0f} s")
    if process.returncode:
        raise HarnessError(
            f"go build of {program.name} ended with {process.returncode}: {''.join(output[-20:])}"
        )
    say(f"built {program.name} in {time.monotonic() - started:.0f} s")


def binaries(program: Program) -> Path:
    """Return the folder with the program's binaries, built where the cache has none.

    Raises:
        HarnessError: Go is missing or too old, or the build failed.
    """
    return cached(program.name, key(program), lambda folder: _build(program, folder))


def module_folder(program: Program, module: str) -> Path:
    """Return where Go keeps the sources of `module`: an operator's manifests lie there. Downloads them."""
    run([_go(), "mod", "download", module], cwd=GO / program.name, timeout=300)
    return Path(run([_go(), "list", "-m", "-f", "{{.Dir}}", module], cwd=GO / program.name).stdout.strip())

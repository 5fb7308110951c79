"""What the harness needs from the machine: commands, a cache, Debian packages, bounded waiting.

Knows nothing of Kubernetes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[3]
"""The checkout."""

T = TypeVar("T")

# One command of each Debian package that may be missing.
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "openssl": "openssl",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}


class HarnessError(RuntimeError):
    """The test cluster cannot be built or run here; the message says why and what to do."""


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


emit: Callable[[str], None] = _to_stderr
"""Where lines of progress go; conftest leads them past pytest's capture."""


def say(text: str) -> None:
    """Print a line of progress."""
    emit(text)


@contextlib.contextmanager
def rung(name: str) -> Iterator[None]:
    """Time one rung of the ladder and print it, also when it fails."""
    started = time.monotonic()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        say(f"rung {name}: {outcome} {time.monotonic() - started:.1f} s")


def run(
    args: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        HarnessError: it is not installed, failed (with `check`) or outlived `timeout` seconds.
    """
    command = [str(arg) for arg in args]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise HarnessError(f"`{error.filename}` is missing") from error
    except subprocess.TimeoutExpired as error:
        raise HarnessError(f"`{' '.join(command)}` took more than {timeout:.0f} s") from error
    if check and done.returncode:
        text = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise HarnessError(f"`{' '.join(command)}` ended with {done.returncode}: {text}")
    return done


def poll(what: str, condition: Callable[[], T | None], timeout: float, interval: float = 0.05) -> T:
    """Ask `condition` until it answers something true, and return that.

    Raises:
        TimeoutError: it did not within `timeout` seconds; the message is `what`.
    """
    deadline = time.monotonic() + timeout
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(interval)


def cache_root() -> Path:
    """Return the folder of everything that may be built again: binaries, images, container state."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "nanochat-test-cluster"


def mortal() -> list[str]:
    """Return what to put before a command that must not outlive the tests, however they end."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system drops it when this process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `name-key` of the cache, made by `build(empty folder)` where it is absent.

    It appears under its name only when complete, and two processes do not build it twice.
    `key` is twelve hexadecimal digits.
    """
    folder = cache_root() / f"{name}-{key}"
    if folder.is_dir():
        os.utime(folder)
        return folder
    with locked(cache_root() / "locks" / folder.name):
        if folder.is_dir():
            return folder
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        build(partial)
        partial.rename(folder)
    _prune(name)
    return folder


def _prune(name: str) -> None:
    """Keep the newest two of `name`, and what was used within the hour: another checkout may be at work."""
    key = "[0-9a-f]" * 12
    newest_first = sorted(cache_root().glob(f"{name}-{key}"), key=lambda path: -path.stat().st_mtime)
    for folder in newest_first[2:]:
        if time.time() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def need_space(gigabytes: float) -> None:
    """Raise a `HarnessError` unless so many free gigabytes are left where the cache is."""
    cache_root().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_root()).free / 1e9
    if free < gigabytes:
        raise HarnessError(
            f"{free:.1f} GB are free where `{cache_root()}` is, and {gigabytes:g} are needed: "
            "make room, or set XDG_CACHE_HOME to a folder that has it"
        )


def need_root() -> None:
    """Raise a `HarnessError` unless namespaces can be made here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise HarnessError(
            "the test cluster needs Linux and root; "
            "set NANOCHAT_TEST_KUBECONFIG to run these tests on a cluster of yours"
        )


def need_packages() -> None:
    """Install the Debian packages whose commands are missing.

    Raises:
        HarnessError: something is missing and this is not root on a Debian.
    """
    missing = sorted(
        package
        for command, package in PACKAGES.items()
        if shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    )
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise HarnessError(f"missing: {' '.join(missing)} (Debian: apt-get install {' '.join(missing)})")
    say(f"installing {' '.join(missing)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    with rung("Debian packages"):
        run(["apt-get", "update", "-qq"], env=quiet, timeout=300)
        run(install, env=quiet, timeout=600)

"""Install what one image needs into a virtual environment, every file checked against requirements.lock.

The lock is the only list of versions and hashes: uv resolves the extras of pyproject.toml under it, and a
distribution that the lock lacks, or whose hash differs, stops the build. Runs in a build stage with the
system's Python alone; knows nothing of what the image is for.

    python3 images/tools/install.py /opt/venv --extra train --variant cuda
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Whom the downloads trust: the builder's bundle (`--secret id=ca,src=FILE`: there during one RUN, in no
# layer), else the system's, which a base image may have extended.
TRUSTED = (Path("/run/secrets/ca"), Path("/etc/ssl/certs/ca-certificates.crt"))
OURS = "nanochat-rustbpe"  # from dist/, not from an index


class BuildError(Exception):
    """A wrong build argument: the message names it and says what to give."""


def locked(lock: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each distribution of a lock and its block of lines."""
    for block in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE):
        if found := re.match(r"[A-Za-z0-9._-]+", block):
            yield found[0].lower(), block


def pin(lock: str, name: str) -> str:
    """Return the lock's block of one distribution, or its blocks where Python versions differ.

    Raises:
        BuildError: the lock has no such distribution.
    """
    if blocks := "".join(block for found, block in locked(lock) if found == name):
        return blocks
    raise BuildError(f"requirements.lock has no {name!r}; run `make lock`")


def torch_pin(lock: str, sha256: str) -> str:
    """Return the requirement of torch as another index builds it: the lock's version, the given hash.

    Raises:
        BuildError: the hash is missing or is not 64 hexadecimal digits.
    """
    digits = sha256.removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise BuildError(
            f"TORCH_INDEX_URL needs TORCH_SHA256, the hash of that index's wheel, and got {sha256!r}: "
            "take it from the index's page, or from `pip download --no-deps` and `pip hash`"
        )
    return f"{pin(lock, 'torch').split()[0]} --hash=sha256:{digits}"


def left_out(lock: str, variant: str, exclude: Sequence[str]) -> list[str]:
    """Return the distributions that are not installed; `nvidia-*` stands for all with that prefix.

    Raises:
        BuildError: the variant is unknown, or a pattern matches nothing in the lock.
    """
    if variant not in ("", "cpu", "cuda"):
        raise BuildError(f"VARIANT is `cpu` or `cuda`, not {variant!r}")
    names = [name for name, _ in locked(lock)]
    found = {OURS, *(["triton"] if variant == "cpu" else [])}
    for pattern in exclude:
        prefix = pattern.removesuffix("*")
        hits = [n for n in names if n == pattern or (prefix != pattern and n.startswith(prefix))]
        if not hits:
            raise BuildError(f"EXCLUDE names {pattern!r}, which requirements.lock does not have")
        found.update(hits)
    return sorted(found)


def environment(index_url: str) -> dict[str, str]:
    """Return the environment of pip and uv: whom they trust, which index they ask."""
    env = {**os.environ, "UV_LINK_MODE": "copy", "UV_SYSTEM_CERTS": "true", "PIP_ROOT_USER_ACTION": "ignore"}
    if bundle := next((str(path) for path in TRUSTED if path.is_file()), None):
        env |= {"PIP_CERT": bundle, "SSL_CERT_FILE": bundle}
    if index_url:
        env |= {"PIP_INDEX_URL": index_url, "UV_DEFAULT_INDEX": index_url}
    return env


def install(work: Path, asked: argparse.Namespace) -> None:
    """Make the environment; `work` is an empty folder.

    Raises:
        BuildError: a build argument is wrong.
        subprocess.CalledProcessError: pip or uv refused; it has said why.
    """
    lock = asked.lock.read_text(encoding="utf-8")
    without = left_out(lock, asked.variant, asked.exclude)
    torch = torch_pin(lock, asked.torch_sha256) if asked.torch_index_url else ""
    env = environment(asked.index_url)

    def run(*command: str | Path) -> None:
        subprocess.run([str(part) for part in command], check=True, env=env)

    def write(name: str, text: str) -> Path:
        (work / name).write_text(text + "\n", encoding="utf-8")
        return work / name

    run(sys.executable, "-m", "venv", work / "boot")
    pip = (work / "boot/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    hashed = ("--require-hashes", "--only-binary=:all:")
    run(*pip, "install", *hashed, "-r", write("uv.txt", pin(lock, "uv")))

    named = [pin(lock, name) for name in asked.package]
    if torch:
        source = ("--index-url", asked.torch_index_url, "-r", write("torch.txt", torch))
        run(*pip, "download", "--no-deps", *hashed, "-d", work / "torch", *source)
        (wheel,) = (work / "torch").iterdir()
        named.append(f"torch @ {wheel.as_uri()} {torch.split()[1]}")
    elif asked.variant == "cpu" and not asked.exclude:
        say("torch is the lock's, with 3 GB of CUDA libraries; TORCH_INDEX_URL gives the CPU build")

    variant = f" for {asked.variant}" if asked.variant else ""
    what = ", ".join([*asked.extra, *asked.package])
    say(f"installing {what}{variant} from {asked.lock.name}, without {' '.join(without)}")
    uv = (work / "boot/bin/uv", "--quiet", "--no-config")
    run(*uv, "venv", "--no-project", "--python", sys.executable, asked.venv)
    extras = [part for extra in asked.extra for part in ("-r", asked.project, "--extra", extra)]
    run(
        *(*uv, "pip", "install", "--no-sources", "--no-build", "--python", asked.venv / "bin/python"),
        *("--require-hashes", "--constraints", asked.lock),
        *("--excludes", write("excludes.txt", "\n".join(without))),
        *(*extras, "-r", write("named.txt", "\n".join(named))),
    )


def say(text: str) -> None:
    """Print one line into the build's output."""
    print(f"images: {text}", flush=True)


def arguments() -> argparse.ArgumentParser:
    """Return the parser; an empty value is a build argument that was not given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--extra", action="append", default=[], help="extra of pyproject.toml")
    parser.add_argument(
        "--package", action="append", default=[], help="a distribution, at the lock's version"
    )
    parser.add_argument("--variant", default="", help="cpu or cuda, where torch is among the extras")
    parser.add_argument("--exclude", type=str.split, default=[], help="names, or prefixes with *")
    parser.add_argument("--index-url", default="")
    parser.add_argument("--torch-index-url", default="")
    parser.add_argument("--torch-sha256", default="")
    parser.add_argument("--lock", type=Path, default=Path("requirements.lock"))
    parser.add_argument("--project", type=Path, default=Path("pyproject.toml"))
    return parser


def main() -> int:
    """Run the command line; 64 for a wrong build argument, the installer's code where it failed."""
    asked = arguments().parse_args()
    try:
        with tempfile.TemporaryDirectory() as work:
            install(Path(work), asked)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    except subprocess.CalledProcessError as error:
        print(f"error: {Path(error.cmd[0]).name} stopped with exit code {error.returncode}", file=sys.stderr)
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Remove from a virtual environment what no image ever runs, then compile the rest.

Headers, static libraries, test suites and, on request, further folders go; byte code is written once, because a
read-only root cannot write it at start (`import torch` without it: seconds). Run after the installation, before the
environment is copied into the final stage.

    python images/tools/slim.py /opt/venv --headers --drop ray/rllib
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from py_compile import PycInvalidationMode

# Test suites that nothing imports at run time. Only these: a folder called `tests` may be part of a package.
TESTED = ("mpmath", "networkx", "numpy", "pyarrow", "sympy", "greenlet", "websocket")
# Arrow's RPC format, which its own module alone loads. Its plan format looks as idle, but everything links to it.
ARROW = ("*flight*", "src", "include", "*.pxd", "*.pyx")
DEAD = (
    "torch/bin/protoc*",
    "torch/share",
    "pyarrow/include",
    "nvidia/*/include",
    "nvidia/*/lib/*.a",
    *(f"pyarrow/{name}" for name in ARROW),
)
# What a C++ compiler includes: wanted where torch.compile works, dead weight elsewhere.
HEADERS = ("torch/include", "numpy/_core/include")


def victims(site: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Yield the files and folders of a site-packages folder that go."""
    for pattern in patterns:
        yield from site.glob(pattern)
    for package in TESTED:
        yield from (path for path in (site / package).rglob("tests") if path.is_dir())


def size(path: Path) -> int:
    """Return the bytes of a file or folder; symbolic links count as nothing."""
    if path.is_symlink():
        return 0
    if path.is_dir():
        return sum(size(child) for child in path.iterdir())
    return path.stat().st_size


def slim(site: Path, patterns: Sequence[str]) -> int:
    """Remove the victims; return the bytes won."""
    won = 0
    for path in sorted(victims(site, patterns)):
        if not path.exists() and not path.is_symlink():
            continue  # inside a folder that went already
        won += size(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return won


def main() -> int:
    """Run the command line; 1 when a given folder does not exist."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--headers", action="store_true", help="the image has no compiler: C++ headers go too")
    parser.add_argument("--drop", nargs="*", default=[], metavar="FOLDER", help="further folders of site-packages")
    asked = parser.parse_args()
    (site,) = asked.venv.glob("lib/python3*/site-packages")
    for folder in asked.drop:
        if not (site / folder).exists():
            print(f"error: --drop names {folder!r}, which is not in {site}", file=sys.stderr)
            return 1
    won = slim(site, [*DEAD, *(HEADERS if asked.headers else ()), *asked.drop])
    # Unchecked: a layer may change the time stamps that a checked .pyc is compared with, and nothing edits /opt/venv.
    mode = PycInvalidationMode.UNCHECKED_HASH
    # A few packages ship templates in a syntax of their own; whoever imports such a file fails as before.
    compileall.compile_dir(site, quiet=2, workers=0, invalidation_mode=mode)
    print(f"images: {won / 1e6:.0f} MB removed, {size(site) / 1e6:.0f} MB stay", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Remove from a virtual environment what no image ever runs, then compile the rest.

Headers, static libraries, test suites and, on request, further folders go; a library that one that stays asks
for is not removed but named, and the build ends. Byte code is written once: a read-only root cannot write it
at the first start. Runs after the installation, before the environment is copied into the final stage.

    python images/tools/slim.py /opt/venv --headers --drop ray/rllib
"""

from __future__ import annotations

import argparse
import compileall
import mmap
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from py_compile import PycInvalidationMode

# Test suites that nothing imports at run time. Only these: a `tests` folder may be part of a package.
TESTED = ("mpmath", "networkx", "numpy", "pyarrow", "sympy")
DEAD = (
    "torch/bin/protoc*",
    "torch/share",
    "nvidia/*/include",
    "nvidia/*/lib/*.a",
    "pyarrow/*.pxd",
    "pyarrow/*.pyx",
    "pyarrow/*flight*",  # Arrow's RPC format, 33 MB
    "pyarrow/include",
    "pyarrow/src",
)
# What a C++ compiler includes: wanted where torch.compile works, dead weight elsewhere.
HEADERS = ("torch/include", "numpy/_core/include")


def victims(site: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Yield the files and folders of a site-packages folder that go, outermost only."""
    found = {path for pattern in patterns for path in site.glob(pattern)}
    for package in TESTED:
        found |= {path for path in (site / package).rglob("tests") if path.is_dir()}
    yield from (path for path in sorted(found) if not found & set(path.parents))


def missed(site: Path, gone: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each library that stays and asks the loader for one that goes, with the name it asks for."""
    names = [path.name.encode() for path in gone if ".so" in path.name]
    if not names:
        return
    for package in {path.relative_to(site).parts[0] for path in gone}:
        for library in sorted((site / package).rglob("*.so*")):
            if library in gone or library.is_symlink() or not library.is_file():
                continue
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                yield from (
                    (library, name.decode()) for name in names if text.find(b"\0" + name + b"\0") >= 0
                )


def size(path: Path) -> int:
    """Return the bytes of a file or folder; symbolic links count as nothing."""
    if path.is_symlink():
        return 0
    if path.is_dir():
        return sum(size(child) for child in path.iterdir())
    return path.stat().st_size


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> int:
    """Run the command line; 1 when a given folder is absent or a library would miss another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--headers", action="store_true", help="no compiler in the image: C++ headers go too")
    parser.add_argument("--drop", nargs="*", default=[], help="further folders of site-packages")
    asked = parser.parse_args()
    (site,) = asked.venv.glob("lib/python3*/site-packages")
    if absent := [folder for folder in asked.drop if not (site / folder).is_dir()]:
        print(f"error: --drop names {absent[0]!r}, which is not in {site}", file=sys.stderr)
        return 1
    gone = list(victims(site, [*DEAD, *(HEADERS if asked.headers else ()), *asked.drop]))
    for library, name in missed(site, gone):
        print(f"error: {library.relative_to(site)} needs {name}, which slim.py removes", file=sys.stderr)
        return 1
    won = sum(map(size, gone))
    for path in gone:
        remove(path)
    # Unchecked: a layer may change the time stamps that a checked .pyc is compared with, and nothing edits
    # /opt/venv. A few packages ship templates in a syntax of their own, which do not compile and need not.
    mode = PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(site, quiet=2, workers=0, invalidation_mode=mode)
    print(f"images: {won / 1e6:.0f} MB removed, {size(site) / 1e6:.0f} MB stay", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

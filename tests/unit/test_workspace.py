"""What must stay true of the repository itself."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "crates" + ".io",
    "proxy." + "golang.org",
    "registry." + "npmjs.org",
    "deb." + "debian.org",
    "repo1." + "maven",
]


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        try:
            found.append((path.relative_to(ROOT), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_platform_never_becomes_a_package_that_shadows_the_standard_library():
    assert not (ROOT / "platform" / "__init__.py").exists()
    import platform

    assert platform.__file__ is not None
    assert not platform.__file__.startswith(str(ROOT))


@pytest.mark.parametrize("host", HOSTS)
def test_no_file_names_a_package_index_host(host):
    named = [str(path) for path, text in texts() if host in text and path.name != "Cargo.lock"]
    assert named == [], "Cargo.lock alone may: cargo writes its index there"


def test_source_files_stay_under_500_lines():
    long = [
        f"{path} {text.count(chr(10))}"
        for path, text in texts()
        if path.suffix in {".py", ".rs"} and text.count("\n") > 500
    ]
    assert long == []


def test_no_code_unpickles():
    loads = re.compile(r"^\s*(import pickle|from pickle)|torch\.load\(", re.MULTILINE)
    assert [str(path) for path, text in texts() if path.suffix == ".py" and loads.search(text)] == []


def test_the_lock_pins_every_declared_dependency_with_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = list(project["project"]["dependencies"]) + list(project["dependency-groups"]["dev"])
    for extra in project["project"]["optional-dependencies"].values():
        declared += extra
    names = {re.split(r"[\[<>=!; ]", line)[0].lower() for line in declared} - {
        "nanochat-platform",
        "nanochat-rustbpe",
    }
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))
    assert names - pinned == set()
    for block in re.split(r"\n(?=[a-z0-9])", lock.strip()):
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_only_settings_reads_the_environment():
    reads = re.compile(r"os\.(environ|getenv)")
    allowed = {Path("nanochat/settings.py")}
    package = [(path, text) for path, text in texts() if path.parts[0] in {"nanochat", "platform"}]
    assert [str(path) for path, text in package if reads.search(text) and path not in allowed] == []

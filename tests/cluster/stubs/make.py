"""Make stand-ins for the NVIDIA libraries, so that PyTorch's wheel from the index imports without them.

TEST ONLY. torch's libraries name the CUDA libraries (3 GB) in their headers and cannot be loaded without
them, on a machine without a GPU too. For each of these names this makes a shared object with the same soname
and exactly those symbols, with their versions, that torch takes from the real one. Every function returns 100
(`cudaErrorNoDevice`), so torch finds no device and computes on the CPU. They leave as a wheel that lays them
beside torch's own libraries: in `dist/` it enters an image like our wheels, and the image's bill of materials
names it. Needs the locked environment (the real libraries say what they define), `nm`, `readelf` and `gcc`.

    .venv/bin/python tests/cluster/stubs/make.py dist/
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

NAME = "nanochat_test_nvidia_stubs"
NO_DEVICE = 100  # cudaErrorNoDevice; any non-zero status is an error for the other libraries
TEXT = re.compile(r"Get(Last)?Error(String|Name)|GetErrorName|_get_error_string")
Symbols = dict[str, tuple[str, str]]  # name: (kind of nm, version or "")


def tool(name: str, *args: str | Path) -> str:
    """Return what a program of binutils or gcc prints."""
    command = [shutil.which(name) or name, *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(library: Path, *, defined: bool) -> Symbols:
    """Return the dynamic symbols that a library defines, or those that it wants from others."""
    which = "--defined-only" if defined else "--undefined-only"
    output = tool("nm", "-D", which, library)
    found: Symbols = {}
    for line in output.splitlines():
        *_, kind, symbol = line.split()
        name, _, version = symbol.partition("@")
        if kind not in "Aw":  # absolute symbols name versions; weak ones may stay undefined
            found[name] = (kind, version.lstrip("@"))
    return found


def needed(library: Path) -> set[str]:
    """Return the sonames that a library asks the loader for."""
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", tool("readelf", "-d", library)))


def source(parts: Symbols) -> str:
    """Return the C text that defines the symbols."""
    lines = []
    for name, (kind, _) in sorted(parts.items()):
        if kind in "BDRVb":
            lines.append(f"char {name}[4096];")
        elif TEXT.search(name):
            lines.append(f'const char *{name}(void) {{ return "no CUDA device: a stub library answers"; }}')
        else:
            lines.append(f"int {name}(void) {{ return {NO_DEVICE}; }}")
    return "\n".join(lines) + "\n"


def version_script(parts: Symbols) -> str:
    """Return the linker's version script; empty when the real library has no versions."""
    versions: dict[str, list[str]] = defaultdict(list)
    for name, (_, version) in sorted(parts.items()):
        versions[version].append(name)
    plain = versions.pop("", [])
    if not versions:
        return ""
    nodes = [f"{version} {{ global: {'; '.join(names)}; }};" for version, names in versions.items()]
    if plain:
        raise SystemExit(f"error: {plain[:3]} have no version beside symbols that have one")
    return "\n".join(nodes) + "\n"


def make(torch_lib: Path, real: dict[str, Path], target: Path) -> list[str]:
    """Write one stub for each NVIDIA library that torch needs; return their sonames."""
    libraries = sorted(torch_lib.glob("*.so"))
    own = {name for library in libraries for name in symbols(library, defined=True)}
    wanted: dict[str, Symbols] = defaultdict(dict)
    for library in libraries:
        offered = {soname: symbols(real[soname], defined=True) for soname in needed(library) & set(real)}
        for soname in offered:
            wanted[soname] |= {}
        for name in symbols(library, defined=False).keys() - own:
            for soname, defines in offered.items():
                if name in defines:
                    wanted[soname][name] = defines[name]
                    break
    for soname, parts in wanted.items():
        text, script = target / f"{soname}.c", target / f"{soname}.map"
        text.write_text(source(parts), encoding="utf-8")
        script.write_text(version_script(parts), encoding="utf-8")
        versions = [f"-Wl,--version-script={script}"] if script.stat().st_size else []
        flags = ["-shared", "-fPIC", "-O1", "-fno-builtin", "-w", "-nostdlib", f"-Wl,-soname,{soname}"]
        tool("gcc", *flags, *versions, "-o", target / soname, text)
        text.unlink()
        script.unlink()
    return sorted(wanted)


def pack(folder: Path, target: Path, torch: str) -> Path:
    """Write the wheel of what `make` left in a folder, the same bytes for the same libraries."""
    wheel = target / f"{NAME}-{torch}-py3-none-any.whl"
    info = f"{NAME}-{torch}.dist-info"
    files = {f"torch/lib/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {torch}\nSummary: TEST ONLY, no GPU works with it\n"
    ).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: ours\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def main() -> int:
    """Run the command line."""
    (target,) = sys.argv[1:]
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("error: torch is not installed; run this with .venv/bin/python")
    site = Path(spec.origin).parents[1]
    real = {path.name: path for path in site.glob("nvidia/*/lib/*.so.*")}
    with tempfile.TemporaryDirectory() as folder:
        made = make(site / "torch/lib", real, Path(folder))
        wheel = pack(Path(folder), Path(target), metadata.version("torch"))
    print(f"TEST ONLY: {wheel.name}: stubs stand in for {len(made)} NVIDIA libraries: {' '.join(made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

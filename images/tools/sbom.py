"""Write what an image is made of as CycloneDX JSON: every Python distribution and every Debian package.

Read from what is installed, not from what was asked for; distributions that others carry inside (Ray and
setuptools do) are listed with their place. The same installation gives the same bytes (SOURCE_DATE_EPOCH sets
the time stamp), so two builds can be compared. Knows nothing of how it was built.

    python /usr/share/nanochat/sbom.py /usr/share/nanochat/sbom.json --name nanochat-train --version 0.1.0
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG_FORMAT = "${Package}\t${Version}\t${Architecture}\t${source:Package}\n"
DPKG = ("dpkg-query", "--show", "--showformat", DPKG_FORMAT)


def component(kind: str, name: str, version: str, **qualifiers: str) -> dict[str, Any]:
    """Return a component with its package URL; the same in every field that names it."""
    purl = f"pkg:{kind}/{quote(name, safe='')}@{quote(version, safe='')}"
    if qualifiers:
        purl += "?" + "&".join(f"{key}={value}" for key, value in sorted(qualifiers.items()))
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def python_component(found: Distribution) -> dict[str, Any]:
    """Describe one distribution."""
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    described = component("pypi", name, found.version)
    if expression := found.metadata.json.get("license_expression"):
        described["licenses"] = [{"expression": expression}]
    return described


def python_components(site: Path) -> Iterator[dict[str, Any]]:
    """Yield the distributions of a site-packages folder and of the folders in it, each once."""
    listed: dict[str, dict[str, Any]] = {}
    for folder in sorted({path.parent for path in site.rglob("*.dist-info")}):
        for found in distributions(path=[str(folder)]):
            described = python_component(found)
            if folder != site:
                place = {"location": str(folder.relative_to(site))}
                described["evidence"] = {"occurrences": [place]}
            listed.setdefault(described["bom-ref"], described)
    yield from (listed[ref] for ref in sorted(listed))


def debian_component(line: str, distro: str) -> dict[str, Any]:
    """Describe one Debian package from a line of dpkg-query."""
    name, version, arch, source = line.split("\t")
    described = component("deb/debian", name, version, arch=arch, distro=distro)
    if source != name:
        described["properties"] = [{"name": "debian:source", "value": source}]
    return described


def release() -> dict[str, str]:
    """Return the fields of /etc/os-release."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines) if value}


def debian_packages() -> list[str]:
    """Return one line of dpkg-query for each installed package."""
    return subprocess.run(DPKG, check=True, capture_output=True, text=True).stdout.splitlines()


def components() -> Iterator[dict[str, Any]]:
    """Yield every component of this file system, sorted within its kind."""
    yield from python_components(Path(sysconfig.get_path("purelib")))
    system = release()
    distro = f"{system['ID']}-{system.get('VERSION_ID', 'unstable')}"
    yield from (debian_component(line, distro) for line in sorted(debian_packages()))


def document(name: str, version: str, when: datetime) -> dict[str, Any]:
    """Return the bill of materials."""
    parts = list(components())
    main = {"type": "container", "bom-ref": name, "name": name, "version": version}
    identity = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([main, parts], sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{identity}",
        "version": 1,
        "metadata": {"timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": main},
        "components": parts,
        "dependencies": [{"ref": name, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    asked = parser.parse_args()
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    when = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    bom = document(asked.name, asked.version, when)
    asked.target.write_text(json.dumps(bom, indent=1) + "\n", encoding="utf-8")
    print(f"images: {len(bom['components'])} components in {asked.target}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

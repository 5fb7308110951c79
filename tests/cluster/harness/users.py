"""The user's own cluster in place of ours: kind, k3d or a cloud's.

Knows nothing of how clusters are run; touches only namespaces that the tests create.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from .access import Access, Volume
from .oci import Image
from .operators import OPERATORS


class UsersCluster(Access):
    """The cluster of `NANOCHAT_TEST_KUBECONFIG`: touched only in namespaces that the tests create."""

    def __init__(self, kubeconfig: Path, storage_class: str | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nanochat-test-")
        super().__init__(kubeconfig, Path(self._folder.name))
        self._storage_class = storage_class

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def import_image(self, image: Image) -> None:
        """Skip the test unless the user says that the images are there."""
        self.need_images()

    def need_images(self) -> None:
        """Skip the test unless the user has loaded the archives and says so."""
        if os.environ.get("NANOCHAT_TEST_IMAGES") != "loaded":
            pytest.skip(
                "pods need the images: load `image-*/image.oci` of the cache into the cluster "
                "(kind load image-archive FILE) and set NANOCHAT_TEST_IMAGES=loaded"
            )

    def crds(self, *plurals: str) -> None:
        """Skip the test where one is absent: a user's CRDs are the user's to install."""
        present = self.crd_names()
        for plural in plurals:
            if not any(name.startswith(f"{plural}.") for name in present):
                pytest.skip(f"the cluster of NANOCHAT_TEST_KUBECONFIG has no CRD `{plural}`")

    def start_operator(self, *names: str) -> None:
        """Skip the test where the operators' kinds are absent."""
        self.crds(*(crd for name in names for crd in OPERATORS[name].crds))

    def scratch(self) -> Path:
        """Return a folder that goes when the tests end."""
        return Path(self._folder.name)

    def volume(
        self,
        namespace: str | None = None,
        claim: str | None = None,
        *,
        size: str = "2Gi",
        modes: Sequence[str] = ("ReadWriteMany",),
    ) -> Volume:
        """Make the claim, of the class in `NANOCHAT_TEST_STORAGE_CLASS` or the cluster's default."""
        chosen = self._storage_class
        if namespace and claim:
            spec = {"storageClassName": chosen} if chosen else {}
            self._claim(namespace, claim, size, modes, spec)
        return Volume(claim or "", chosen or "", None)

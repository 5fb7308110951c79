"""A cluster as the tests use it, ours or the user's: kubectl, helm, namespaces, volumes, CRDs.

Knows nothing of how the cluster is run.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import tools
from .certificates import write_kubeconfig
from .host import ROOT, HarnessError, poll, run
from .oci import Image

SPECS = ROOT.parent / "shared" / "specs" / "crds"
MANAGER = "nanochat-test"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

Document = Mapping[str, Any]
Source = Path | str | Document | Sequence[Document]


class KubectlError(HarnessError):
    """kubectl ended with an error; `stderr` is what it said."""

    def __init__(self, command: Sequence[str], stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(command)}: {stderr.strip()}")
        self.stderr = stderr


@dataclass(frozen=True)
class Volume:
    """A persistent volume for a test; `path` is the host's folder, None on a user's cluster."""

    name: str
    storage_class: str
    path: Path | None


def documents(source: Source) -> str:
    """Return YAML text (or a stream of JSON documents) of a file, a folder, text, one object or several."""
    if isinstance(source, str):
        return source
    if isinstance(source, Path):
        files = sorted(source.glob("*.yaml")) if source.is_dir() else [source]
        return "\n---\n".join(file.read_text() for file in files)
    several = [source] if isinstance(source, Mapping) else source
    return "\n---\n".join(json.dumps(dict(document)) for document in several)


class Access(ABC):
    """What every cluster can do. Subclasses say where it is and what else it can."""

    own = False
    """Whether this harness runs the cluster: only then may components be killed and images imported."""

    def __init__(self, kubeconfig: Path, home: Path) -> None:
        self.kubeconfig = kubeconfig
        self.env = tools.tool_env(kubeconfig, home)
        """The environment for kubectl, helm and our own CLI: the user's settings play no part."""

    def need_own(self, why: str) -> None:
        """Skip the test unless this is the test cluster of the repository."""
        if not self.own:
            pytest.skip(f"needs the test cluster of this repository: {why}")

    def kubectl(
        self, *args: str, stdin: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator.

        Raises:
            KubectlError: it failed, with `check`.
        """
        command = [str(tools.kubectl()), *args]
        done = run(command, stdin=stdin, env=self.env, timeout=timeout, check=False)
        if check and done.returncode:
            raise KubectlError(args, done.stderr)
        return done

    def helm(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run helm as administrator; raises `HarnessError` when it fails, with `check`."""
        return run([str(tools.helm()), *args], env=self.env, timeout=timeout, check=check)

    def get(self, *args: str) -> dict[str, Any]:
        """Return an object or a list, as `kubectl get ARGS -o json`."""
        answer: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json").stdout)
        return answer

    def items(self, *args: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        found: list[dict[str, Any]] = self.get(*args)["items"]
        return found

    def apply(
        self, source: Source, *, namespace: str | None = None, server_dry_run: bool = False
    ) -> list[str]:
        """Apply on the server's side, strictly: an unknown field is an error. Returns `kind/name` of each."""
        args = ["apply", "--server-side", "--force-conflicts", f"--field-manager={MANAGER}"]
        return self._send([*args, "--validate=strict"], source, namespace, server_dry_run)

    def create(
        self, source: Source, *, namespace: str | None = None, server_dry_run: bool = False
    ) -> list[str]:
        """Create objects that must not exist yet, strictly. Returns `kind/name` of each."""
        return self._send(["create", "--validate=strict"], source, namespace, server_dry_run)

    def _send(self, args: list[str], source: Source, namespace: str | None, dry: bool) -> list[str]:
        scope = ["--namespace", namespace] if namespace else []
        run_dry = ["--dry-run=server"] if dry else []
        done = self.kubectl(*args, *scope, *run_dry, "-o", "name", "-f", "-", stdin=documents(source))
        return done.stdout.split()

    def wait(self, *args: str, for_: str, timeout: float = 60) -> None:
        """Wait for a condition as `kubectl wait` does; raises `KubectlError` when it does not come."""
        limit = f"--timeout={timeout:.0f}s"
        self.kubectl("wait", *args, f"--for={for_}", limit, timeout=timeout + 10)

    @contextlib.contextmanager
    def namespace(self, prefix: str = "t", labels: Mapping[str, str] = RESTRICTED) -> Iterator[str]:
        """Make a fresh namespace, Pod Security `restricted` unless told otherwise; delete it after."""
        name = f"nct-{prefix}-{secrets.token_hex(3)}"
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}
        # Raw: kubectl need not learn the API's types first, half of its time.
        self.kubectl("create", "--raw", "/api/v1/namespaces", "-f", "-", stdin=json.dumps(made))
        try:
            # Pods are refused until the controller has made this account.
            account = ("get", "serviceaccount", "default", "-n", name)
            poll(
                f"the default account of {name}",
                lambda: self.kubectl(*account, check=False).returncode == 0,
                timeout=20,
            )
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false", check=False)

    def crd_names(self) -> list[str]:
        """Return the full name of every CRD the API has."""
        # As a table: any other output reads the CRDs themselves, which are megabytes.
        table = self.kubectl("get", "crd", "--no-headers").stdout
        return [line.split()[0] for line in table.splitlines()]

    def serves(self, *names: str) -> bool:
        """Return whether the API serves these types, each as `plural.group`.

        Asked of discovery, which shows the CRDs that are established, without their megabytes.
        """
        return set(names) <= set(self.kubectl("api-resources", "-o", "name").stdout.split())

    @abstractmethod
    def crds(self, *plurals: str) -> None:
        """See to it that the API serves these kinds, or skip the test."""

    @abstractmethod
    def start_operator(self, *names: str) -> None:
        """See to it that operators of `operators.OPERATORS` run, or skip the test."""

    def account_kubeconfig(self, namespace: str, account: str) -> Path:
        """Write a kubeconfig with a fresh token of a service account; its rights are the account's alone."""
        token = self.kubectl(
            "create", "token", account, "--namespace", namespace, "--duration=24h"
        ).stdout.strip()
        raw = json.loads(self.kubectl("config", "view", "--raw", "--flatten", "-o", "json").stdout)
        used = next(entry for entry in raw["contexts"] if entry["name"] == raw["current-context"])
        cluster = next(
            entry["cluster"] for entry in raw["clusters"] if entry["name"] == used["context"]["cluster"]
        )
        path = self.scratch() / f"{namespace}-{account}.kubeconfig"
        return write_kubeconfig(path, cluster, {"token": token})

    @abstractmethod
    def scratch(self) -> Path:
        """Return a folder for files of this cluster's tests."""

    @abstractmethod
    def volume(
        self,
        namespace: str | None = None,
        claim: str | None = None,
        *,
        size: str = "2Gi",
        modes: Sequence[str] = ("ReadWriteMany",),
    ) -> Volume:
        """Provide a volume; with `claim` also the claim of that name in `namespace`, bound to it."""

    def import_image(self, image: Image) -> None:
        """Load an image into the node, unless it is there already."""
        self.need_own("loads images into the node")

    def _claim(self, namespace: str, claim: str, size: str, modes: Sequence[str], spec: Document) -> None:
        resources = {"requests": {"storage": size}}
        self.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": namespace},
                "spec": {"accessModes": list(modes), "resources": resources, **spec},
            }
        )


def load(text: str) -> list[dict[str, Any]]:
    """Parse a stream of YAML documents, without the empty ones."""
    # libyaml's loader: the pure Python one needs five seconds for Ray's CRDs.
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]

"""Run our command line against a cluster, as a user does, and look at what it left."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.harness.access import Access
from tests.cluster.harness.host import ROOT, mortal

SPEC = {
    "preset": "smoke",
    "run": "kt",
    "image": "localhost/nanochat/train:test",
    "hardware": "cpu",
    "kind": "job",
    "stages": ["data"],
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "nanochat-data"},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "",
    },
}


@dataclass
class User:
    """A user with a kubeconfig, a namespace and a folder."""

    access: Access
    namespace: str
    folder: Path
    kubeconfig: Path | None = None
    extra_env: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def spec(self, name: str = "run.yaml", **changes: Any) -> Path:
        """Write a spec; returns its file."""
        values = {**SPEC, "namespace": self.namespace, **changes}
        path = self.folder / name
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return path

    def claim(self, *modes: str) -> None:
        """Make the run's volume claim; nothing binds it, and without nodes nothing needs to."""
        spec = {**CLAIM["spec"], "accessModes": list(modes) or ["ReadWriteMany"]}  # type: ignore[dict-item]
        self.access.create({**CLAIM, "spec": spec}, namespace=self.namespace)

    def __post_init__(self) -> None:
        """Write a kubeconfig whose context is in the user's namespace."""
        values = yaml.safe_load(self.access.kubeconfig.read_text())
        for entry in values["contexts"]:
            entry["context"]["namespace"] = self.namespace
        self.own_context = self.folder / f"{self.namespace}.kubeconfig"
        self.own_context.write_text(yaml.safe_dump(values))
        self.own_context.chmod(0o600)

    @property
    def env(self) -> dict[str, str]:
        """The command line's environment."""
        own = {**self.access.env, "KUBECONFIG": str(self.kubeconfig or self.own_context)}
        paths = f"{ROOT}:{ROOT / 'platform'}"
        return {**own, "PYTHONPATH": paths, "NANOCHAT_HOME": str(self.folder / "home"), **self.extra_env}

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start the command line."""
        command = [*mortal(), sys.executable, "-m", "nanochat_platform.cli", *map(str, arguments)]
        process = subprocess.Popen(
            command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        """End what still runs."""
        for process in self.started:
            with process:
                process.kill()

    def run(self, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{arguments} did not end:\n{out}\n{err}") from None
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def ok(self, *arguments: str | Path, timeout: float = 60) -> str:
        """Run the command line, which must succeed; returns its output."""
        ran = self.run(*arguments, timeout=timeout)
        assert ran.returncode == 0, f"{arguments}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def jobs(self, plural: str = "jobs.batch") -> dict[str, dict[str, Any]]:
        """Return the job objects in the namespace by name."""
        return {item["metadata"]["name"]: item for item in self.access.items(plural, "-n", self.namespace)}

    def left(self) -> list[str]:
        """Return the names of all jobs, pods, services and leases of the platform in the namespace."""
        ours = ("-n", self.namespace, "-l", "app.kubernetes.io/managed-by=nanochat", "-o", "name")
        return self.access.kubectl("get", "jobs.batch,pods,services,leases", *ours).stdout.split()

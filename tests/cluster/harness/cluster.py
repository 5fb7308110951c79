"""The test cluster of this repository: start by tiers, stop, kill and restart components, measure."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pytest

from . import build, images, operators
from .access import SPECS, Access, Volume
from .certificates import Authority
from .components import CONTAINERD, Component, Components, answers, dns_access
from .host import HarnessError, cache_root, need_packages, need_root, poll, rung, say
from .network import claim_slot
from .oci import Image
from .operators import CERTIFICATES, OPERATORS, Operator
from .sandbox import Process, Sandbox

STORAGE_CLASS = "nanochat-local"
Tier = Literal["control-plane", "node"]

# An operator's private /tmp, where all of them look for their certificates. The cache may lie in
# /tmp too, so it is mounted back.
PRIVATE_TMP = """
set -e
mkdir -p /run/cache /run/checkout
mount --bind "$CACHE" /run/cache
mount -t tmpfs tmpfs /tmp
mkdir -p "$CACHE"
mount --bind /run/cache "$CACHE"
exec "$@"
"""


class Cluster(Access):
    """A real Kubernetes in namespaces of its own on this machine.

    `control-plane` is etcd, API server, controllers and scheduler; `node` adds containerd, kubelet,
    kube-proxy and DNS. Operators come on demand. Everything lies in one folder of the cache and
    ends with this process.
    """

    own = True

    def __init__(self) -> None:
        need_root()
        need_packages()
        self._programs = build.binaries(build.KUBE)
        self.slot = claim_slot()
        self.sandbox = Sandbox(self.slot)
        self._pki = self.sandbox.state / "pki"
        super().__init__(self._pki / "admin.kubeconfig", self.sandbox.state)
        self._components: dict[str, Component] = {}
        self.tiers: list[Tier] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, tier: Tier = "node") -> None:
        """Start a tier, and what it stands on; a tier that runs already stays as it is.

        Raises:
            HarnessError: a component ended; the message holds the end of its log.
            TimeoutError: one did not become ready.
        """
        if not self.tiers:
            with rung("control plane"):
                self._start_control_plane()
        if tier == "node" and "node" not in self.tiers:
            with rung("node"):
                self._start_node()

    def _start_control_plane(self) -> None:
        self.sandbox.start()
        authority = Authority(self._pki)
        self._description = Components(self.slot, self._programs, authority)
        authority.kubeconfig("admin", self._description.server, "admin", "system:masters")
        etcd, apiserver, *others = self._description.control_plane()
        for component in (etcd, apiserver):
            self._spawn(component)
        self._await(etcd)
        self._await(apiserver)
        for component in others:
            self._spawn(component)
        for component in others:
            self._await(component)
        self.apply([_storage_class(), *dns_access()])
        self.tiers.append("control-plane")

    def _start_node(self) -> None:
        containerd, *others = self._description.node()
        self._spawn(containerd)
        self._await(containerd)
        if stale := self.ctr("containers", "list", "--quiet").split():
            # Left by a cluster that was killed; containerd must forget them too.
            self.ctr("containers", "delete", *stale)
            self.restart_component("containerd")
        self.import_image(images.pause_image())
        started = time.monotonic()
        for component in others:
            self._spawn(component)
        for component in others:
            self._await(component)
        self.wait("node/node1", for_="condition=Ready")
        self.node_ready_s = time.monotonic() - started
        self.tiers.append("node")

    def _spawn(self, component: Component) -> None:
        self._components[component.name] = component
        self.sandbox.spawn(component.name, component.command, component.env)

    def _await(self, component: Component, timeout: float = 60) -> None:
        process = self.sandbox.processes[component.name]

        def ready() -> bool:
            if not process.alive():
                code = process.nsenter.returncode
                raise HarnessError(f"{component.name} ended with {code}:\n{self.log(component.name)[-3000:]}")
            return answers(component.ready) if component.ready else self._ctr("version").returncode == 0

        poll(f"{component.name} to be ready", ready, timeout, interval=0.03)

    def stop(self) -> None:
        """Kill everything and return when nothing runs, is mounted or linked any more."""
        self.sandbox.stop()
        self.slot.lock.close()
        self.tiers.clear()

    # Components

    def pid(self, name: str) -> int:
        """Return the process id of a component, as the host counts."""
        if name not in self.sandbox.processes:
            raise HarnessError(
                f"no component `{name}`; there are {', '.join(sorted(self.sandbox.processes))}"
            )
        return self.sandbox.processes[name].pid

    def kill_component(self, name: str, sent: signal.Signals = signal.SIGKILL) -> None:
        """End a component by a signal and wait until it is gone."""
        self.pid(name)
        self.sandbox.processes[name].kill(sent)

    def start_component(self, name: str) -> None:
        """Start a component that was killed, with the same arguments, and wait until it is ready."""
        self.pid(name)
        if self.sandbox.processes[name].alive():
            return
        component = self._components[name]
        self._spawn(component)
        if name in OPERATORS:
            self._hand_over_certificates(OPERATORS[name], self.sandbox.processes[name])
        self._await(component)

    def restart_component(self, name: str) -> None:
        """Kill a component and start it again."""
        self.kill_component(name)
        self.start_component(name)

    def log(self, name: str) -> str:
        """Return what a component has printed."""
        return (self.sandbox.logs / f"{name}.log").read_text(errors="replace")

    def pss(self) -> dict[str, int]:
        """Return bytes of memory by component and in `total`; pages that are shared count by share."""
        owner = {process.pid: name for name, process in self.sandbox.processes.items()}
        used: dict[str, int] = {}
        for pid in self.sandbox.pids():
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
                kind = "shims" if comm.startswith("containerd-shim") else "pods"
                name = owner.get(pid, "init" if pid == self.sandbox.init else kind)
                (kilobytes,) = (line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))
                used[name] = used.get(name, 0) + int(kilobytes) * 1024
        return {**dict(sorted(used.items())), "total": sum(used.values())}

    # Operators

    def crds(self, *plurals: str) -> None:
        """Install CRDs from the specifications beside the checkout; skips the test where there are none."""
        self._install_crds(self._missing_crds(*plurals))

    def _missing_crds(self, *plurals: str) -> list[str]:
        if not SPECS.is_dir():
            pytest.skip("no ../shared/specs")
        present = self.crd_names()
        missing = [name for name in plurals if not any(crd.startswith(f"{name}.") for crd in present)]
        return [next(SPECS.glob(f"*_{plural}.v*.yaml")).read_text() for plural in missing]

    def _install_crds(self, crds: Sequence[str]) -> None:
        if not crds:
            return
        names = [name.partition("/")[2] for name in self.apply("\n---\n".join(crds))]
        poll(f"{', '.join(names)} to be served", lambda: self.serves(*names), timeout=30)

    def start_operator(self, *names: str) -> None:
        """Run operators of `OPERATORS` and those they need, their CRDs, accounts and webhooks installed."""
        wanted = {one.name: one for name in names for one in operators.with_needs(name)}
        starting = [one for name, one in wanted.items() if name not in self.sandbox.processes]
        if not starting:
            return
        with rung(f"operators {', '.join(one.name for one in starting)}"):
            own = [crd for one in starting if (crd := operators.own_crd(one))]
            self._install_crds([*self._missing_crds(*(crd for one in starting for crd in one.crds)), *own])
            self.apply([value for one in starting for value in operators.objects(one, self.slot.node_ip)])
            components = [self._operator(one) for one in starting]
            for component in components:
                self._spawn(component)
            for one, component in zip(starting, components, strict=True):
                self._hand_over_certificates(one, self.sandbox.processes[component.name])
            for component in components:
                self._await(component)

    def _operator(self, operator: Operator) -> Component:
        kubeconfig = self.account_kubeconfig(operator.namespace, operator.account)
        settings = self.sandbox.state / "settings"
        command = operators.command(operator, kubeconfig, self.slot.node_ip, settings)
        private = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", PRIVATE_TMP, "sh")
        ready = f"http://{self.slot.node_ip}:{operator.health_port}/readyz"
        env = {"CACHE": str(cache_root()), **operator.env}
        return Component(operator.name, (*private, *map(str, command)), ready, env)

    def _hand_over_certificates(self, operator: Operator, process: Process) -> None:
        """Copy the Secret that the operator fills to where a kubelet would have mounted it."""
        if operator.webhook is None:
            return
        secret = operator.webhook.secret
        read = ("get", "secret", secret, "-n", operator.namespace, "-o", "json")

        def filled() -> dict[str, str] | None:
            if not process.alive():
                raise HarnessError(f"{operator.name} ended:\n{self.log(operator.name)[-3000:]}")
            data: dict[str, str] | None = json.loads(self.kubectl(*read).stdout).get("data")
            return data

        data = poll(f"{operator.name} to fill the Secret {secret}", filled, timeout=60)
        folder = Path(f"/proc/{process.pid}/root") / CERTIFICATES
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in data.items():
            (folder / name).write_bytes(base64.b64decode(value))

    # Node

    def _ctr(self, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/ctr", "--address", CONTAINERD, "--namespace", "k8s.io", *args]
        return self.sandbox.run(command, timeout=timeout, check=False)

    def ctr(self, *args: str, timeout: float = 300) -> str:
        """Run containerd's own client in the kubelet's namespace; raises `HarnessError` when it fails."""
        done = self._ctr(*args, timeout=timeout)
        if done.returncode:
            raise HarnessError(f"ctr {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def import_image(self, image: Image) -> None:
        """Load an image into the node; nothing is done where exactly this one is there."""
        for line in self.ctr("images", "list").splitlines()[1:]:
            name, _, digest, *_ = line.split()
            if (name, digest) == (image.tag, image.digest):
                return
        started = time.monotonic()
        self.ctr("images", "import", str(image.archive), timeout=600)
        say(f"imported {image.tag} in {time.monotonic() - started:.1f} s")

    def volume(
        self,
        namespace: str | None = None,
        claim: str | None = None,
        *,
        size: str = "2Gi",
        modes: Sequence[str] = ("ReadWriteMany",),
    ) -> Volume:
        """Make a `local` volume in a folder of its own; with `claim` also the claim, bound to it alone."""
        folder = self.sandbox.state / "volumes"
        folder.mkdir(exist_ok=True)
        name = f"volume-{len(list(folder.iterdir()))}"
        path = folder / name
        path.mkdir()
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}
        spec: dict[str, Any] = {
            "capacity": {"storage": size},
            "accessModes": list(modes),
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            # `local`, unlike `hostPath`, honours fsGroup.
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        }
        if namespace and claim:
            spec["claimRef"] = {"namespace": namespace, "name": claim}
        self.create(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        )
        if namespace and claim:
            wanted = {"storageClassName": STORAGE_CLASS, "volumeName": name}
            self._claim(namespace, claim, size, modes, wanted)
        return Volume(name, STORAGE_CLASS, path)

    @property
    def host_ip(self) -> str:
        """The address by which pods reach a server of the test process."""
        return self.slot.host_ip

    def scratch(self) -> Path:
        """Return a folder that goes with the cluster."""
        folder = self.sandbox.state / "scratch"
        folder.mkdir(exist_ok=True)
        return folder


def _storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }

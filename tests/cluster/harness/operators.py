"""The real operators: their released manifests, with a process in place of the Deployment.

Accounts, roles, webhooks and Services are those of each release; only the Service's pods are
replaced by the process's address. Knows nothing of how processes are started.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import build, tools
from .access import load
from .host import cached, run
from .images import BASE_TAG

CERTIFICATES = "tmp/k8s-webhook-server/serving-certs"
"""Where all of them look for their webhook's certificate, below their root."""

# The process stands in for the Deployment; CRDs come from the specifications beside the checkout.
LEFT_OUT = ("CustomResourceDefinition", "Deployment", "ServiceMonitor", "PodDisruptionBudget")

# The operator's own template has no securityContext, so a `restricted` namespace refuses every worker.
INIT_CONTAINER = """
- name: init-pytorch
  image: {{.InitContainerImage}}
  imagePullPolicy: IfNotPresent
  resources:
    requests: {cpu: 10m, memory: 20Mi}
    limits: {cpu: 200m, memory: 100Mi}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  command:
  - python3
  - -c
  - |
    import socket, sys, time
    for _ in range({{.MaxTries}}):
        try:
            socket.getaddrinfo("{{.MasterAddr}}", None)
            sys.exit(0)
        except socket.gaierror:
            time.sleep(1)
    sys.exit("{{.MasterAddr}} does not resolve")
"""


@dataclass(frozen=True)
class Webhook:
    """An operator's admission server: the Service that leads to it and the Secret of its certificate."""

    service: str
    port: int
    secret: str


@dataclass(frozen=True)
class Operator:
    """A released operator: where it comes from, what it runs as, what it needs."""

    name: str
    program: build.Program
    module: str
    binary: str
    namespace: str
    account: str
    manifests: str
    """The folder of the module that holds its kustomize files."""
    resources: tuple[str, ...]
    """What of it makes up an installation, relative to `manifests`."""
    crds: tuple[str, ...]
    health_port: int
    webhook: Webhook | None = None
    own_crd: str | None = None
    """A CRD in the module, where the specifications beside the checkout have none."""
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


TRAINING_OPERATOR = Operator(
    name="training-operator",
    program=build.KUBE,
    module="github.com/kubeflow/training-operator",
    binary="training-operator.v1",
    namespace="kubeflow",
    account="training-operator",
    manifests="manifests",
    resources=("overlays/standalone",),
    crds=("pytorchjobs",),
    health_port=8081,
    webhook=Webhook("training-operator", 9443, "training-operator-webhook-cert"),
    env={"MY_POD_NAMESPACE": "kubeflow"},
)
KUBERAY = Operator(
    name="kuberay",
    program=build.KUBERAY,
    module="github.com/ray-project/kuberay/ray-operator",
    binary="ray-operator",
    namespace="ray-system",
    account="kuberay-operator",
    manifests="config",
    resources=("rbac",),
    crds=("rayclusters", "rayjobs", "rayservices"),
    health_port=8082,
)
JOBSET = Operator(
    name="jobset",
    program=build.KUBE,
    module="sigs.k8s.io/jobset",
    binary="jobset",
    namespace="jobset-system",
    account="jobset-controller-manager",
    manifests="config",
    resources=("default",),
    crds=(),
    health_port=8083,
    webhook=Webhook("jobset-webhook-service", 9444, "jobset-webhook-server-cert"),
    own_crd="config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
)
TRAINER = Operator(
    name="trainer",
    program=build.KUBE,
    module="github.com/kubeflow/trainer/v2",
    binary="trainer-controller-manager",
    namespace="kubeflow-system",
    account="kubeflow-trainer-controller-manager",
    manifests="manifests",
    resources=("base/manager", "base/rbac", "base/webhook"),
    crds=("trainjobs", "trainingruntimes", "clustertrainingruntimes"),
    health_port=8084,
    webhook=Webhook("kubeflow-trainer-controller-manager", 9445, "kubeflow-trainer-webhook-cert"),
    needs=("jobset",),
)
OPERATORS = {operator.name: operator for operator in (TRAINING_OPERATOR, KUBERAY, JOBSET, TRAINER)}


def with_needs(name: str) -> list[Operator]:
    """Return an operator after those it needs."""
    return [*(needed for other in OPERATORS[name].needs for needed in with_needs(other)), OPERATORS[name]]


def command(operator: Operator, kubeconfig: Path, node_ip: str, settings: Path) -> list[str | Path]:
    """Return the operator's command line; writes what it reads into `settings`."""
    binary = build.binaries(operator.program) / operator.binary
    base: list[str | Path] = [binary, f"--kubeconfig={kubeconfig}"]
    health = f"--health-probe-bind-address={node_ip}:{operator.health_port}"
    if operator is TRAINING_OPERATOR:
        template = settings / "init-container.yaml"
        template.write_text(INIT_CONTAINER)
        init = [
            f"--pytorch-init-container-image={BASE_TAG}",
            f"--pytorch-init-container-template-file={template}",
        ]
        return [*base, health, "--enable-scheme=pytorchjob", "--metrics-bind-address=0", *init]
    if operator is KUBERAY:
        # Through the API server: the dashboard of a head pod has no name out here.
        proxy = ["--use-kubernetes-proxy=true", "--enable-leader-election=false", "--metrics-addr=0"]
        return [*base, health, *proxy]
    assert operator.webhook is not None
    group = {JOBSET.name: "config.jobset.x-k8s.io", TRAINER.name: "config.trainer.kubeflow.org"}
    secret = {"webhookServiceName": operator.webhook.service, "webhookSecretName": operator.webhook.secret}
    managed = "internalCertManagement" if operator is JOBSET else "certManagement"
    config = {
        "apiVersion": f"{group[operator.name]}/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "health": {"healthProbeBindAddress": f"{node_ip}:{operator.health_port}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": operator.webhook.port},
        managed: {"enable": True, **secret},
    }
    path = settings / f"{operator.name}.json"
    path.write_text(json.dumps(config))
    return [*base, f"--config={path}"]


def _release(operator: Operator) -> Path:
    """Return the folder with the manifests of the operator's release, rendered once into the cache."""
    version = build.module_version(operator.program, operator.module)
    wanted: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": operator.namespace,
        "resources": [f"release/{name}" for name in operator.resources],
    }
    key = hashlib.sha256(json.dumps([version, operator.own_crd, wanted]).encode()).hexdigest()[:12]

    def make(folder: Path) -> None:
        source = build.module_folder(operator.program, operator.module)
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(
                source / operator.manifests, Path(scratch) / "release", copy_function=shutil.copyfile
            )
            (Path(scratch) / "kustomization.yaml").write_text(json.dumps(wanted))
            text = run([tools.kubectl(), "kustomize", scratch]).stdout
        (folder / "objects.yaml").write_text(text)
        if operator.own_crd:
            shutil.copyfile(source / operator.own_crd, folder / "crd.yaml")

    return cached(f"manifests-{operator.name}", key, make)


def own_crd(operator: Operator) -> str:
    """Return the CRD that comes from the operator's module; empty where it comes from elsewhere."""
    return (_release(operator) / "crd.yaml").read_text() if operator.own_crd else ""


def objects(operator: Operator, node_ip: str) -> list[dict[str, Any]]:
    """Return what an installation creates, with the Service led to the process at `node_ip`."""
    namespace: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": operator.namespace},
    }
    kept = [
        document
        for document in load((_release(operator) / "objects.yaml").read_text())
        if document["kind"] not in (*LEFT_OUT, "Namespace", "Service", "Secret")
    ]
    if operator.webhook is None:
        return [namespace, *kept]
    hook = operator.webhook
    metadata = {"name": hook.service, "namespace": operator.namespace}
    port = {"name": "webhook", "protocol": "TCP"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"ports": [{**port, "port": 443, "targetPort": hook.port}]},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": hook.service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [node_ip]}],
        "ports": [{**port, "port": hook.port}],
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {**metadata, "name": hook.secret}}
    return [namespace, *kept, service, endpoints, secret]

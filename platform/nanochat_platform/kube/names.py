"""Names, labels and API coordinates of what this platform puts into a cluster.

Pure and standard library alone: the lease guard imports it in every first pod.
Knows nothing of specs or of what a pod runs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

GROUP = "nanochat.dev"
RUN, STAGE = f"{GROUP}/run", f"{GROUP}/stage"
ATTEMPT, SPEC_HASH = f"{GROUP}/attempt", f"{GROUP}/spec-hash"
CAUSE = f"{GROUP}/cause"
"""Annotation of a job object: why the attempt failed, in one line."""
GUARD = f"{GROUP}/guard"
"""Label of pods that may talk to the API server: they watch a lease."""
QUEUE = "kueue.x-k8s.io/queue-name"
APP = "nanochat"
UID = 10001
"""User, group and file-system group of every container."""
HOME = "/data"
"""Where the volume is mounted: NANOCHAT_HOME."""
USER_HOME = "/home/nanochat"
CLAIM = "nanochat-data"
NAMESPACE, PIPELINES = "nanochat", "kubeflow"
"""Where the manifests put things: their base, and its overlay for Kubeflow Pipelines."""
TRAIN_ACCOUNT, SUBMIT_ACCOUNT, SERVE_ACCOUNT = "nanochat-train", "nanochat-submit", "nanochat-serve"
FIELD_MANAGER = "nanochat"

JOB_NAME_MAX = 46
"""JobSet wants `<job>-node-0-<index>-<5 letters>` in 63 characters; the training operator needs less."""
_HASH_LETTERS = 8

KindName = Literal["pytorchjob", "trainjob", "job"]
PhaseName = Literal["queued", "pending", "running", "succeeded", "failed"]


def job_name(run: str, stage: str, attempt: int) -> str:
    """Return the name of an attempt's job object: a DNS-1035 label of at most `JOB_NAME_MAX` characters."""
    name = re.sub(r"[_.]", "-", f"{run}-{stage}-{attempt}")
    if not name[0].isalpha():
        name = f"nc-{name}"
    if len(name) <= JOB_NAME_MAX:
        return name
    whole = hashlib.sha256(f"{run}/{stage}/{attempt}".encode()).hexdigest()[:_HASH_LETTERS]
    return f"{name[: JOB_NAME_MAX - _HASH_LETTERS - 1].rstrip('-')}-{whole}"


def lease_name(run: str, stage: str) -> str:
    """Return the name of the Lease that keeps a stage's jobs alive: the job's without the attempt."""
    return job_name(run, stage, 0).removesuffix("-0")


def labels(
    *,
    run: str,
    stage: str,
    attempt: int | None = None,
    spec_hash: str | None = None,
    component: str = "train",
) -> dict[str, str]:
    """Return the labels of every object and pod of an attempt."""
    found = {**app_labels(component), RUN: run, STAGE: stage}
    if attempt is not None:
        found[ATTEMPT] = str(attempt)
    if spec_hash is not None:
        found[SPEC_HASH] = spec_hash
    return found


def app_labels(component: str) -> dict[str, str]:
    """Return the labels of every object of this platform."""
    return {
        "app.kubernetes.io/name": APP,
        "app.kubernetes.io/managed-by": APP,
        "app.kubernetes.io/component": component,
    }


def selector(run: str | None = None, stage: str | None = None, attempt: int | None = None) -> str:
    """Return the label selector of all objects and pods of a run, of one of its stages, or of one attempt."""
    found = {"app.kubernetes.io/managed-by": APP}
    found |= {} if run is None else {RUN: run}
    found |= {} if stage is None else {STAGE: stage}
    found |= {} if attempt is None else {ATTEMPT: str(attempt)}
    return ",".join(f"{key}={value}" for key, value in found.items())


def spec_hash(decisive: Mapping[str, Any]) -> str:
    """Return the first 16 hex digits of the hash over all that decides a job."""
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Phase:
    """Where a job object stands, in one vocabulary for all kinds."""

    name: PhaseName
    reason: str = ""
    message: str = ""

    @property
    def finished(self) -> bool:
        """True when the controller will not change the job any more."""
        return self.name in ("succeeded", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of job object: where it lives, how its pods are found, how its status reads."""

    name: KindName
    kind: str
    group: str
    version: str
    plural: str
    container: str
    """The container that the controller gives the topology to."""
    pods: str
    """Label selector of all pods of a job `{name}`."""
    first_pod: str
    """Label selector of the pod of node 0 of a job `{name}`."""
    succeeded: str
    """Condition type of success."""

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}"

    @property
    def resource(self) -> str:
        """`plural.group`, as `kubectl get` takes it."""
        return f"{self.plural}.{self.group}"

    def path(self, namespace: str, name: str | None = None) -> str:
        """Return the API path of the collection, or of one object."""
        collection = f"/apis/{self.api_version}/namespaces/{namespace}/{self.plural}"
        return collection if name is None else f"{collection}/{name}"

    def pod_selector(self, name: str) -> str:
        """Return the label selector of all pods of a job."""
        return self.pods.format(name=name)

    def first_pod_selector(self, name: str) -> str:
        """Return the label selector of the pod whose last words count: node 0."""
        return self.first_pod.format(name=name)

    def phase(self, job: Mapping[str, Any]) -> Phase:
        """Return where a job object stands."""
        status = job.get("status") or {}
        holds = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
        for kind, name in ((self.succeeded, "succeeded"), ("Failed", "failed")):
            if found := holds.get(kind):
                return _phase(name, found)
        if found := holds.get("Suspended"):
            return _phase("queued", found)
        return _phase("running" if self._active(status, holds) else "pending", holds.get("Created") or {})

    def _active(self, status: Mapping[str, Any], holds: Mapping[str, Any]) -> bool:
        if self.name == "pytorchjob":
            return "Running" in holds
        if self.name == "job":
            return bool(status.get("ready"))
        return any(part.get("ready") for part in status.get("jobsStatus") or ())


def _phase(name: Any, condition: Mapping[str, Any]) -> Phase:
    return Phase(name, condition.get("reason", ""), condition.get("message", ""))


_INDEX_0 = "batch.kubernetes.io/job-completion-index=0"

KINDS: dict[str, Kind] = {
    "pytorchjob": Kind(
        name="pytorchjob",
        kind="PyTorchJob",
        group="kubeflow.org",
        version="v1",
        plural="pytorchjobs",
        container="pytorch",
        pods="training.kubeflow.org/job-name={name}",
        first_pod="training.kubeflow.org/job-name={name},training.kubeflow.org/replica-type=master",
        succeeded="Succeeded",
    ),
    "trainjob": Kind(
        name="trainjob",
        kind="TrainJob",
        group="trainer.kubeflow.org",
        version="v1alpha1",
        plural="trainjobs",
        container="node",
        pods="jobset.sigs.k8s.io/jobset-name={name}",
        first_pod="jobset.sigs.k8s.io/jobset-name={name}," + _INDEX_0,
        succeeded="Complete",
    ),
    "job": Kind(
        name="job",
        kind="Job",
        group="batch",
        version="v1",
        plural="jobs",
        container="train",
        pods="batch.kubernetes.io/job-name={name}",
        first_pod="batch.kubernetes.io/job-name={name}," + _INDEX_0,
        succeeded="Complete",
    ),
}
"""By the `kind` of a run's spec."""


def kind_of(resource: str) -> Kind:
    """Return the kind whose `plural.group` this is; KeyError for another."""
    return {kind.resource: kind for kind in KINDS.values()}[resource]


def apply_command(namespace: str | None) -> str:
    """Return how the manifests make what is missing in a namespace, as a hint."""
    if namespace == PIPELINES:
        return "`kubectl apply -k manifests/overlays/kfp`"
    other = "" if namespace == NAMESPACE else f" with `--namespace {NAMESPACE}`"
    return f"`kubectl apply -k manifests/overlays/cpu` (or h100-8x, kueue){other}"

"""From one neutral job description to a PyTorchJob, a TrainJob, an indexed Job, or a local process.

Pure. Every kind runs the same pod with the same command; one object is one attempt, so each API's own
retry is off. Knows nothing of sending or following.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.errors import ConfigError, did_you_mean
from nanochat_platform.kube import names
from nanochat_platform.kube.jobs import JobDescription
from nanochat_platform.kube.names import KINDS, Kind
from nanochat_platform.kube.pods import RENDEZVOUS_PORT, pod_template
from nanochat_platform.spec import RunSpec

Object = dict[str, Any]

KEEP_FINISHED_S = 7 * 24 * 3600
"""Seconds that a finished job object and its pods stay to be looked at."""


def render(job: JobDescription, kind: str) -> list[Object]:
    """Return the job object, then what has to exist before it (owned by it once it has a uid, see `owned`).

    Raises:
        ConfigError: no such kind; the nearest is offered.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of job `{kind}`", hint=did_you_mean(kind, KINDS))
    return _RENDERERS[kind](job, KINDS[kind])


def owned(job: Object, others: list[Object]) -> list[Object]:
    """Return `others` with the created `job` as their owner, so that they go when it goes."""
    meta = job["metadata"]
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": meta["name"], "uid": meta["uid"]}
    return [other | {"metadata": other["metadata"] | {"ownerReferences": [owner]}} for other in others]


@dataclass(frozen=True, slots=True)
class LocalProcess:
    """A stage as a process of this machine."""

    command: list[str]
    env: dict[str, str]
    """Added to the environment."""


def local_command(job: JobDescription, home: Path) -> LocalProcess:
    """Return the same command with the same settings, over a folder of this machine."""
    config = home / "runs" / job.run / job.stage / "config.json"
    launcher = [sys.executable, "-m", "nanochat.run.launch"]
    env = {"NANOCHAT_HOME": str(home), "NANOCHAT_CONFIG": job.config}
    return LocalProcess([*launcher, "--config", str(config), "--grace-s", str(job.grace_s)], env | job.env)


def claim(spec: RunSpec) -> Object | None:
    """Return the claim of a run that names its size; None where the claim must exist already."""
    volume = spec.volume
    if volume.size is None:
        return None
    wanted: dict[str, Any] = {
        "accessModes": [volume.access_mode],
        "resources": {"requests": {"storage": volume.size}},
    }
    if volume.storage_class is not None:
        wanted["storageClassName"] = volume.storage_class
    meta = {"name": volume.claim, "namespace": spec.namespace, "labels": names.app_labels("data")}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": wanted}


def _metadata(job: JobDescription) -> dict[str, Any]:
    labels = job.labels | ({names.QUEUE: job.queue} if job.queue else {})
    meta: dict[str, Any] = {"name": job.name, "namespace": job.namespace, "labels": labels}
    if job.owner is not None:
        owner = job.owner
        reference = {
            "apiVersion": owner.api_version,
            "kind": owner.kind,
            "name": owner.name,
            "uid": owner.uid,
        }
        meta["ownerReferences"] = [reference]
    return meta


def _beside(job: JobDescription) -> dict[str, Any]:
    return {"name": job.name, "namespace": job.namespace, "labels": job.labels}


def _pytorchjob(job: JobDescription, kind: Kind) -> list[Object]:
    policy: dict[str, Any] = {
        "cleanPodPolicy": "Running",  # else the pods that survive a failure keep their GPUs
        "backoffLimit": 0,
        "ttlSecondsAfterFinished": KEEP_FINISHED_S,
    }
    if job.deadline_s is not None:
        policy["activeDeadlineSeconds"] = job.deadline_s

    def replicas(count: int, *, first: bool) -> dict[str, Any]:
        return {
            "replicas": count,
            "restartPolicy": "Never",
            "template": pod_template(job, kind, first=first),
        }

    specs = {"Master": replicas(1, first=True)}
    if job.nodes > 1:
        specs["Worker"] = replicas(job.nodes - 1, first=False)
    spec = {
        "nprocPerNode": str(job.ranks_per_node),
        "runPolicy": policy,
        "pytorchReplicaSpecs": specs,
    }
    return [{"apiVersion": kind.api_version, "kind": kind.kind, "metadata": _metadata(job), "spec": spec}]


def _trainjob(job: JobDescription, kind: Kind) -> list[Object]:
    """A runtime beside every job: the overrides of a TrainJob (runtimePatches) reach neither the guard's
    image nor priority, termination message or restart policy, and a shared runtime can change under a run.
    """
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": kind.group, "kind": "TrainingRuntime", "name": job.name},
        "trainer": {"numNodes": job.nodes, "numProcPerNode": job.ranks_per_node},
    }
    if job.deadline_s is not None:
        spec["activeDeadlineSeconds"] = job.deadline_s
    runtime = {
        "apiVersion": kind.api_version,
        "kind": "TrainingRuntime",
        "metadata": _beside(job),
        "spec": training_runtime(pod_template(job, kind), nodes=job.nodes),
    }
    trainjob = {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": _metadata(job),
        "spec": spec,
    }
    return [trainjob, runtime]


def training_runtime(template: dict[str, Any], *, nodes: int) -> dict[str, Any]:
    """Return the spec of a TrainingRuntime that starts this pod on every node, once."""
    indexed = {"backoffLimit": 0, "podReplacementPolicy": "Failed", "template": template}
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": indexed,
        },
    }
    # No ttlSecondsAfterFinished: Trainer 2.3 would make a JobSet that its time took away once more.
    job_set = {"failurePolicy": {"maxRestarts": 0}, "replicatedJobs": [node]}
    return {"mlPolicy": {"numNodes": nodes, "torch": {}}, "template": {"spec": job_set}}


def _job(job: JobDescription, kind: Kind) -> list[Object]:
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": KEEP_FINISHED_S,
        "template": pod_template(job, kind),
    }
    if job.deadline_s is not None:
        spec["activeDeadlineSeconds"] = job.deadline_s
    found = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": _metadata(job), "spec": spec}
    return [found] if job.nodes == 1 else [found, _headless(job, kind)]


def _headless(job: JobDescription, kind: Kind) -> Object:
    """Return the Service that gives the pods of a Job their names."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,  # nodes find each other before any of them is ready
        "selector": {"batch.kubernetes.io/job-name": job.name},
        "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _beside(job), "spec": spec}


_RENDERERS: dict[str, Callable[[JobDescription, Kind], list[Object]]] = {
    "pytorchjob": _pytorchjob,
    "trainjob": _trainjob,
    "job": _job,
}

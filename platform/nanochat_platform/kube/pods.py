"""The pod of a job, admissible under the `restricted` Pod Security standard.

Pure: dicts in Kubernetes' own words. Knows nothing of who creates the pod.
"""

from __future__ import annotations

from typing import Any

from nanochat_platform.kube import names
from nanochat_platform.kube.jobs import END_MARGIN_S, JobDescription
from nanochat_platform.kube.names import Kind

RENDEZVOUS_PORT = 23456
"""The training operator's default; named here, so that a NetworkPolicy and a reader can see it."""
TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105
GUARD_MEMORY, GUARD_CPU = "96Mi", "10m"


def container_security() -> dict[str, Any]:
    """Return a container's security context, the same for every container of the platform."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def pod_security() -> dict[str, Any]:
    """Return a pod's security context: one unprivileged user, to whom the volume belongs."""
    return {
        "runAsNonRoot": True,
        "runAsUser": names.UID,
        "runAsGroup": names.UID,
        "fsGroup": names.UID,
        "fsGroupChangePolicy": "OnRootMismatch",  # else every start walks the whole volume
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_template(job: JobDescription, kind: Kind, *, first: bool = True) -> dict[str, Any]:
    """Return the pod template of a job's nodes; `first`: of the node (or of all) that watches the lease."""
    guarded = first and job.lease is not None
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": job.grace_s + END_MARGIN_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called `nanochat` would set NANOCHAT_* variables
        "securityContext": pod_security(),
        "containers": [_trainer(job, kind)],
        "volumes": _volumes(job),
    }
    if kind.name != "pytorchjob":  # it has a field of its own, and an event against a second one
        spec["restartPolicy"] = "Never"
    if guarded:
        spec["serviceAccountName"] = names.TRAIN_ACCOUNT
        spec["initContainers"] = [_guard(job, kind)]
        spec["volumes"].append(_token())
    if kind.name == "job" and job.nodes > 1:
        spec["subdomain"] = job.name
    if job.priority_class:
        spec["priorityClassName"] = job.priority_class
    if job.node_selector:
        spec["nodeSelector"] = dict(job.node_selector)
    if job.tolerations:
        spec["tolerations"] = [t.model_dump(exclude_none=True) for t in job.tolerations]
    if job.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in job.image_pull_secrets]
    labels = job.labels | ({names.GUARD: "true"} if guarded else {})
    return {"metadata": {"labels": labels}, "spec": spec}


def _trainer(job: JobDescription, kind: Kind) -> dict[str, Any]:
    env = [{"name": name, "value": value} for name, value in _variables(job).items()]
    container = {
        "name": kind.container,
        "image": job.image,
        "imagePullPolicy": "IfNotPresent",
        "command": job.command,
        "env": [*env, *_topology(job, kind)],
        "resources": {"requests": dict(job.requests), "limits": dict(job.limits)},
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "data", "mountPath": names.HOME},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "home", "mountPath": names.USER_HOME},
        ],
    }
    if kind.name == "pytorchjob":
        container["ports"] = [{"name": "pytorchjob-port", "containerPort": RENDEZVOUS_PORT}]
    return container


def _variables(job: JobDescription) -> dict[str, str]:
    ours = {"HOME": names.USER_HOME, "NANOCHAT_HOME": names.HOME, "NANOCHAT_CONFIG": job.config}
    return ours | job.env


def _topology(job: JobDescription, kind: Kind) -> list[dict[str, Any]]:
    """Return what an operator would set, for the Job that has none."""
    if kind.name != "job":
        return []
    fixed = {"PET_NNODES": job.nodes, "PET_NPROC_PER_NODE": job.ranks_per_node}
    env: list[dict[str, Any]] = [{"name": name, "value": str(value)} for name, value in fixed.items()]
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    env.append({"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": index}})
    if job.nodes > 1:
        env.append({"name": "PET_MASTER_ADDR", "value": f"{job.name}-0.{job.name}"})
        env.append({"name": "PET_MASTER_PORT", "value": str(RENDEZVOUS_PORT)})
    return env


def _volumes(job: JobDescription) -> list[dict[str, Any]]:
    return [
        {"name": "data", "persistentVolumeClaim": {"claimName": job.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shm}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
    ]


def _guard(job: JobDescription, kind: Kind) -> dict[str, Any]:
    """Return the sidecar that ends the job when nobody renews its lease; it alone holds a token."""
    command = ["python", "-m", "nanochat_platform.kube.guard", "--lease", str(job.lease)]
    return {
        "name": "guard",
        "image": job.image,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",  # a native sidecar: started before the trainer, ended after it
        "command": [*command, "--job", f"{kind.resource}/{job.name}"],
        "resources": {
            "requests": {"cpu": GUARD_CPU, "memory": GUARD_MEMORY},
            "limits": {"memory": GUARD_MEMORY},
        },
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "token", "mountPath": TOKEN_MOUNT, "readOnly": True}],
    }


def _token() -> dict[str, Any]:
    sources: list[dict[str, Any]] = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    return {"name": "token", "projected": {"defaultMode": 0o440, "sources": sources}}

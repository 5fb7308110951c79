"""What can be refused before anything is made: volume, nodes, quota, and the pods themselves by a dry run.

Every check that the caller's rights do not allow is left out: the cluster itself decides later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanochat.errors import ConfigError, ForbiddenError, QuotaError
from nanochat_platform.hardware import NODES as MACHINES
from nanochat_platform.hardware import quantity
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.jobs import JobDescription
from nanochat_platform.kube.names import KINDS, QUEUE, apply_command
from nanochat_platform.kube.pods import pod_template
from nanochat_platform.kube.render import claim as claim_object
from nanochat_platform.kube.resources import CLAIMS, NODES, PODS, QUOTAS, Object, meta, name_of
from nanochat_platform.spec import RunSpec


def check(client: Client, spec: RunSpec, jobs: Sequence[JobDescription], *, wait_for_nodes: bool) -> None:
    """Check what the jobs need; `wait_for_nodes`: an autoscaler brings nodes that are not there yet.

    Raises:
        ConfigError: the volume claim is missing or cannot be shared, no node is of that kind, or the
            namespace's rules refuse the pods.
        QuotaError: the namespace's quota cannot hold one of the jobs.
        ForbiddenError: the caller may not read the claim.
    """
    jobs = distinct(jobs)
    for job in jobs:
        _check_pod(client, job, spec)
    check_claim(spec, client.get(CLAIMS, spec.volume.claim))
    if not wait_for_nodes:
        nodes = _readable(client, NODES, namespace=None)
        for job in jobs if nodes else []:  # none at all: a cluster that grows from zero, or unreadable
            check_nodes(job, nodes or [])
    if spec.queue is None:  # a queue admits what the quota can hold, and when
        quotas = _readable(client, QUOTAS) or []
        for job in jobs:
            check_quota(job, quotas)


def distinct(jobs: Iterable[JobDescription]) -> list[JobDescription]:
    """Return one job of every shape of pods."""
    found: dict[str, JobDescription] = {}
    for job in jobs:
        found.setdefault(repr((job.nodes, job.gpus, job.requests, job.limits, job.node_selector)), job)
    return list(found.values())


def _readable(client: Client, resource: Any, **options: Any) -> list[Object] | None:
    try:
        return client.items(resource, **options)
    except ForbiddenError:
        return None


def check_claim(spec: RunSpec, claim: Object | None) -> None:
    """Check the volume claim of a run.

    Raises:
        ConfigError: it is missing and the spec does not make it, is lost, or cannot be shared by the nodes.
    """
    name, where = spec.volume.claim, f"namespace `{spec.namespace}`"
    if claim is None:
        if claim_object(spec) is None:
            raise ConfigError(
                f"volume claim `{name}` does not exist in {where}",
                hint=f"create it ({apply_command(spec.namespace)}), give `volume.size` to have it made, "
                "or name another with `volume.claim`",
            )
        return
    if (claim.get("status") or {}).get("phase") == "Lost":
        raise ConfigError(f"volume claim `{name}` in {where} has lost its volume", hint="restore the volume")
    modes = (claim.get("spec") or {}).get("accessModes") or []
    if spec.nodes > 1 and "ReadWriteMany" not in modes:
        raise ConfigError(
            f"{spec.nodes} nodes share volume claim `{name}`, whose access modes are {', '.join(modes)}",
            hint="use a claim with ReadWriteMany (NFS, CephFS, FSx, Filestore), or nodes: 1",
        )


def _check_pod(client: Client, job: JobDescription, spec: RunSpec) -> None:
    """Let the server's admission judge a pod without making it: Pod Security, quota, accounts, priorities."""
    try:
        client.create(PODS, pod_of(job, spec), dry_run=True)
    except ForbiddenError:
        return  # whoever may make jobs need not be allowed to make pods


def pod_of(job: JobDescription, spec: RunSpec) -> Object:
    """Return the first pod of a job, as its controller would make it."""
    template = pod_template(job, KINDS[spec.kind])
    labels = {key: value for key, value in template["metadata"]["labels"].items() if key != QUEUE}
    metadata = {"name": f"{job.name}-preflight", "namespace": job.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def check_nodes(job: JobDescription, nodes: Sequence[Object]) -> None:
    """Check that the cluster has nodes of the kind that a job wants, busy or not.

    Raises:
        ConfigError: it has none, or too few.
    """
    labelled = [node for node in nodes if _selected(node, job.node_selector)]
    able = [node for node in labelled if _holds(node, job.requests)]
    if len(able) >= job.nodes or (able and job.gpus == 0):
        return
    _check_rdma(job, labelled)
    hint = (
        "choose another `hardware`, correct `node_selector`, install the device plugin; "
        "or pass --wait-for-nodes where an autoscaler brings the nodes"
    )
    wanted = ", ".join(f"{name} {amount}" for name, amount in job.requests.items())
    labels = ", ".join(f"{key}={value}" for key, value in job.node_selector.items())
    if not labelled and labels:
        raise ConfigError(
            f"stage `{job.stage}` needs a node with {labels}, and the cluster has none", hint=hint
        )
    if not able:
        raise ConfigError(
            f"stage `{job.stage}` needs a node with {wanted}{f' and {labels}' if labels else ''}, "
            "and no node of the cluster has that much",
            hint=hint,
        )
    raise ConfigError(
        f"stage `{job.stage}` needs {job.nodes} nodes with {wanted}, and the cluster has {len(able)}",
        hint=hint,
    )


def _check_rdma(job: JobDescription, nodes: Sequence[Object]) -> None:
    """Refuse nodes that have everything but the RDMA devices by what mends just that."""
    known = {"cpu", "memory", *(machine.gpu_resource for machine in MACHINES.values())}
    others = {name: amount for name, amount in job.requests.items() if name in known}
    rdma = next((name for name in job.requests if name not in known), None)
    if rdma is None or sum(_holds(node, others) for node in nodes) < job.nodes:
        return
    count = sum(_holds(node, job.requests) for node in nodes)
    raise ConfigError(
        f"stage `{job.stage}` needs {job.nodes} nodes with {rdma} {job.requests[rdma]}, and {count} of the "
        f"{len(nodes)} nodes of that kind have it",
        hint="the RDMA device plugin is missing there: install it, or name the resource that it offers "
        "(`resources: {rdma: NAME}` in the spec, or `rdma=NAME` for a pipeline); "
        "`resources: {rdma: none}` trains over TCP, which is slower",
    )


def _selected(node: Object, selector: Mapping[str, str]) -> bool:
    labels = meta(node, "labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def _holds(node: Object, requests: Mapping[str, str]) -> bool:
    room = (node.get("status") or {}).get("allocatable") or {}
    return all(quantity(str(room.get(name, "0"))) >= quantity(amount) for name, amount in requests.items())


def check_quota(job: JobDescription, quotas: Sequence[Object]) -> None:
    """Check that every quota of the namespace has room for all pods of a job.

    Raises:
        QuotaError: one has not; names the quota, the resource and the numbers.
    """
    for quota in quotas:
        if (quota.get("spec") or {}).get("scopes") or (quota.get("spec") or {}).get("scopeSelector"):
            continue
        status = quota.get("status") or {}
        for name, hard in (status.get("hard") or {}).items():
            need = _need(job, name)
            used = quantity(str((status.get("used") or {}).get(name, "0")))
            if need and used + need > quantity(str(hard)):
                raise QuotaError(
                    f"stage `{job.stage}` needs {_text(need)} of {name}, and quota `{name_of(quota)}` "
                    f"of namespace `{job.namespace}` allows {hard}, of which {_text(used)} is used",
                    hint="stop other runs (`nanochat list`), ask for less, or have the quota raised",
                )


def _need(job: JobDescription, name: str) -> float:
    if name in ("pods", "count/pods"):
        return float(job.nodes)
    section, _, resource = name.partition(".")
    if section == "requests":
        return job.nodes * quantity(job.requests.get(resource, "0"))
    if section == "limits":
        return job.nodes * quantity(job.limits.get(resource, "0"))
    return job.nodes * quantity(job.requests.get(name, "0"))


def _text(value: float) -> str:
    return f"{value / 2**30:.4g}Gi" if value >= 2**30 else f"{value:.6g}"

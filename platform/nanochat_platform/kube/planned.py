"""What a run's spec will create in a cluster, and the plan with it.

Pure. Knows nothing of what is in the cluster already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nanochat.run.stage import stage as find_stage
from nanochat_platform.hardware import Hardware, find, quantity, quantity_text
from nanochat_platform.kube.jobs import JobDescription, describe, stage_class
from nanochat_platform.kube.names import KINDS, lease_name
from nanochat_platform.kube.pods import pod_template
from nanochat_platform.kube.render import claim, render
from nanochat_platform.plan import Plan, PlannedObject, make_plan
from nanochat_platform.spec import RunSpec


def plan_cluster(spec: RunSpec, *, leased: bool = False) -> Plan:
    """Return the plan of a run on a cluster, with its objects and the quota that they need.

    Raises:
        ConfigError: the batch does not divide, the model does not fit, or the data is too little.
        QuotaError: it costs more than the spec's budget.
    """
    objects = tuple(planned_objects(spec, leased=leased))
    plan = make_plan(
        spec.config(),
        _machine(spec),
        nodes=spec.nodes,
        objects=objects,
        budget_usd=spec.budget_usd,
    )
    if "@sha256:" in spec.image:
        return plan
    text = f"image `{spec.image}` has no digest: what its tag means can change under the run"
    return plan.model_copy(update={"warnings": (*plan.warnings, text)})


def planned_objects(spec: RunSpec, *, leased: bool = False) -> Iterator[PlannedObject]:
    """Yield the objects of a run in the order of their creation, each stage's first attempt."""
    volume = claim(spec)
    if volume is not None:
        size = volume["spec"]["resources"]["requests"]["storage"]
        yield PlannedObject(kind=volume["kind"], name=volume["metadata"]["name"], requests={"storage": size})
    for stage in spec.stage_names():
        lease = lease_name(spec.run_name, stage) if leased else None
        if lease is not None:
            yield PlannedObject(kind="Lease", name=lease, stage=stage)
        job = describe(spec, stage, 1, lease=lease)
        first, *others = render(job, spec.kind)
        for other in others:
            yield PlannedObject(kind=other["kind"], name=other["metadata"]["name"], stage=stage)
        yield PlannedObject(
            kind=first["kind"], name=job.name, stage=stage, pods=job.nodes, requests=_requests(job, spec.kind)
        )


def _requests(job: JobDescription, kind: str) -> dict[str, str]:
    """Return what the containers and sidecars of all pods of a job ask for together."""
    total: dict[str, float] = {}
    for node in range(job.nodes):
        first = node == 0 or kind != "pytorchjob"  # one template for all nodes elsewhere
        spec: dict[str, Any] = pod_template(job, KINDS[kind], first=first)["spec"]
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            for name, amount in container["resources"]["requests"].items():
                total[name] = total.get(name, 0.0) + quantity(amount)
    return {name: quantity_text(name, amount) for name, amount in total.items()}


def _machine(spec: RunSpec) -> Hardware:
    """Return one node as the plan knows machines: only the GPUs, or the memory, that its pods get."""
    if spec.profile_gpus:
        device = spec.hardware.split("x", 1)[1]
        return find(f"{spec.gpus_per_node}x{device}")
    trains = next((s for s in spec.stage_names() if stage_class(find_stage(s)) == "ranks"), "base_train")
    memory = describe(spec, trains, 1).requests["memory"]
    return replace(find("cpu", memory_bytes=int(quantity(memory))), title="pods without a GPU")

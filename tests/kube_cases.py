"""Runs whose objects tests render, offline and on a cluster: one of each kind of difference."""

from __future__ import annotations

from typing import Any

from nanochat_platform.kube.jobs import OwnerReference, describe
from nanochat_platform.kube.names import KINDS, lease_name
from nanochat_platform.kube.render import render
from nanochat_platform.spec import RunSpec

IMAGE = "registry.example.com/nanochat/train@sha256:" + "0" * 64
OWNER = OwnerReference(api_version="argoproj.io/v1alpha1", kind="Workflow", name="speedrun-x", uid="1-2-3")
LEAST: dict[str, Any] = {"preset": "smoke", "image": IMAGE, "namespace": "team", "hardware": "cpu"}
ALL: dict[str, Any] = {
    "preset": "speedrun",
    "image": IMAGE,
    "namespace": "team",
    "run": "friday",
    "hardware": "8xh100",
    "nodes": 2,
    "queue": "nanochat",
    "priority_class": "nanochat-training",
    "deadline_minutes": 240,
    "grace_s": 120,
    "volume": {"claim": "lake", "size": "2Ti", "storage_class": "nfs"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 30},
    ],
    "node_selector": {"pool": "gpu"},
    "image_pull_secrets": ["registry"],
    "env": {"NCCL_DEBUG": "INFO"},
}
SPECS: dict[str, dict[str, Any]] = {
    "least": LEAST,
    "cpu-2-nodes": LEAST | {"nodes": 2, "nproc": 2, "resources": {"cpu": "500m", "memory": "1Gi"}},
    "1xh100": LEAST | {"preset": "speedrun", "hardware": "1xh100"},
    "8xa100": LEAST | {"preset": "speedrun", "hardware": "8xa100"},
    "half-a-node": LEAST | {"preset": "speedrun", "hardware": "8xh100", "gpus": 4},
    "all": ALL,
}


def spec(name: str) -> RunSpec:
    """Return the spec of a case."""
    return RunSpec.model_validate(SPECS[name])


def rendered(name: str, kind: str, stage: str, *, guarded: bool) -> list[dict[str, Any]]:
    """Return the objects of the first attempt at a stage; `guarded`: as a pipeline's step makes them."""
    found = spec(name)
    lease = lease_name(found.run_name, stage) if guarded else None
    job = describe(found, stage, 1, lease=lease, owner=OWNER if guarded else None)
    return render(job, kind)


CASES = [
    (name, kind, stage, guarded)
    for name in SPECS
    for kind in KINDS
    for stage in ("data", "base_train", "chat_eval")
    for guarded in (False, True)
]
"""(spec, kind, stage, guarded): a stage of each class."""

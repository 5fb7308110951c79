"""One attempt at one stage, described without naming the API that will run it.

Pure: a function of (spec, stage, attempt). Knows nothing of PyTorchJobs, TrainJobs or Jobs.
"""

from __future__ import annotations

import json
from typing import Literal

from nanochat.run.config import Frozen
from nanochat.run.stage import Stage
from nanochat.run.stage import stage as find_stage
from nanochat_platform.hardware import GIB, Node, Share, cpu_text, memory_text, quantity
from nanochat_platform.hardware import node as find_node
from nanochat_platform.kube import names
from nanochat_platform.spec import Resources, RunSpec, Toleration

MODEL_STAGES = {"base_train", "mid_train", "chat_sft"}
"""Stages that leave a model; who reads one of them computes with it."""
END_MARGIN_S = 30
"""Seconds between the launcher's own limit and the kubelet's SIGKILL."""

StageClass = Literal["ranks", "model", "plain"]


class OwnerReference(Frozen):
    """The object whose end ends the job, e.g. a KFP run's Workflow; it lies in the same namespace."""

    api_version: str
    kind: str
    name: str
    uid: str


class JobDescription(Frozen):
    """An attempt's job, neutral: what runs, where, with what."""

    name: str
    namespace: str
    run: str
    stage: str
    attempt: int
    image: str
    config: str
    """The `StageConfig` as canonical JSON: NANOCHAT_CONFIG."""
    nodes: int
    ranks_per_node: int
    gpus: int
    """Of each node."""
    requests: dict[str, str]
    limits: dict[str, str]
    shm: str
    env: dict[str, str]
    claim: str
    deadline_s: int | None
    grace_s: int
    queue: str | None
    priority_class: str | None
    tolerations: tuple[Toleration, ...]
    node_selector: dict[str, str]
    image_pull_secrets: tuple[str, ...]
    lease: str | None = None
    """Name of the Lease without whose renewal the job deletes itself; None: it lives on its own."""
    owner: OwnerReference | None = None

    @property
    def spec_hash(self) -> str:
        """Identity of what the job does: the same for every attempt, and whoever started it."""
        return names.spec_hash(self.model_dump(mode="json", exclude={"name", "attempt", "lease", "owner"}))

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the job object, of its pods and of what is made beside it."""
        return names.labels(run=self.run, stage=self.stage, attempt=self.attempt, spec_hash=self.spec_hash)

    @property
    def command(self) -> list[str]:
        """The one command of every pod."""
        path = f"{names.HOME}/runs/{self.run}/{self.stage}/config.json"
        launcher = ["python", "-m", "nanochat.run.launch"]
        return [*launcher, "--config", path, "--grace-s", str(self.grace_s)]


def stage_class(stage: Stage) -> StageClass:
    """Return what a stage computes on: all ranks, one GPU with a model, or no GPU."""
    if stage.ranks:
        return "ranks"
    if stage.name == "report":  # it reads the models' records, not the models
        return "plain"
    read = {name for entry in stage.reads for name in entry.rstrip("?").split("|")}
    return "model" if read & MODEL_STAGES else "plain"


def describe(
    spec: RunSpec,
    stage_name: str,
    attempt: int,
    *,
    lease: str | None = None,
    owner: OwnerReference | None = None,
) -> JobDescription:
    """Return the job of an attempt (from 1) at a stage.

    Raises:
        ConfigError: no such stage; the nearest name is offered.
    """
    stage = find_stage(stage_name)
    node = find_node(spec.hardware)
    kind = stage_class(stage)
    nodes, ranks, gpus = _shape(spec, kind)
    share = _share(spec, node, kind)
    config = spec.stage_config(stage.name).model_dump(mode="json")
    requests = {"cpu": cpu_text(share.cpu), "memory": memory_text(share.memory_gib)}
    devices = _devices(spec.resources, node, gpus=gpus, nodes=nodes)
    return JobDescription(
        name=names.job_name(spec.run_name, stage.name, attempt),
        namespace=spec.namespace,
        run=spec.run_name,
        stage=stage.name,
        attempt=attempt,
        image=spec.image,
        config=json.dumps(config, sort_keys=True, separators=(",", ":")),
        nodes=nodes,
        ranks_per_node=ranks,
        gpus=gpus,
        requests=requests | devices,
        limits={"memory": requests["memory"]} | devices,
        shm=memory_text(share.shm_gib),
        env=_env(spec, node, share, kind),
        claim=spec.volume.claim,
        deadline_s=None if spec.deadline_minutes is None else max(1, round(spec.deadline_minutes * 60)),
        grace_s=spec.grace_s,
        queue=spec.queue,
        priority_class=spec.priority_class,
        tolerations=_tolerations(spec, node, gpus),
        node_selector=_selector(spec, node, gpus),
        image_pull_secrets=spec.image_pull_secrets,
        lease=lease,
        owner=owner,
    )


def _tolerations(spec: RunSpec, node: Node, gpus: int) -> tuple[Toleration, ...]:
    """Return the spec's, and for a pod with GPUs the one of the taint that keeps others off their nodes."""
    if not gpus or any(toleration.key in (None, node.gpu_resource) for toleration in spec.tolerations):
        return spec.tolerations
    return (Toleration(key=node.gpu_resource, operator="Exists", effect="NoSchedule"), *spec.tolerations)


def _shape(spec: RunSpec, kind: StageClass) -> tuple[int, int, int]:
    """Return (nodes, ranks of each, GPUs of each)."""
    if kind == "ranks":
        return spec.nodes, spec.ranks_per_node, spec.gpus_per_node
    return 1, 1, min(1, spec.profile_gpus) if kind == "model" else 0


def _share(spec: RunSpec, node: Node, kind: StageClass) -> Share:
    """Return what a pod asks for: the profile's share, or that part of what the spec says of a whole pod.

    A stage with one model gets the part of one rank, and one without a GPU no more than it can use.
    """
    given, ranks = spec.resources, spec.ranks_per_node
    usual = node.without_gpu if kind == "plain" else node.per_gpu.times(ranks if kind == "ranks" else 1)
    part = ranks if kind == "model" else 1
    limited = kind == "plain" and spec.profile_gpus > 0

    def choose(text: str | None, default: float, unit: float) -> float:
        if text is None:
            return default
        value = quantity(text) / unit / part
        return min(value, default) if limited else value

    return Share(
        cpu=choose(given.cpu, usual.cpu, 1),
        memory_gib=choose(given.memory, usual.memory_gib, GIB),
        shm_gib=choose(given.shm, usual.shm_gib, GIB),
    )


def _devices(given: Resources, node: Node, *, gpus: int, nodes: int) -> dict[str, str]:
    devices = {node.gpu_resource: str(gpus)} if gpus and node.gpu_resource else {}
    rdma = _rdma(given, node, nodes)
    return devices | ({rdma: "1"} if rdma else {})


def _rdma(given: Resources, node: Node, nodes: int) -> str | None:
    """Return the resource through which the nodes reach each other; None: TCP, or only one node."""
    name = given.rdma or node.rdma_resource
    return name if nodes > 1 and name != "none" else None


def _env(spec: RunSpec, node: Node, share: Share, kind: StageClass) -> dict[str, str]:
    nodes, ranks, _ = _shape(spec, kind)
    # Libraries count the machine's cores, not the pod's share of them.
    env = {"OMP_NUM_THREADS": str(max(1, int(share.cpu / ranks)))}
    if kind == "ranks":
        env |= node.env
    if _rdma(spec.resources, node, nodes):
        env |= node.rdma_env
    if nodes > 1:
        env |= node.fabric_env
    return env | spec.env


def _selector(spec: RunSpec, node: Node, gpus: int) -> dict[str, str]:
    chosen = (node.selector if gpus else {}) | spec.node_selector
    return {label: value for label, value in chosen.items() if value}

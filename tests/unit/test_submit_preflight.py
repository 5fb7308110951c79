"""What is refused before anything is made, and what a dry run holds; no cluster."""

from __future__ import annotations

from typing import Any

import pytest
from nanochat_platform.kube.jobs import JobDescription, OwnerReference
from nanochat_platform.spec import RunSpec
from nanochat_platform.submit import stages_of
from nanochat_platform.submit.objects import SPEC, description, dry_run, manager
from nanochat_platform.submit.preflight import check_claim, check_nodes, check_quota, distinct

from nanochat.errors import ConfigError, QuotaError


def spec(**changes: Any) -> RunSpec:
    base = {"preset": "smoke", "image": "reg/train:1", "namespace": "chat", "hardware": "cpu"}
    return RunSpec.model_validate({**base, **changes})


def gpu_job(**changes: Any) -> JobDescription:
    return description(spec(preset="speedrun", hardware="8xh100", **changes), "base_train", 1)


def claim(*modes: str, phase: str = "Bound") -> dict[str, Any]:
    return {"spec": {"accessModes": list(modes)}, "status": {"phase": phase}}


def test_the_claim() -> None:
    check_claim(spec(), claim("ReadWriteOnce"))
    check_claim(spec(nodes=2), claim("ReadWriteOnce", "ReadWriteMany"))
    check_claim(spec(volume={"size": "10Gi"}), None)
    with pytest.raises(ConfigError, match="volume claim `nanochat-data` does not exist in namespace `chat`"):
        check_claim(spec(), None)
    with pytest.raises(
        ConfigError, match="2 nodes share volume claim `nanochat-data`, whose access modes are"
    ):
        check_claim(spec(nodes=2), claim("ReadWriteOnce"))
    with pytest.raises(ConfigError, match="has lost its volume"):
        check_claim(spec(), claim("ReadWriteMany", phase="Lost"))


def node(*, gpus: int = 8, product: str = "NVIDIA-H100-80GB-HBM3", cpu: str = "192") -> dict[str, Any]:
    room = {"cpu": cpu, "memory": "2000Gi", "nvidia.com/gpu": str(gpus), "rdma/ib": "8"}
    room |= dict.fromkeys(gpu_job(nodes=2).requests.keys() - room.keys(), "8")
    return {"metadata": {"labels": {"nvidia.com/gpu.product": product}}, "status": {"allocatable": room}}


@pytest.mark.parametrize(
    ("nodes", "count", "message"),
    [
        ([node()], 1, None),
        ([node(), node()], 2, None),
        ([node()], 2, "needs 2 nodes with .*, and the cluster has 1"),
        (
            [node(product="NVIDIA-L4")],
            1,
            "needs a node with nvidia.com/gpu.product=.*, and the cluster has none",
        ),
        ([node(gpus=4)], 1, "no node of the cluster has that much"),
        ([node(cpu="8")], 1, "no node of the cluster has that much"),
    ],
)
def test_the_kind_of_nodes(nodes: list[Any], count: int, message: str | None) -> None:
    if message is None:
        check_nodes(gpu_job(nodes=count), nodes)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        check_nodes(gpu_job(nodes=count), nodes)
    assert "--wait-for-nodes" in str(caught.value.hint)


def without_rdma() -> dict[str, Any]:
    made = node()
    del made["status"]["allocatable"]["rdma/rdma_shared_device_a"]
    return made


@pytest.mark.parametrize(
    ("nodes", "count"), [([without_rdma(), without_rdma()], 0), ([node(), without_rdma()], 1)]
)
def test_nodes_that_lack_only_the_rdma_devices(nodes: list[Any], count: int) -> None:
    with pytest.raises(ConfigError, match="needs 2 nodes with rdma/rdma_shared_device_a 1") as caught:
        check_nodes(gpu_job(nodes=2), nodes)
    assert f"and {count} of the 2 nodes" in caught.value.message
    assert "RDMA device plugin is missing" in str(caught.value.hint)
    assert "`resources: {rdma: none}`" in str(caught.value.hint)
    check_nodes(gpu_job(nodes=2, resources={"rdma": "none"}), nodes)
    with pytest.raises(ConfigError, match="the cluster has none"):
        check_nodes(gpu_job(nodes=2), [node(product="NVIDIA-L4")])


def quota(hard: dict[str, str], used: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": "team"}, "spec": more, "status": {"hard": hard, "used": used}}


@pytest.mark.parametrize(
    ("hard", "used", "message"),
    [
        ({"requests.nvidia.com/gpu": "16"}, {"requests.nvidia.com/gpu": "0"}, None),
        (
            {"requests.nvidia.com/gpu": "16"},
            {"requests.nvidia.com/gpu": "8"},
            "needs 16 of requests.nvidia.com/gpu",
        ),
        ({"pods": "1"}, {}, "needs 2 of pods, and quota `team` of namespace `chat` allows 1"),
        ({"limits.memory": "100Gi"}, {}, "of limits.memory"),
        ({"cpu": "1"}, {}, "of cpu"),
        ({"count/secrets": "0"}, {}, None),
    ],
)
def test_the_quota(hard: dict[str, str], used: dict[str, str], message: str | None) -> None:
    job = gpu_job(nodes=2)
    if message is None:
        check_quota(job, [quota(hard, used)])
        return
    with pytest.raises(QuotaError, match=message):
        check_quota(job, [quota(hard, used)])
    check_quota(job, [quota(hard, used, scopes=["BestEffort"])])


def test_pods_of_one_shape_are_judged_once() -> None:
    run = spec(preset="speedrun", hardware="8xh100")
    jobs = distinct([description(run, stage, 1) for stage in run.stage_names()])
    assert len(jobs) == 3


def test_the_hash_decides_who_manages_the_fields() -> None:
    owner = OwnerReference(api_version="v1", kind="Pod", name="p", uid="u")
    first, again = description(spec(), "data", 1), description(spec(), "data", 2, leased=True, owner=owner)
    other = description(spec(overrides={"seed": 1}), "data", 1)
    assert manager(first) == manager(again) != manager(other)


def test_a_dry_run_holds_claim_and_stages_in_order() -> None:
    run = spec(kind="job", nodes=2, volume={"size": "1Gi"}, stages=["data", "base_train"])
    sent = dry_run(run, run.stage_names(), {"base_train": 3})
    assert [(o["kind"], o["metadata"]["name"]) for o in sent] == [
        ("PersistentVolumeClaim", "nanochat-data"),
        ("Job", "smoke-data-1"),
        ("Service", "smoke-base-train-3"),
        ("Job", "smoke-base-train-3"),
    ]
    assert RunSpec.model_validate_json(sent[1]["metadata"]["annotations"][SPEC]) == run


def test_a_stage_that_the_spec_does_not_run() -> None:
    assert stages_of(spec(), "data") == ("data",)
    with pytest.raises(ConfigError, match="--stage is `dat`") as caught:
        stages_of(spec(stages=["data", "tokenize"]), "dat")
    assert caught.value.hint == "did you mean `data`?"

"""One description, four ways to run it: what every kind has in common, what each says in its own words."""

import json
from pathlib import Path

import pytest
import yaml
from nanochat_platform.kube.jobs import OwnerReference, describe, stage_class
from nanochat_platform.kube.names import KINDS
from nanochat_platform.kube.pods import pod_template
from nanochat_platform.kube.render import claim, local_command, owned, render
from nanochat_platform.spec import RunSpec

from nanochat.errors import ConfigError
from nanochat.run.config import StageConfig
from nanochat.run.stage import STAGES
from tests.kube_cases import ALL, CASES, LEAST, OWNER, SPECS, rendered, spec
from tests.pod_security import get, pod_templates
from tests.schemas import load_all, needs_crds, validate

pytestmark = pytest.mark.rung_a

GOLDEN = Path(__file__).parents[1] / "golden" / "kube"
GOLDENS = {f"{kind}-{name}": (name, kind) for kind in KINDS for name in ("least", "all")}


def text(objects):
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True

    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=1000)


@pytest.mark.parametrize("golden", GOLDENS)
def test_the_objects_are_the_golden_ones(golden):
    """After a wanted change: `python -m tests.unit.test_kube_render` writes them anew."""
    assert golden_text(golden) == (GOLDEN / f"{golden}.yaml").read_text(encoding="utf-8")


def golden_text(golden):
    name, kind = GOLDENS[golden]
    return text(rendered(name, kind, "base_train", guarded=name == "all"))


@needs_crds
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_object_passes_its_strict_schema(case):
    name, kind, stage, guarded = case
    for document in rendered(name, kind, stage, guarded=guarded):
        assert validate(document) == []


@needs_crds
@pytest.mark.parametrize("kind", KINDS)
def test_a_letter_too_few_in_any_key_is_refused(kind):
    """The judge itself: a key of any depth that no schema knows is found, with its path."""
    for document in rendered("all", kind, "base_train", guarded=True):
        for path, container, key in keys(document):
            wrong = key[:-1] if len(key) > 1 else key + "x"
            value = container.pop(key)
            container[wrong] = value
            assert validate(document), f"{path}.{wrong} was accepted"
            del container[wrong]
            container[key] = value
        assert validate(document) == []


FREE = {"labels", "matchLabels", "annotations", "nodeSelector", "selector", "requests", "limits"}


def keys(value, path=""):
    """Yield (path, mapping, key) of every key that a schema names."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from keys(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key in list(value):
            if not path.endswith(".pytorchReplicaSpecs"):  # its roles are the operator's to judge
                yield path, value, key
            if key not in FREE:
                yield from keys(value[key], f"{path}.{key}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECS)
def test_every_kind_runs_the_same_pod_with_the_same_command(name, kind):
    job = describe(spec(name), "base_train", 1)
    template = pod_template(job, KINDS[kind])
    container = template["spec"]["containers"][0]
    assert container["name"] == KINDS[kind].container
    assert container["command"] == [
        *("python", "-m", "nanochat.run.launch"),
        *("--config", f"/data/runs/{job.run}/base_train/config.json", "--grace-s", str(job.grace_s)),
    ]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert StageConfig.model_validate_json(env["NANOCHAT_CONFIG"]) == spec(name).stage_config("base_train")
    assert env["NANOCHAT_HOME"] == "/data"
    assert template["spec"]["terminationGracePeriodSeconds"] > job.grace_s
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    other = pod_template(job, KINDS["pytorchjob"])
    assert template["spec"].get("restartPolicy") == (None if kind == "pytorchjob" else "Never")
    for path in ("securityContext", "volumes", "automountServiceAccountToken"):
        assert get(template, f"spec.{path}") == get(other, f"spec.{path}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_token_is_in_the_guard_alone_and_only_with_a_lease(case):
    name, kind, stage, guarded = case
    objects = rendered(name, kind, stage, guarded=guarded)
    found = list(pod_templates(*objects))
    assert found
    watching = [template for _, template in found if "initContainers" in template["spec"]]
    assert len(watching) == guarded
    for _, template in found:
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        tokens = [v["name"] for v in pod["volumes"] if "projected" in v]
        mounts = {c["name"] for c in containers(pod) for m in c["volumeMounts"] if m["name"] in tokens}
        assert mounts == ({"guard"} if template in watching else set())
        assert ("serviceAccountName" in pod) == (template in watching)
        assert ("nanochat.dev/guard" in template["metadata"]["labels"]) == (template in watching)
    if guarded:
        guard = watching[0]["spec"]["initContainers"][0]
        job = objects[0]
        assert guard["restartPolicy"] == "Always"
        resource = KINDS[kind].resource
        assert guard["command"][-4:] == [
            *("--lease", job["metadata"]["name"].removesuffix("-1")),
            *("--job", f"{resource}/{job['metadata']['name']}"),
        ]


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_a_pytorchjob_has_one_master_and_the_other_nodes_as_workers():
    (least,) = rendered("least", "pytorchjob", "base_train", guarded=False)
    assert set(least["spec"]["pytorchReplicaSpecs"]) == {"Master"}
    (two,) = rendered("cpu-2-nodes", "pytorchjob", "base_train", guarded=True)
    replicas = {role: spec["replicas"] for role, spec in two["spec"]["pytorchReplicaSpecs"].items()}
    assert replicas == {"Master": 1, "Worker": 1}
    assert two["spec"]["nprocPerNode"] == "2"  # a string, or the operator's webhook refuses it
    for role in two["spec"]["pytorchReplicaSpecs"].values():
        assert role["restartPolicy"] == "Never"
    assert two["spec"]["runPolicy"]["backoffLimit"] == 0
    assert two["spec"]["runPolicy"]["cleanPodPolicy"] == "Running"


def test_a_trainjob_brings_its_runtime():
    trainjob, runtime = rendered("cpu-2-nodes", "trainjob", "base_train", guarded=False)
    assert trainjob["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert trainjob["spec"]["trainer"] == {"numNodes": 2, "numProcPerNode": 2}
    assert get(runtime, "spec.template.spec.failurePolicy.maxRestarts") == 0


def test_an_indexed_job_sets_the_topology_itself():
    job, service = rendered("cpu-2-nodes", "job", "base_train", guarded=False)
    name = job["metadata"]["name"]
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    assert (job["spec"]["backoffLimit"], job["spec"]["podReplacementPolicy"]) == (0, "Failed")
    pod = job["spec"]["template"]["spec"]
    env = {v["name"]: v.get("value") for v in pod["containers"][0]["env"]}
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"]) == ("2", "2")
    assert env["PET_MASTER_ADDR"] == f"{name}-0.{name}"
    assert pod["subdomain"] == service["metadata"]["name"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert len(rendered("least", "job", "base_train", guarded=False)) == 1


def test_what_is_beside_a_job_goes_with_it():
    job, service = rendered("cpu-2-nodes", "job", "base_train", guarded=False)
    job["metadata"]["uid"] = "u"
    (bound,) = owned(job, [service])
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": "u"}
    assert bound["metadata"]["ownerReferences"] == [reference]
    assert "ownerReferences" not in service["metadata"]


@pytest.mark.parametrize("kind", KINDS)
def test_queue_and_owner_are_on_the_job_object(kind):
    first = rendered("all", kind, "base_train", guarded=True)[0]
    assert first["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nanochat"
    owner = first["metadata"]["ownerReferences"][0]
    assert owner == {
        "apiVersion": OWNER.api_version,
        "kind": "Workflow",
        "name": OWNER.name,
        "uid": OWNER.uid,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_all_objects_and_pods_of_an_attempt_carry_its_labels(kind):
    job = describe(spec("all"), "base_train", 3)
    objects = render(job, kind)
    assert job.labels["nanochat.dev/attempt"] == "3"
    for labels in [o["metadata"]["labels"] for o in objects] + [
        t["metadata"]["labels"] for _, t in pod_templates(*objects)
    ]:
        assert labels.items() >= job.labels.items()


def test_the_hash_is_of_what_the_job_does_and_not_of_the_attempt():
    found = spec("all")
    first = describe(found, "base_train", 1)
    other = OwnerReference(api_version="v1", kind="Pod", name="p", uid="u")
    assert describe(found, "base_train", 2, lease="l", owner=other).spec_hash == first.spec_hash
    for change in (
        {"nodes": 1},
        {"image": "nanochat/train:2"},
        {"grace_s": 10},
        {"env": {}},
        {"queue": None},
    ):
        changed = RunSpec.model_validate(ALL | change)
        assert describe(changed, "base_train", 1).spec_hash != first.spec_hash
    assert describe(found, "mid_train", 1).spec_hash != first.spec_hash


def test_each_stage_gets_what_it_computes_on():
    classes = {stage.name: stage_class(stage) for stage in STAGES}
    assert {name for name, kind in classes.items() if kind == "ranks"} == {
        "base_train",
        "mid_train",
        "chat_sft",
    }
    assert {name for name, kind in classes.items() if kind == "model"} == {
        "base_eval",
        "mid_eval",
        "chat_eval",
    }
    shapes = {}
    for name in classes:
        job = describe(spec("all"), name, 1)
        shapes[classes[name]] = (job.nodes, job.ranks_per_node, job.gpus, job.limits.get("nvidia.com/gpu"))
        assert ("nvidia.com/gpu.product" in job.node_selector) == (job.gpus > 0)
        assert job.node_selector["pool"] == "gpu"
    assert shapes == {"ranks": (2, 8, 8, "8"), "model": (1, 1, 1, "1"), "plain": (1, 1, 0, None)}


@pytest.mark.parametrize(
    ("changes", "stage", "wanted"),
    [
        ({}, "base_train", {"cpu": "80", "memory": "512Gi", "nvidia.com/gpu": "8"}),
        ({}, "base_eval", {"cpu": "10", "memory": "64Gi", "nvidia.com/gpu": "1"}),
        ({}, "data", {"cpu": "8", "memory": "32Gi"}),
        ({"gpus": 4}, "base_train", {"cpu": "40", "memory": "256Gi", "nvidia.com/gpu": "4"}),
        ({"resources": {"cpu": "96"}}, "base_train", {"cpu": "96", "memory": "512Gi", "nvidia.com/gpu": "8"}),
        ({"resources": {"cpu": "96"}}, "base_eval", {"cpu": "12", "memory": "64Gi", "nvidia.com/gpu": "1"}),
        ({"resources": {"memory": "16Gi"}}, "data", {"cpu": "8", "memory": "16Gi"}),
        ({"resources": {"memory": "1Ti"}}, "data", {"cpu": "8", "memory": "32Gi"}),
        (
            {"nodes": 2},
            "base_train",
            {"cpu": "80", "memory": "512Gi", "nvidia.com/gpu": "8", "rdma/rdma_shared_device_a": "1"},
        ),
        (
            {"nodes": 2, "resources": {"rdma": "none", "cpu": "1", "memory": "1Gi"}},
            "base_train",
            {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "8"},
        ),
        (
            {"nodes": 2, "resources": {"rdma": "rdma/ib"}},
            "mid_eval",
            {"cpu": "10", "memory": "64Gi", "nvidia.com/gpu": "1"},
        ),
        (
            {"hardware": "cpu", "resources": {"cpu": "250m", "memory": "512Mi"}},
            "data",
            {"cpu": "250m", "memory": "512Mi"},
        ),
        ({"hardware": "cpu", "nproc": 2}, "base_train", {"cpu": "2", "memory": "8Gi"}),
        ({"hardware": "cpu", "nproc": 2}, "base_eval", {"cpu": "1", "memory": "4Gi"}),
    ],
)
def test_requests_come_from_the_hardware_profile_or_from_the_spec(changes, stage, wanted):
    job = describe(
        RunSpec.model_validate(LEAST | {"preset": "speedrun", "hardware": "8xh100"} | changes), stage, 1
    )
    assert job.requests == wanted
    assert job.limits == {name: amount for name, amount in wanted.items() if name != "cpu"}


def test_the_profile_s_environment_and_selector_can_be_replaced():
    changes = {
        "node_selector": {
            "nvidia.com/gpu.product": "",
            "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        }
    }
    job = describe(RunSpec.model_validate(ALL | changes), "base_train", 1)
    assert job.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert job.env["NCCL_DEBUG"] == "INFO"
    assert job.env["NCCL_IB_HCA"] == "mlx5"
    assert job.env["OMP_NUM_THREADS"] == "10"
    assert "NCCL_IB_HCA" not in describe(spec("8xa100"), "base_train", 1).env


def test_only_rdma_devices_are_named_to_nccl():
    tcp = describe(RunSpec.model_validate(ALL | {"resources": {"rdma": "none"}}), "base_train", 1)
    assert "NCCL_IB_HCA" not in tcp.env
    assert tcp.env["NCCL_SOCKET_IFNAME"] == "eth0"
    own = describe(RunSpec.model_validate(ALL | {"resources": {"rdma": "rdma/ib"}}), "base_train", 1)
    assert own.env["NCCL_IB_HCA"] == "mlx5"


def test_the_local_process_has_the_same_settings(tmp_path):
    job = describe(spec("cpu-2-nodes"), "base_train", 1)
    local = local_command(job, tmp_path)
    assert local.command[1:3] == ["-m", "nanochat.run.launch"]
    assert local.command[4] == str(tmp_path / "runs" / "smoke" / "base_train" / "config.json")
    assert json.loads(local.env["NANOCHAT_CONFIG"]) == json.loads(job.config)
    assert local.env["NANOCHAT_HOME"] == str(tmp_path)


@needs_crds
def test_a_claim_is_made_only_where_its_size_is_given():
    assert claim(spec("least")) is None
    made = claim(spec("all"))
    assert validate(made) == []
    assert made["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "2Ti"}},
        "storageClassName": "nfs",
    }


def test_an_unknown_kind_offers_the_nearest():
    with pytest.raises(ConfigError, match="unknown kind of job `pytorch`") as caught:
        render(describe(spec("least"), "data", 1), "pytorch")
    assert "pytorchjob" in caught.value.hint


def test_golden_files_are_the_ones_that_are_compared():
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(GOLDENS)
    for path in GOLDEN.glob("*.yaml"):
        assert load_all(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for golden_name in GOLDENS:
        (GOLDEN / f"{golden_name}.yaml").write_text(golden_text(golden_name), encoding="utf-8")


def test_a_pod_with_gpus_may_run_on_nodes_that_are_kept_for_them():
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}

    def tolerated(values, stage="base_train"):
        found = pod_template(describe(RunSpec.model_validate(values), stage, 1), KINDS["job"])["spec"]
        return found.get("tolerations", [])

    gpus = SPECS["1xh100"]
    spot = {"key": "spot", "operator": "Exists"}
    assert tolerated(gpus) == [taint]
    assert tolerated(gpus | {"tolerations": [spot]}) == [taint, spot]
    assert tolerated(gpus | {"tolerations": [{"operator": "Exists"}]}) == [{"operator": "Exists"}]
    assert tolerated(gpus, "tok_train") == tolerated(LEAST) == []

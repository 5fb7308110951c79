"""`manifests/`: every overlay builds with the real kubectl, is strict, and fits what the platform renders."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from nanochat_platform.hardware import NODES, quantity
from nanochat_platform.kube import names
from nanochat_platform.kube.jobs import describe
from nanochat_platform.kube.names import KINDS, app_labels, labels
from nanochat_platform.kube.pods import pod_template
from nanochat_platform.kube.render import training_runtime
from nanochat_platform.spec import FLAGS, RunSpec, Volume

from tests.cluster.harness.tools import kubectl
from tests.kube_cases import LEAST, SPECS, rendered, spec
from tests.pod_security import mutants, pod_templates, violations
from tests.schemas import load_all, needs_crds, validate

ROOT = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.parent for path in ROOT.glob("overlays/*/kustomization.yaml"))
KUSTOMIZATIONS = [ROOT / "base", *OVERLAYS]
OPERATOR = ROOT / "components" / "training-operator"


@pytest.fixture(scope="module")
def build():
    """Return a function that builds a folder with kustomize and finds its documents by kind and name."""
    tool, built = kubectl(), {}

    def build(folder: Path) -> dict[tuple[str, str], dict]:
        if folder not in built:
            done = subprocess.run(
                [tool, "kustomize", folder], capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stderr
            assert not done.stderr  # a deprecated field is a warning
            documents = load_all(done.stdout)
            built[folder] = {(d["kind"], d["metadata"]["name"]): d for d in documents}
            assert len(built[folder]) == len(documents)
        return built[folder]

    return build


pytestmark = [pytest.mark.rung_a, pytest.mark.timeout(360)]  # the first build downloads kubectl


@needs_crds
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_every_overlay_is_strict(build, folder):
    found = build(folder)
    assert {"Role", "ServiceAccount", "PersistentVolumeClaim", "NetworkPolicy"} <= {kind for kind, _ in found}
    for key, document in found.items():
        assert validate(document) == [], key


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_everything_with_a_namespace_is_in_one(build, folder):
    cluster_wide = {"Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue"}
    found = build(folder).values()
    wanted = "kubeflow" if folder.name.startswith("kfp") else "nanochat"
    assert {d["metadata"]["namespace"] for d in found if d["kind"] not in cluster_wide} == {wanted}
    subjects = [s for d in found if d["kind"] == "RoleBinding" for s in d["subjects"]]
    assert {subject["namespace"] for subject in subjects} == {wanted}


def test_the_names_are_those_that_the_platform_uses(build):
    found = build(ROOT / "base")
    accounts = {name for kind, name in found if kind == "ServiceAccount"}
    assert accounts == {names.TRAIN_ACCOUNT, names.SUBMIT_ACCOUNT, names.SERVE_ACCOUNT}
    assert ("PersistentVolumeClaim", Volume().claim) in found
    assert Volume().claim == names.CLAIM
    assert ("LocalQueue", "nanochat") in build(ROOT / "overlays" / "kueue")


@pytest.mark.parametrize("overlay", ["cpu", "kfp-cpu"])
def test_one_machine_gets_a_volume_that_it_can_have(build, overlay):
    claim = build(ROOT / "overlays" / overlay)["PersistentVolumeClaim", "nanochat-data"]["spec"]
    assert claim["accessModes"] == ["ReadWriteOnce"]
    assert claim["resources"]["requests"]["storage"] == "20Gi"


def test_the_example_of_a_spec_has_every_key():
    example = ROOT / "run.yaml"
    values = yaml.safe_load(example.read_text(encoding="utf-8"))
    nested = ("overrides", "volume", "resources")
    keys = {(key,) for key in values if key not in nested}
    keys |= {(key, inner) for key in nested for inner in values[key]}
    assert keys == set(FLAGS.values())
    assert RunSpec.load(example).nodes == 2


def test_the_namespace_enforces_the_restricted_standard(build):
    marked = build(ROOT / "base")["Namespace", "nanochat"]["metadata"]["labels"]
    levels = {mode: marked[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")}
    assert set(levels.values()) == {"restricted"}


def rules(role):
    """Return (group, resource, verb) of every single right."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_no_role_has_a_wildcard_a_secret_or_a_way_into_a_pod(build):
    for (kind, name), document in build(ROOT / "base").items():
        assert not kind.startswith("Cluster"), name
        if kind != "Role":
            continue
        for group, resource, verb in rules(document):
            assert "*" not in (group, resource, verb)
            assert resource not in ("secrets", "pods/exec", "pods/attach", "pods/portforward", "rolebindings")
        assert ("", "pods", "create") not in rules(document)


def test_each_account_has_its_rights_and_no_others(build):
    found = build(ROOT / "base")
    bound = {
        (subject["name"], document["roleRef"]["name"])
        for document in found.values()
        if document["kind"] == "RoleBinding"
        for subject in document["subjects"]
    }
    assert bound == {
        ("nanochat-submit", "nanochat-submit"),
        ("nanochat-submit", "nanochat-pipeline"),
        ("nanochat-train", "nanochat-guard"),
    }
    kinds = {(kind.group, kind.plural) for kind in KINDS.values()}
    submit = rules(found["Role", "nanochat-submit"])
    for group, plural in kinds | {("trainer.kubeflow.org", "trainingruntimes")}:
        needed = {"create", "delete", "get", "list", "patch", "watch"}
        assert {verb for g, r, verb in submit if (g, r) == (group, plural)} == needed
    guard = rules(found["Role", "nanochat-guard"])
    assert guard == {("coordination.k8s.io", "leases", "get"), *((g, p, "delete") for g, p in kinds)}
    assert rules(found["Role", "nanochat-pipeline"]) == {
        ("argoproj.io", "workflows", "get"),
        ("", "pods", "get"),
        ("", "pods", "patch"),
    }


def test_only_the_submitter_gets_a_token_by_itself(build):
    found = build(ROOT / "base")
    tokens = {
        d["metadata"]["name"]: d["automountServiceAccountToken"]
        for d in found.values()
        if d["kind"] == "ServiceAccount"
    }
    assert {name for name, mounted in tokens.items() if mounted} == {"nanochat-submit"}


def policies(found):
    return {name: document["spec"] for (kind, name), document in found.items() if kind == "NetworkPolicy"}


def test_all_traffic_is_denied_first(build):
    deny = policies(build(ROOT / "base"))["default-deny"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def selects(selector, marks):
    wanted = selector.get("matchLabels", {}).items() <= marks.items()
    return wanted and all(e["key"] in marks for e in selector.get("matchExpressions", []))


@pytest.mark.parametrize(
    ("marks", "allowed"),
    [
        (labels(run="r", stage="base_train", attempt=1), {"allow-dns", "allow-training"}),
        (labels(run="r", stage="data", attempt=1), {"allow-dns", "allow-training", "allow-download"}),
        (
            labels(run="r", stage="mid_train", attempt=1) | {names.GUARD: "true"},
            {"allow-dns", "allow-training", "allow-guard"},
        ),
        (app_labels("submit"), {"allow-dns", "allow-submit"}),
        ({"workflows.argoproj.io/workflow": "speedrun-x"}, {"allow-dns", "allow-pipeline"}),
        (
            app_labels("pipeline") | {names.STAGE: "data", "workflows.argoproj.io/workflow": "speedrun-x"},
            {"allow-dns", "allow-pipeline"},
        ),
        (app_labels("serve"), {"allow-dns"}),
    ],
)
def test_each_pod_gets_the_allows_that_it_needs_and_no_others(build, marks, allowed):
    found = policies(build(ROOT / "base"))
    assert {n for n, p in found.items() if selects(p["podSelector"], marks)} == {"default-deny", *allowed}


def test_each_allow_is_headed_by_who_may_talk_to_whom():
    text = (ROOT / "base" / "network.yaml").read_text(encoding="utf-8")
    parts = text.split("---\n")
    assert all(re.match(r"# .*<?--> .*", part) for part in parts[1:])


def test_the_overlays_change_what_they_say(build):
    base = build(ROOT / "base")
    cpu, h100, kueue, trainer, kfp = (
        build(ROOT / "overlays" / name) for name in ("cpu", "h100-8x", "kueue", "trainer", "kfp")
    )
    claim = ("PersistentVolumeClaim", "nanochat-data")
    assert base[claim]["spec"]["accessModes"] == h100[claim]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert cpu[claim]["spec"]["accessModes"] == ["ReadWriteOnce"]
    storage = {
        id(o): quantity(o[claim]["spec"]["resources"]["requests"]["storage"]) for o in (cpu, base, h100)
    }
    assert storage[id(cpu)] < storage[id(base)] < storage[id(h100)]
    assert set(h100) - set(base) == {("ResourceQuota", "nanochat-gpus")}
    assert {kind for kind, _ in set(kueue) - set(base)} == {"ResourceFlavor", "ClusterQueue", "LocalQueue"}
    assert set(trainer) - set(base) == {("TrainingRuntime", "nanochat")}
    assert ("Namespace", "nanochat") not in kfp
    for policy in policies(kfp).values():
        assert policy["podSelector"].get("matchLabels"), "it would cut off Kubeflow Pipelines' own pods"
    step = app_labels("pipeline") | {"workflows.argoproj.io/workflow": "speedrun-x"}
    found = {name for name, policy in policies(kfp).items() if selects(policy["podSelector"], step)}
    assert found == {"default-deny", "allow-dns", "allow-pipeline"}


@pytest.mark.parametrize("name", SPECS)
def test_the_queue_covers_all_that_a_job_asks_for(build, name):
    found = build(ROOT / "overlays" / "kueue")
    (group,) = found["ClusterQueue", "nanochat"]["spec"]["resourceGroups"]
    flavors = {
        f["name"]: {r["name"]: quantity(str(r["nominalQuota"])) for r in f["resources"]}
        for f in group["flavors"]
    }
    assert set(flavors) == {name for kind, name in found if kind == "ResourceFlavor"}
    for stage in ("data", "base_train", "base_eval"):
        job = describe(spec(name), stage, 1)
        flavor = "cpu" if not job.gpus else spec(name).hardware.split("x")[1]
        assert set(job.requests) <= set(group["coveredResources"])
        for resource, amount in job.requests.items():
            assert job.nodes * quantity(amount) <= flavors[f"nanochat-{flavor}"][resource]


def test_the_flavors_are_the_hardware_profiles(build):
    found = build(ROOT / "overlays" / "kueue")
    for machine, node in NODES.items():
        flavor = found["ResourceFlavor", f"nanochat-{machine}"]
        assert flavor.get("spec", {}).get("nodeLabels", {}) == node.selector


def test_the_shipped_runtime_is_the_one_that_the_platform_renders(build):
    runtime = build(ROOT / "overlays" / "trainer")["TrainingRuntime", "nanochat"]
    job = describe(RunSpec.model_validate(LEAST), "base_train", 1)
    wanted = training_runtime(pod_template(job, KINDS["trainjob"]), nodes=1)
    ours, theirs = (
        s["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
        for s in (runtime["spec"], wanted)
    )
    assert ours["metadata"]["labels"].items() <= theirs["metadata"]["labels"].items()
    shipped, rendered_ = ours["spec"]["containers"][0], theirs["spec"]["containers"][0]
    assert shipped["command"] == rendered_["command"][:3]
    assert all(variable in rendered_["env"] for variable in shipped["env"])
    for part in ("command", "env", "image", "resources"):
        del shipped[part], rendered_[part]
    shm = {"medium": "Memory", "sizeLimit": "8Gi"}
    next(v for v in theirs["spec"]["volumes"] if v["name"] == "shm")["emptyDir"] = shm
    assert ours["spec"] == theirs["spec"]
    del ours["spec"], theirs["spec"], ours["metadata"], theirs["metadata"]
    assert runtime["spec"] == wanted


def init_container(address="friday-base-train-1-master-0", tries=100):
    """Return the operator's init container as it fills in the template."""
    text = (OPERATOR / "initContainer.yaml").read_text(encoding="utf-8")
    values = {"MasterAddr": address, "InitContainerImage": "alpine:3.10", "MaxTries": str(tries)}
    (container,) = yaml.safe_load(re.sub(r"\{\{\.(\w+)\}\}", lambda m: values[m[1]], text))
    return container


def test_a_worker_with_the_operator_s_init_container_is_admitted():
    job = rendered("all", "pytorchjob", "base_train", guarded=True)[0]
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    worker["spec"]["initContainers"] = [init_container()]
    assert violations(worker) == []
    for mutant in mutants(worker):
        assert any(v.startswith(mutant.control) for v in violations(mutant.template)), mutant
    assert any(m.where == "init-pytorch" for m in mutants(worker))


@needs_crds
def test_the_init_container_template_is_a_container():
    pod = {"containers": [{"name": "c", "image": "i"}], "initContainers": [init_container()]}
    assert validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}) == []


def run_init(path, address, tries, tmp_path):
    command = init_container(address, tries)["command"]
    log = tmp_path / "termination-log"
    command[-1] = command[-1].replace("/dev/termination-log", str(log))
    done = subprocess.run(
        command,
        env={"PATH": f"{path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, log.read_text() if log.exists() else ""


def test_the_init_container_waits_for_the_name_and_says_when_it_gives_up(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    calls = tmp_path / "calls"
    (tools / "sleep").write_text("#!/bin/sh\n")
    (tools / "nslookup").write_text("#!/bin/sh\nexit 1\n")
    (tools / "getent").write_text(f'#!/bin/sh\necho x >>{calls}\n[ "$(wc -l <{calls})" -ge 3 ]\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    assert run_init(tools, "job-master-0", 1, tmp_path) == (0, "")
    assert calls.read_text().count("x") == 3
    (tools / "getent").write_text("#!/bin/sh\nexit 2\n")
    code, words = run_init(tools, "job-master-0", 1, tmp_path)
    assert code == 1
    assert words == "the master job-master-0 has no address after 10 s\n"


def test_the_operator_component_mounts_the_template_where_the_operator_looks(tmp_path):
    tool = kubectl()
    operator = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "training-operator"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "training-operator", "image": "operator"}]},
            },
        },
    }
    (tmp_path / "operator.yaml").write_text(yaml.safe_dump(operator))
    for file in OPERATOR.iterdir():
        component = tmp_path / "component" / file.name
        component.parent.mkdir(exist_ok=True)
        component.write_bytes(file.read_bytes())
    kustomization = {"namespace": "kubeflow", "resources": ["operator.yaml"], "components": ["component"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(
        [tool, "kustomize", tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    found = {d["kind"]: d for d in load_all(done.stdout)}
    assert all(validate(document) == [] for document in found.values())
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    (file,) = found["ConfigMap"]["data"]
    assert f"{mount['mountPath']}/{file}" == "/etc/config/initContainer.yaml"  # the operator's own default
    assert volume["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert mount["name"] == volume["name"]


def test_no_manifest_holds_a_pod_that_is_not_restricted(build):
    for folder in KUSTOMIZATIONS:
        for path, template in pod_templates(*build(folder).values()):
            assert violations(template) == [], path

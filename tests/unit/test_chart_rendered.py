"""The chart as the real helm renders it: strict schemas, Pod Security, and what each option does."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from nanochat_platform.ray_serve import ENVIRONMENT, UserConfig

from tests.charts import modules
from tests.charts.helm import (
    GOLDEN,
    GOLDEN_SETS,
    HelmError,
    all_options,
    notes,
    one,
    template,
    template_text,
    value_sets,
)
from tests.pod_security import pod_templates, violations
from tests.schemas import load_all, needs_crds, validate, validate_custom

pytestmark = pytest.mark.rung_a

RAY = {"mode": "rayservice"}
KEY = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"


@functools.cache
def rendered(name):
    """Return the objects of a value set; rendered once for all tests."""
    return template(value_sets()[name])


@functools.cache
def wrong(text):
    """Return what is wrong with an object, given as JSON: most objects are the same in most sets."""
    document = json.loads(text)
    if document["kind"] != "HTTPRoute":
        return validate(document)
    crds = modules.folder("sigs.k8s.io/gateway-api") / "config" / "crd" / "standard"
    (crd,) = load_all((crds / "gateway.networking.k8s.io_httproutes.yaml").read_text())
    return validate_custom(document, crd)


def serve_config(objects):
    return yaml.safe_load(one(objects, "RayService")["spec"]["serveConfigV2"])


def pod(objects):
    return one(objects, "Deployment")["spec"]["template"]


def worker(objects):
    (group,) = one(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group["template"]


def head(objects):
    return one(objects, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]


def env(container):
    return {item["name"]: item.get("value") for item in container["env"]}


@needs_crds
@modules.needs_go
@pytest.mark.parametrize("name", value_sets())
def test_every_object_of_every_value_set_is_what_kubernetes_takes(name):
    problems = {
        f"{document['kind']} {document['metadata']['name']}": found
        for document in rendered(name)
        if (found := wrong(json.dumps(document)))
    }
    assert not problems


@pytest.mark.parametrize("name", value_sets())
def test_every_pod_of_every_value_set_passes_restricted(name):
    templates = list(pod_templates(*rendered(name)))
    own = 2 if value_sets()[name].get("mode") == "rayservice" else 1
    assert len(templates) == own + 1, "helm's test is a pod, too"
    assert not {path: found for path, template in templates if (found := violations(template))}


@pytest.mark.parametrize("name", value_sets())
def test_no_pod_has_a_token_or_writes_where_it_need_not(name):
    for path, template_ in pod_templates(*rendered(name)):
        spec = template_["spec"]
        scales = "headGroupSpec" in path and value_sets()[name].get("autoscaling", {}).get("enabled", False)
        assert spec["automountServiceAccountToken"] is scales
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            for mount in container.get("volumeMounts", ()):
                assert mount["name"] not in ("data", "api-keys") or mount["readOnly"]


@pytest.mark.parametrize("name", GOLDEN_SETS)
def test_the_rendered_objects_are_those_of_the_golden_file(name):
    golden = (GOLDEN / f"{name}.yaml").read_text()
    assert template_text(value_sets()[name]) == golden, "run `python -m tests.charts` and read the diff"


def test_labels_reach_every_object_and_pod():
    objects = rendered("all-options")
    for item in [*objects, *(found for _, found in pod_templates(*objects))]:
        if item.get("metadata", {}).get("name", "").endswith("-extra"):
            continue
        labels = item["metadata"]["labels"]
        assert labels["team"] == "research"
        assert labels["app.kubernetes.io/name"] == "nanochat"
        assert labels["app.kubernetes.io/instance"] == "chat"


def test_what_is_selected_never_depends_on_values_that_may_change():
    selectors = [
        one(objects, kind)["spec"]["selector"]
        for objects in (rendered("default"), rendered("all-options"))
        for kind in ("Deployment", "PodDisruptionBudget")
    ]
    assert all(selector == selectors[0] for selector in selectors)
    assert one(rendered("default"), "Service")["spec"]["selector"] == selectors[0]["matchLabels"]


def test_the_server_is_told_what_the_values_say():
    container = pod(rendered("all-options"))["spec"]["containers"][0]
    assert container["command"] == ["tini", "--", "nanochat", "serve"]
    assert container["args"] == [
        "--host=0.0.0.0",
        "--port=8000",
        "--model=speedrun/chat_rl-480",
        "--name=d20",
        "--max-running=64",
        "--grace-s=120",
        "--lame-duck-s=15",
        "--api-keys=/etc/nanochat/api-keys/keys",
    ]
    assert container["image"].endswith("@" + all_options()["image"]["digest"])


def test_every_argument_of_the_server_is_an_option_of_the_command():
    surface = (Path(__file__).parents[1] / "surface" / "cli.txt").read_text()
    known = surface.partition("nanochat serve\n")[2].partition("\nnanochat ")[0]
    for name in ("default", "all-options"):
        for argument in pod(rendered(name))["spec"]["containers"][0]["args"]:
            assert f"  {argument.partition('=')[0]} " in known


@pytest.mark.parametrize("name", [name for name in value_sets() if "ray" in name])
def test_every_user_config_is_one_that_the_replica_takes(name):
    (application,) = serve_config(rendered(name))["applications"]
    assert application["import_path"] == "nanochat_platform.ray_serve:app"
    (deployment,) = application["deployments"]
    assert deployment["name"] == "Chat"
    config = UserConfig.model_validate(deployment["user_config"], strict=False)
    model = value_sets()[name].get("model", {})
    assert (config.run, config.model) == (
        (None, model["folder"]) if model.get("folder") else (model.get("run") or "tiny", None)
    )


@pytest.mark.parametrize("name", [name for name in value_sets() if "ray" in name])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of pydantic
def test_the_serve_config_is_one_that_ray_takes(name):
    from ray.serve.schema import ServeDeploySchema

    taken = ServeDeploySchema.model_validate(serve_config(rendered(name)))
    assert len(taken.applications) == 1


def test_all_ray_processes_have_the_environment_of_the_application():
    for template_ in (head(rendered("rayservice")), worker(rendered("rayservice"))):
        found = env(template_["spec"]["containers"][0])
        assert {name: found.get(name) for name in ENVIRONMENT} == ENVIRONMENT


def test_nothing_is_served_by_the_head_and_one_replica_by_each_worker():
    objects = rendered("ray-gpu")
    spec = one(objects, "RayService")["spec"]
    assert spec["excludeHeadPodFromServeSvc"] is True
    assert spec["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (deployment,) = serve_config(objects)["applications"][0]["deployments"]
    assert group["replicas"] == deployment["num_replicas"] == 4
    assert group["rayStartParams"]["num-cpus"] == str(deployment["ray_actor_options"]["num_cpus"])
    assert deployment["ray_actor_options"]["num_gpus"] == 1
    assert "data" not in {volume["name"] for volume in head(objects)["spec"]["volumes"]}


@pytest.mark.parametrize("name", ["default", "all-options"])
def test_a_stopping_pod_has_longer_than_its_server_needs(name):
    spec = pod(rendered(name))["spec"]
    args = dict(argument.split("=", 1) for argument in spec["containers"][0]["args"])
    needs = float(args["--lame-duck-s"]) + float(args["--grace-s"])
    assert spec["terminationGracePeriodSeconds"] > needs + 5  # seconds that uvicorn lingers


def test_an_old_ray_cluster_outlives_its_streams():
    spec = one(rendered("rayservice"), "RayService")["spec"]
    (deployment,) = serve_config(rendered("rayservice"))["applications"][0]["deployments"]
    grace = deployment["graceful_shutdown_timeout_s"]
    assert spec["rayClusterDeletionDelaySeconds"] >= grace
    container = worker(rendered("rayservice"))["spec"]["containers"][0]
    assert int(env(container)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > grace


def test_a_change_of_the_keys_rolls_the_pods_and_a_new_version_of_the_chart_does_not():
    first = pod(template({"apiKeys": {"hashes": [KEY]}}))
    second = pod(template({"apiKeys": {"hashes": [hashlib.sha256(b"beta").hexdigest()]}}))
    assert first["metadata"]["annotations"] != second["metadata"]["annotations"]
    assert "helm.sh/chart" not in json.dumps(first)


def test_a_model_of_another_run_changes_the_application_and_not_the_ray_cluster():
    first, second = (one(template({**RAY, "model": {"run": run}}), "RayService")["spec"] for run in "ab")
    assert first["serveConfigV2"] != second["serveConfigV2"]
    assert first["rayClusterConfig"] == second["rayClusterConfig"]


def test_keys_are_in_a_secret_and_only_as_hashes():
    objects = rendered("keys")
    secret = one(objects, "Secret")
    assert secret["stringData"] == {"keys": f"{KEY}\n"}
    volumes = {volume["name"]: volume for volume in pod(objects)["spec"]["volumes"]}
    assert volumes["api-keys"]["secret"]["secretName"] == secret["metadata"]["name"]
    test = one(objects, "Pod")["spec"]["containers"][0]
    references = [item.get("valueFrom", {}).get("secretKeyRef") for item in test["env"]]
    assert {"name": "plain", "key": "key"} in references


def test_replicas_are_left_to_the_autoscaler():
    objects = rendered("autoscaled")
    assert "replicas" not in one(objects, "Deployment")["spec"]
    target = one(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
    assert target == one(objects, "Deployment")["metadata"]["name"]
    with pytest.raises(HelmError, match="needs a figure to aim at"):
        template({"autoscaling": {"enabled": True, "targetCPU": 0}})


def test_ray_scales_by_itself():
    objects = rendered("ray-autoscaled")
    assert not [item for item in objects if item["kind"] == "HorizontalPodAutoscaler"]
    (group,) = one(objects, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 3)
    (deployment,) = serve_config(objects)["applications"][0]["deployments"]
    assert "num_replicas" not in deployment
    assert deployment["autoscaling_config"]["target_ongoing_requests"] == 6


def test_ray_serves_with_one_replica_at_least():
    with pytest.raises(HelmError, match="Ray Serve has at least one"):
        template({**RAY, "replicas": 0})


def test_a_budget_never_asks_for_less_than_nothing():
    assert one(rendered("ray-many"), "PodDisruptionBudget")["spec"]["minAvailable"] == 0


def test_a_created_volume_is_kept_and_an_existing_one_is_not_touched():
    (claim,) = [item for item in rendered("new-volume") if item["kind"] == "PersistentVolumeClaim"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not [item for item in rendered("default") if item["kind"] == "PersistentVolumeClaim"]


@pytest.mark.parametrize(
    ("ingress", "route"), [("ingress", "route"), ("ray-ingress", "ray-route")], ids=["deployment", "ray"]
)
def test_ingress_and_route_lead_to_the_service_of_the_mode(ingress, route):
    rule = one(rendered(ingress), "Ingress")["spec"]["rules"][0]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    (reference,) = one(rendered(route), "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": reference["name"], "port": {"number": reference["port"]}}
    objects = rendered(ingress)
    if ingress.startswith("ray"):
        service = one(objects, "RayService")["spec"]["serveService"]
    else:
        service = one(objects, "Service")
    assert service["metadata"]["name"] == reference["name"]
    assert service["spec"]["ports"][0]["port"] == reference["port"]


def test_a_route_without_a_gateway_is_refused():
    with pytest.raises(HelmError, match=r"httpRoute\.parentRefs is empty"):
        template({"httpRoute": {"enabled": True}})


def reaches(policies, pod_labels, port):
    """Return whether everybody may reach a port of a pod under these policies."""
    chosen = [
        p["spec"] for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= pod_labels.items()
    ]
    assert all("Ingress" in spec["policyTypes"] for spec in chosen)
    if not chosen:
        return True
    rules = [rule for spec in chosen for rule in spec.get("ingress", ())]
    ports = [p["port"] for rule in rules if "from" not in rule for p in rule.get("ports", ())]
    return port in ports


@pytest.mark.parametrize("name", ["default", "rayservice"])
def test_only_the_api_port_is_open_to_everybody(name):
    policies = [item for item in rendered(name) if item["kind"] == "NetworkPolicy"]
    for path, template_ in pod_templates(*rendered(name)):
        labels = template_["metadata"]["labels"]
        serves = labels["app.kubernetes.io/component"] == "serve"
        for port in (8000, 8265, 6379, 10001, 8080, 9101, 8404, 30000, 52365):
            assert reaches(policies, labels, port) == (serves and port == 8000), (path, port)
    serving = one(rendered("default"), "NetworkPolicy", "chat-nanochat-serve")["spec"]
    assert "egress" not in serving, "a server calls nobody"


@pytest.mark.parametrize(
    ("release", "override"),
    [("1", ""), ("chat", "9.lives"), ("chat", "a" * 80), ("b" * 53, ""), ("nanochat", "")],
)
@pytest.mark.parametrize("mode", ["deployment", "rayservice"])
def test_any_release_name_becomes_names_that_services_and_kuberay_take(release, override, mode):
    objects = template({"mode": mode, "fullnameOverride": override}, release=release)
    main = one(objects, "RayService" if mode == "rayservice" else "Deployment")
    name = main["metadata"]["name"]
    assert len(name) <= 47
    assert name[0].isalpha()
    assert not [problem for item in objects if item is not main for problem in validate(item)]


@pytest.mark.parametrize(
    "name", ["default", "rayservice", "keys", "load-balancer", "ray-load-balancer", "prompt"]
)
def test_the_notes_give_commands_that_a_shell_takes(name):
    text = notes(value_sets()[name])
    forward, curl = re.findall(r"^  (kubectl .* port-forward .*|curl .*)$", text, re.MULTILINE)
    ray = "ray" in name
    port = value_sets()[name].get("service", {}).get("port", 8000)
    service = "chat-nanochat-serve-svc" if ray else "chat-nanochat"
    assert forward == f"kubectl -n serving port-forward service/{service} 8000:{port} &"
    words = shlex.split(curl)
    assert ("authorization: Bearer $NANOCHAT_API_KEY" in words) == (name == "keys")
    body = json.loads(words[-1])
    assert body["model"] == "nanochat"
    wanted = value_sets()[name].get("test", {}).get("prompt", "Why is the sky blue?")
    assert body["messages"] == [{"role": "user", "content": wanted}]
    assert ("Anyone who reaches" in text) == (name != "keys")


def test_further_objects_may_use_template_functions():
    extra = one(rendered("all-options"), "ConfigMap", "team-chat-extra")
    assert extra["data"] == {"mode": "deployment"}


def test_containers_of_the_user_run_under_our_rules():
    spec = pod(rendered("all-options"))["spec"]
    sidecar = next(c for c in spec["containers"] if c["name"] == "proxy")
    assert sidecar["securityContext"] == spec["containers"][0]["securityContext"]
    assert sidecar["image"] == spec["containers"][0]["image"]
    assert spec["initContainers"][0]["image"] == "registry.example/tools:1"

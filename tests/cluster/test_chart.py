"""The chart on a real cluster: what the API server says of it, its life as a release, and that it serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.charts import modules
from tests.charts.helm import CHART, template, value_sets
from tests.cluster.harness.access import Access, KubectlError
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.host import HarnessError, poll, rung, say
from tests.cluster.harness.tools import kubectl
from tests.cluster.own.images import serve_image
from tests.cluster.speedrun import Speedrun
from tests.cluster.streams import ASK, streaming
from tests.pod_security import mutants, pod_templates

CRDS = ("rayclusters", "rayservices", "servicemonitors", "podmonitors")
SMALL = {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}}
KEY_HASH = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"  # sha256 of "alpha"

T = TypeVar("T")


# The control plane: no node, pods stay Pending


@pytest.fixture(scope="module")
def kinds(control_plane: Access, operators: None) -> None:
    """Every kind that the chart may render is served."""
    control_plane.crds(*CRDS)
    route = "httproutes.gateway.networking.k8s.io"
    if not control_plane.serves(route):
        control_plane.need_own("installs the Gateway API's CRD")
        crds = modules.folder("sigs.k8s.io/gateway-api") / "config" / "crd" / "standard"
        control_plane.apply(crds / "gateway.networking.k8s.io_httproutes.yaml")
        poll("the Gateway API to be served", lambda: control_plane.serves(route), timeout=30)


@pytest.fixture
def priority(control_plane: Access) -> Iterator[None]:
    """The priority class that the all-options values name: a pod of an unknown one is refused."""
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    control_plane.create(kind | {"metadata": {"name": "serving"}})
    yield
    control_plane.kubectl("delete", "priorityclass", "serving")


def accounts(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the service accounts that the pods among objects run as: a pod without its own is refused."""
    names = {o["spec"]["serviceAccountName"] for o in objects if o["kind"] == "Pod"} - {"default"}
    return [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}} for name in names]


def test_the_api_server_takes_every_value_set(
    control_plane: Access, kinds: None, priority: None, namespace: str
) -> None:
    sets = value_sets()

    def render(values: dict[str, Any]) -> list[dict[str, Any]]:
        return template(values, namespace=namespace)

    def judge(name: str, objects: list[dict[str, Any]]) -> None:
        answered = control_plane.apply(objects, namespace=namespace, server_dry_run=True)
        assert len(answered) == len(objects), name

    with rung(f"strict dry run of {len(sets)} value sets"), ThreadPoolExecutor(4) as pool:
        rendered = dict(zip(sets, pool.map(render, sets.values()), strict=True))
        control_plane.apply(accounts([*chain(*rendered.values())]), namespace=namespace)
        list(pool.map(judge, rendered, rendered.values()))


def bare(template_: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the pod of a template, without what only its controller or the operator would allow."""
    metadata = {"name": name, "labels": template_["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template_["spec"]}


@pytest.mark.parametrize("name", ["default", "rayservice"])
def test_a_restricted_namespace_admits_the_pods_and_refuses_every_mutant(
    control_plane: Access, namespace: str, name: str
) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "chat-nanochat"}}
    control_plane.create(account, namespace=namespace)
    for path, template_ in pod_templates(*template(value_sets()[name], namespace=namespace)):
        template_["spec"].pop("topologySpreadConstraints", None)
        control_plane.create(bare(template_, "pod"), namespace=namespace, server_dry_run=True)
        broken = [mutant for mutant in mutants(template_) if mutant.judged]
        pods = [bare(mutant.template, f"mutant-{index}") for index, mutant in enumerate(broken)]
        with pytest.raises(KubectlError) as refused:
            control_plane.create(pods, namespace=namespace, server_dry_run=True)
        found = re.findall(r'pods "(mutant-\d+)" is forbidden: violates PodSecurity', refused.value.stderr)
        admitted = {pod["metadata"]["name"] for pod in pods} - set(found)
        assert not admitted, (path, [broken[int(pod.split("-")[1])] for pod in admitted])


@dataclass(frozen=True)
class Release:
    """A helm release of the chart."""

    cluster: Access
    namespace: str
    name: str = "chat"

    def helm(self, *args: str, values: dict[str, Any] | None = None, timeout: float = 300) -> str:
        """Run helm on the release; values are written to a file."""
        files: list[str] = []
        if values is not None:
            path = self.cluster.scratch() / f"{self.namespace}.json"
            path.write_text(json.dumps(values))
            files = ["-f", str(path)]
        done = self.cluster.helm(*args, "--namespace", self.namespace, *files, timeout=timeout)
        return done.stdout

    def install(self, values: dict[str, Any], *args: str) -> str:
        return self.helm("upgrade", "--install", self.name, str(CHART), *args, values=values)

    def exists(self, kind: str, name: str) -> bool:
        return self.cluster.kubectl("get", kind, name, "-n", self.namespace, check=False).returncode == 0

    def owner(self, kind: str, name: str) -> dict[str, Any]:
        """Return the metadata of an object."""
        metadata: dict[str, Any] = self.cluster.get(kind, name, "-n", self.namespace)["metadata"]
        return metadata


def test_a_release_lives_and_its_volume_outlives_it(control_plane: Access, namespace: str) -> None:
    release = Release(control_plane, namespace)
    values: dict[str, Any] = {"storage": {"create": True, "size": "1Gi", "accessModes": ["ReadWriteOnce"]}}
    release.install(values)
    claim = release.owner("pvc", "nanochat-data")["uid"]
    first = control_plane.get("deployment", "chat-nanochat", "-n", namespace)
    pods = "app.kubernetes.io/component=serve"
    poll("a pod", lambda: control_plane.items("pods", "-n", namespace, "-l", pods), timeout=30)

    release.install(values | {"server": {"maxRunning": 3}, "apiKeys": {"hashes": [KEY_HASH]}})
    args = control_plane.get("deployment", "chat-nanochat", "-n", namespace)["spec"]["template"]["spec"]
    assert "--max-running=3" in args["containers"][0]["args"]
    assert release.exists("secret", "chat-nanochat-api-keys")

    release.helm("rollback", release.name, "1")
    back = control_plane.get("deployment", "chat-nanochat", "-n", namespace)
    assert back["spec"] == first["spec"]
    assert not release.exists("secret", "chat-nanochat-api-keys")

    release.helm("uninstall", release.name, "--wait")
    listed = control_plane.kubectl(
        "get", "all,pdb,networkpolicy,serviceaccount", "-n", namespace, "-o", "name"
    )
    left = set(listed.stdout.split()) - {"serviceaccount/default"}
    assert not {name for name in left if not name.startswith("pod/")}
    assert release.owner("pvc", "nanochat-data")["uid"] == claim

    release.install(values)
    assert release.owner("pvc", "nanochat-data")["uid"] == claim
    release.helm("uninstall", release.name)


def test_a_release_changes_its_mode_and_rolls_back(
    control_plane: Access, kuberay: None, namespace: str
) -> None:
    release = Release(control_plane, namespace)
    release.install({})
    release.install({"mode": "rayservice", "replicas": 2})
    assert not release.exists("deployment", "chat-nanochat")
    head = "ray.io/node-type=head,app.kubernetes.io/instance=chat"
    poll("the head pod", lambda: control_plane.items("pods", "-n", namespace, "-l", head), timeout=30)
    worker = "app.kubernetes.io/component=serve,ray.io/node-type=worker"

    def two_workers() -> bool:
        return len(control_plane.items("pods", "-n", namespace, "-l", worker)) == 2

    poll("two worker pods", two_workers, timeout=30)
    release.install(
        {"mode": "rayservice", "replicas": 2, "server": {"maxRunning": 2}}
    )  # no conflict with KubeRay

    def judged() -> dict[str, Any] | None:
        status = control_plane.get("pdb", "chat-nanochat", "-n", namespace)["status"]
        return status if status.get("expectedPods") == 2 else None

    conditions = poll("the disruption controller to count the workers", judged, timeout=30)["conditions"]
    assert "SyncFailed" not in [condition["reason"] for condition in conditions]

    release.helm("rollback", release.name, "1")
    assert release.exists("deployment", "chat-nanochat")
    assert release.exists("service", "chat-nanochat")
    poll("the Ray pods to go", lambda: not release.exists("rayservice", "chat-nanochat"), timeout=30)
    release.helm("uninstall", release.name)


def test_a_misspelt_value_changes_nothing(control_plane: Access, namespace: str) -> None:
    release = Release(control_plane, namespace)
    with pytest.raises(HarnessError, match="additional properties 'maxRuning' not allowed"):
        release.install({"server": {"maxRuning": 3}})
    assert "chat" not in release.helm("list", "-q")


# The node: real pods


@pytest.fixture(scope="module")
def tag(own: Cluster, cluster: Access) -> str:
    """The serve image is on the node; its tag."""
    with rung("serve image"):
        built = serve_image()
        own.import_image(built)
    return built.tag.partition(":")[2]


@dataclass(frozen=True)
class Place:
    """A namespace with a volume that holds a model, and the release that serves it."""

    release: Release
    image: dict[str, str]
    models: list[str]
    """Ids of the models on the volume, best first."""

    @property
    def cluster(self) -> Access:
        return self.release.cluster

    @property
    def namespace(self) -> str:
        return self.release.namespace

    def values(self, **values: Any) -> dict[str, Any]:
        """Return values for this cluster: small pods that have little time to stop."""
        small: dict[str, Any] = {"image": self.image, "model": {"run": "smoke"}, "resources": SMALL}
        small["server"] = {"maxRunning": 1, "graceSeconds": 10, "lameDuckSeconds": 4}
        small["ray"] = {"drainSeconds": 2, "head": {"resources": SMALL}}
        return small | {"shmSize": "256Mi"} | values

    def url(self, service: str) -> str:
        """Return the address of a Service; the test process reaches the cluster's addresses."""
        spec = self.cluster.get("service", service, "-n", self.namespace)["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def poll(self, what: str, condition: Callable[[], T | None], timeout: float) -> T:
        """Ask until the answer is true; where it does not come, the error tells how the pods are."""
        try:
            return poll(what, condition, timeout, interval=0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.state()}") from None

    def state(self) -> str:
        """Return what a person would look at first."""
        look = [
            ("get", "pods,rayservices", "-o", "wide"),
            (
                "get",
                "events",
                "--sort-by=.lastTimestamp",
                "-o",
                "custom-columns=:.involvedObject.name,:.message",
            ),
            ("logs", "-l", "app.kubernetes.io/instance=chat", "--all-containers", "--tail=40", "--prefix"),
        ]
        return "\n".join(
            self.cluster.kubectl(*args, "-n", self.namespace, check=False).stdout[-6000:] for args in look
        )

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods that serve."""
        labels = "app.kubernetes.io/instance=chat,app.kubernetes.io/component=serve"
        return self.cluster.items("pods", "-n", self.namespace, "-l", labels)


@pytest.fixture
def place(own: Cluster, cluster: Access, tag: str, speedrun: Speedrun) -> Iterator[Place]:
    with cluster.namespace("chart") as namespace:
        volume = cluster.volume(namespace, "nanochat-data")
        assert volume.path is not None
        shutil.copytree(speedrun.models, volume.path / "models")
        found = sorted(path.name for path in (speedrun.models / "smoke").iterdir())
        models = [f"smoke/{name}" for name in sorted(found, key=lambda name: not name.startswith("chat"))]
        place = Place(Release(cluster, namespace), {"tag": tag}, models)
        yield place
        place.release.helm("uninstall", "chat", "--wait", "--ignore-not-found")


def run_helm_test(place: Place) -> None:
    """Run `helm test`; its pod must have got an answer."""
    text = place.release.helm("test", "chat", "--logs", "--timeout", "120s")
    assert re.search("Phase: +Succeeded", text)
    assert f"{place.models[0]} answered, whole and streamed: " in text
    say(next(line for line in text.splitlines() if "answered, whole" in line))


def run_notes(place: Place) -> str:
    """Run the two commands of NOTES as they stand but for a free local port; return what curl printed."""
    notes = place.release.helm("get", "notes", "chat")
    forward, curl = re.findall(r"^  (kubectl .* port-forward .*|curl .*)$", notes, re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forward = forward.removesuffix(" &").replace(" 8000:", f" {port}:")
    curl = curl.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    curl = curl.replace("curl -N", "curl -sSN --fail --retry 20 --retry-delay 1 --retry-connrefused")
    env = place.cluster.env | {"PATH": f"{kubectl().parent}:{os.environ['PATH']}"}
    with subprocess.Popen(forward.split(), env=env, stdout=subprocess.DEVNULL) as forwarding:
        try:
            done = subprocess.run(
                ["/bin/bash", "-c", curl], env=env, capture_output=True, text=True, timeout=60, check=False
            )
        finally:
            forwarding.terminate()
    assert done.returncode == 0, done.stderr
    say(f"$ {curl}\n{done.stdout[:600]}")
    return done.stdout


def test_a_deployment_serves_and_an_update_drops_no_stream(place: Place) -> None:
    with rung("chart, deployment: install until ready"):
        notes = place.release.install(place.values(), "--wait", "--timeout", "120s")
    say(notes)
    run_helm_test(place)
    assert run_notes(place).endswith("data: [DONE]\n\n")

    url = place.url("chat-nanochat")
    (before,) = place.pods()
    name = before["metadata"]["name"]
    follow = [str(kubectl()), "logs", "-f", name, "-n", place.namespace]
    with subprocess.Popen(follow, env=place.cluster.env, stdout=subprocess.PIPE, text=True) as logs:
        with rung("chart, deployment: rolling update under open streams"), streaming(url) as tally:
            place.poll("streams to end well before the update", lambda: tally.finished >= 4, timeout=60)
            changed = place.values(podAnnotations={"example.com/roll": "1"})
            place.release.install(changed, "--wait", "--timeout", "200s")
            place.poll("the old pod to go", lambda: not place.release.exists("pod", name), timeout=90)
            seen = tally.finished
            place.poll("streams of the new pod", lambda: tally.finished >= seen + 4, timeout=60)
        told = logs.communicate(timeout=20)[0]
    say(f"{tally.finished} streams finished, {len(tally.broken)} broken, {len(tally.refused)} refused")
    assert (tally.broken, tally.refused) == ([], [])
    drained = re.search(r"event=drain requests=(\d+)", told)
    assert drained is not None, "the old pod did not say that it drained"
    assert "drain_cut" not in told
    (after,) = place.pods()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


def test_a_damaged_model_is_never_served_and_the_pod_says_which_file(place: Place, own: Cluster) -> None:
    claim = place.cluster.get("pvc", "nanochat-data", "-n", place.namespace)["spec"]["volumeName"]
    path = Path(place.cluster.get("pv", claim)["spec"]["local"]["path"])
    folder = path / "models" / place.models[0]
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    place.release.install(place.values(model={"folder": place.models[0]}))

    def ended() -> dict[str, Any] | None:
        for pod in place.pods():
            for status in pod["status"].get("containerStatuses", ()):
                found = status["lastState"].get("terminated") or status["state"].get("terminated")
                if found:
                    return dict(found)
        return None

    last = place.poll("the server to give up", ended, timeout=90)
    assert last["exitCode"] == 65
    assert "model.safetensors" in last["message"]
    assert not any(
        c["status"] == "True" for c in place.pods()[0]["status"]["conditions"] if c["type"] == "Ready"
    )


def test_keys_lock_the_api_and_helm_test_uses_one(place: Place) -> None:
    place.cluster.create(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "plain"}, "stringData": {"key": "alpha"}},
        namespace=place.namespace,
    )
    keys = {"apiKeys": {"hashes": [KEY_HASH]}, "test": {"apiKeySecret": "plain"}}
    place.release.install(place.values(**keys), "--wait", "--timeout", "120s")
    url = place.url("chat-nanochat")
    assert httpx.post(f"{url}/v1/chat/completions", json=ASK).status_code == 401
    headers = {"authorization": "Bearer alpha"}
    assert httpx.post(f"{url}/v1/chat/completions", json=ASK, headers=headers).status_code == 200
    run_helm_test(place)


def ray_ready(place: Place, cluster_name: str | None = None) -> str:
    """Wait until the RayService serves (from another Ray cluster than the named one); return its cluster."""

    def ready() -> str | None:
        status = place.cluster.get("rayservice", "chat-nanochat", "-n", place.namespace).get("status", {})
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
        active = status.get("activeServiceStatus", {}).get("rayClusterName")
        return active if ready and active and active != cluster_name else None

    return place.poll("the RayService to be ready", ready, timeout=200)


@pytest.mark.timeout(600, func_only=True)
def test_ray_serves_swaps_its_model_and_an_update_drops_no_stream(place: Place, kuberay: None) -> None:
    values = place.values(mode="rayservice")
    with rung("chart, rayservice: install until ready"):
        place.release.install(values)
        first = ray_ready(place)
    run_helm_test(place)
    assert run_notes(place).endswith("data: [DONE]\n\n")
    url = place.url("chat-nanochat-serve-svc")
    (worker,) = place.pods()
    scraped = httpx.get(f"http://{worker['status']['podIP']}:30000/metrics").text
    assert "nanochat_ready 1.0" in scraped

    def served() -> str:
        return str(httpx.get(f"{url}/ready").json()["model"])

    with rung("chart, rayservice: another model in place"), streaming(url) as tally:
        assert served() == place.models[0]
        place.release.install(values | {"model": {"folder": place.models[1]}})
        place.poll("the other model", lambda: served() == place.models[1], timeout=90)
    assert (tally.broken, tally.refused) == ([], [])
    assert [pod["metadata"]["uid"] for pod in place.pods()] == [worker["metadata"]["uid"]]

    with rung("chart, rayservice: a second cluster takes over"), streaming(url) as tally:
        place.release.install(values | {"podAnnotations": {"example.com/roll": "1"}})
        ray_ready(place, first)
        gone = ("raycluster", first)
        place.poll("the first cluster to go", lambda: not place.release.exists(*gone), timeout=200)
        seen = tally.finished
        place.poll("streams of the second cluster", lambda: tally.finished >= seen + 4, timeout=60)
    say(f"{tally.finished} streams finished, {len(tally.broken)} broken, {len(tally.refused)} refused")
    assert (tally.broken, tally.refused) == ([], [])
    assert served() == place.models[0]

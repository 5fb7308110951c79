"""`doctor` over a loopback API: each finding with what mends it, and nothing claimed that was not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from nanochat_platform.kube.access import Access
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.doctor import CHECKS, Finding, Question, examine, worst
from nanochat_platform.kube.doctor_kfp import check_pipelines
from nanochat_platform.kube.transport import Transport

from tests.integration.loopback_api import LoopbackApi

DEPLOYMENTS = "/apis/apps/v1/namespaces/kubeflow/deployments"
ALL = [*CHECKS, check_pipelines]


class Open(LoopbackApi):
    """Answers what `doctor` asks beyond objects: version, rights, refusals, lists of all namespaces."""

    forbidden: tuple[str, ...] = ()
    minor = "36"
    restricted = False

    def _act(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        plural = path.rsplit("/", 1)[1]
        if path == "/version":
            return 200, {"gitVersion": f"v1.{self.minor}.3", "minor": self.minor}
        if plural == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            name = "/".join(asked[key] for key in ("resource", "subresource") if asked.get(key))
            return 201, {"status": {"allowed": name not in self.forbidden}}
        if plural in self.forbidden:
            message = f'{plural} is forbidden: User "ann" cannot list resource "{plural}"'
            return 403, {"reason": "Forbidden", "message": message}
        if method == "POST" and query.get("dryRun") and self.restricted:
            text = 'violates PodSecurity "restricted:latest": runAsNonRoot (container "init-pytorch")'
            return 403, {"reason": "Forbidden", "message": f'pods "x" is forbidden: {text}'}
        if (
            method == "GET" and path.count("/") in (4, 3) and "namespaces" not in path
        ):  # a collection of them all
            found = [v for p, v in self.objects.items() if p.rsplit("/", 2)[1] == plural]
            return 200, {"items": found, "metadata": {"resourceVersion": "1"}}
        return super()._act(method, path, query, body)


class Bench:
    def __init__(self) -> None:
        self.api = Open()
        self.transport = Transport(Access(server=self.api.url, source="a test", namespace="chat"))
        self.client = Client(self.transport, "chat", patience_s=0.0)
        self.put("/api/v1/namespaces/chat", "Namespace", {})
        ready = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"nvidia.com/gpu": "8"}}
        labels = {"nvidia.com/gpu.product": "H100"}
        self.put("/api/v1/nodes/n1", "Node", {"status": ready}, labels=labels)
        claim = {"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"}}
        self.put(
            "/api/v1/namespaces/chat/persistentvolumeclaims/nanochat-data", "PersistentVolumeClaim", claim
        )
        for name in ("pytorchjobs.kubeflow.org", "rayservices.ray.io"):
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
            self.put(
                path, "CustomResourceDefinition", {"spec": {"versions": [{"name": "v1", "served": True}]}}
            )
        self.deployment("training-operator", "reg/training-operator:v1.9.4")

    def put(self, path: str, kind: str, value: dict[str, Any], **meta: Any) -> None:
        self.api.put(path, {"kind": kind, "metadata": {"name": path.rsplit("/", 1)[1], **meta}, **value})

    def deployment(self, name: str, image: str, *, ready: int = 1, **container: Any) -> None:
        spec = {"template": {"spec": {"containers": [{"name": "x", "image": image, **container}]}}}
        value = {"spec": spec, "status": {"readyReplicas": ready}}
        self.put(f"{DEPLOYMENTS}/{name}", "Deployment", value, namespace="kubeflow")

    def find(self, **question: Any) -> dict[str, Finding]:
        found = list(examine(self.client, Question(**question), ALL))
        return {f"{f.check} {f.state}": f for f in found}


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.api:
        yield made
    made.transport.close()


def test_a_good_cluster(bench: Bench) -> None:
    found = list(examine(bench.client, Question(gpus=True, nodes=2), ALL))
    assert worst(found) is None
    texts = {finding.check: finding.text for finding in found if finding.state == "ok"}
    assert texts["api"].endswith("answers: Kubernetes v1.36.3")
    assert texts["rights"] == "you may submit, follow and cancel"
    assert texts["volume"] == "claim `nanochat-data` is Bound, ReadWriteMany"
    assert texts["nodes"] == "1 of 1 nodes ready, 8 x H100"
    assert texts["init container"] == "the namespace admits the training operator's init container"
    operator = "training operator: `pytorchjobs.kubeflow.org` v1 is served, training-operator"
    assert any(
        f.text.startswith(f"{operator} (training-operator:v1.9.4) in `kubeflow` is ready") for f in found
    )


def test_an_old_server_and_a_missing_namespace(bench: Bench) -> None:
    bench.api.minor = "28+"
    bench.api.remove("/api/v1/namespaces/chat")
    found = list(examine(bench.client, Question(), ALL))
    assert [(f.check, f.state) for f in found] == [("api", "warning"), ("namespace", "error")]
    error = worst(found)
    assert error is not None
    assert error.exit_code == 69
    assert error.message == "1 thing stands in the way of a run; the first: namespace `chat` does not exist"


def test_what_may_not_be_seen_is_unknown(bench: Bench) -> None:
    bench.api.forbidden = ("nodes", "customresourcedefinitions", "pods/log")
    found = bench.find(image="reg/t:1")
    assert found["nodes unknown"].text.startswith("not visible to you: cannot list nodes")
    assert found["kinds unknown"].text.startswith("not visible to you")
    assert found["rights error"].text == "you may not get pods/log in `chat`"
    assert "nanochat-submit" in found["rights error"].fix


def test_operators_that_are_missing_or_down(bench: Bench) -> None:
    bench.deployment("training-operator", "x:1", ready=0)
    found = bench.find()
    assert "is not ready" in found["kinds error"].text
    assert found["kinds unknown"].text.startswith("KubeRay: `rayservices.ray.io` v1 is served; no Deployment")
    assert "`workloads.kueue.x-k8s.io` is not served" in found["kinds warning"].text
    bench.api.forbidden = ("deployments",)
    assert "its operator is not visible to you" in bench.find()["kinds unknown"].text
    bench.api.forbidden = ()
    bench.api.remove("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pytorchjobs.kubeflow.org")
    assert (
        bench.find()["kinds error"].fix
        == "install training operator, or use --kind job, which needs no operator"
    )


@pytest.mark.parametrize(
    ("claim", "nodes", "state", "text"),
    [
        (
            {"spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}},
            1,
            "warning",
            "ReadWriteOnce",
        ),
        (
            {"spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Bound"}},
            2,
            "error",
            "ReadWriteOnce",
        ),
        ({"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Lost"}}, 1, "error", "is Lost"),
        (None, 1, "error", "does not exist; storage classes: `fast` (csi)"),
    ],
)
def test_volumes(bench: Bench, claim: Any, nodes: int, state: str, text: str) -> None:
    path = "/api/v1/namespaces/chat/persistentvolumeclaims/nanochat-data"
    bench.api.remove(path)
    bench.put("/apis/storage.k8s.io/v1/storageclasses/fast", "StorageClass", {"provisioner": "csi"})
    if claim is not None:
        bench.put(path, "PersistentVolumeClaim", claim)
    assert text in bench.find(nodes=nodes)[f"volume {state}"].text


def test_nodes_without_gpus_labels_or_readiness(bench: Bench) -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"nvidia.com/gpu": "4"}}
    bench.put("/api/v1/nodes/n1", "Node", {"status": ready})
    assert "GPU feature discovery" in bench.find()["nodes warning"].fix
    bench.put("/api/v1/nodes/n1", "Node", {"status": {**ready, "allocatable": {}}})
    assert "device plugin" in bench.find(gpus=True)["nodes error"].fix
    bench.put("/api/v1/nodes/n1", "Node", {"status": {"conditions": []}})
    assert bench.find()["nodes error"].text == "0 of 1 nodes ready, no GPU"


def test_an_image_that_a_node_has(bench: Bench) -> None:
    assert "no node has `reg/t:1` yet" in bench.find(image="reg/t:1")["image unknown"].text
    bench.put("/api/v1/nodes/n2", "Node", {"status": {"images": [{"names": ["reg/t:1"]}]}})
    assert bench.find(image="reg/t:1")["image ok"].text == "`reg/t:1` is on `n2`"


def test_the_training_operators_init_container(bench: Bench) -> None:
    bench.api.restricted = True
    refused = bench.find(nodes=2)["init container error"]
    assert refused.text.endswith("workers of two nodes will never start")
    assert "manifests/components/training-operator" in refused.fix
    bench.deployment("training-operator", "x:1", volumeMounts=[{"mountPath": "/etc/config"}])
    assert bench.find(nodes=2)["init container ok"].text.endswith("and the operator has another template")
    bench.deployment("training-operator", "x:1", args=["--pytorch-init-container-template-file=/x"])
    assert "init container ok" in bench.find(nodes=2)
    assert not any(check.startswith("init") for check in bench.find(nodes=2, kind="job"))


def test_pipelines(bench: Bench) -> None:
    assert "is not installed" in bench.find()["pipelines ok"].text
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workflows.argoproj.io"
    bench.put(path, "CustomResourceDefinition", {})
    assert bench.find()["pipelines error"].text == "no Argo workflow controller runs"
    bench.deployment("workflow-controller", "argo:4")
    defaults = {
        "data": {
            "workflowDefaults": "spec:\n  templateDefaults:\n    retryStrategy:\n      retryPolicy: OnError\n"
        }
    }
    bench.put("/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap", "ConfigMap", defaults)
    found = list(examine(bench.client, Question(), ALL))
    stock = [f.text for f in found if f.check == "pipelines" and f.state != "ok"]
    assert [text.split(" ")[0:3] for text in stock] == [
        ["Argo", "retries", "only"],
        ["Argo", "looks", "at"],
        ["metadata-grpc-service", "in", "`kubeflow`"],
    ]
    kubelets = [f for f in found if f.check == "kubelets"]
    assert [f.state for f in kubelets] == ["unknown"]
    bench.put(
        "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap", "ConfigMap", {"data": {}}
    )
    env = [{"name": "DEFAULT_REQUEUE_TIME", "value": "1s"}]
    bench.deployment("workflow-controller", "argo:4", env=env)
    endpoint = {"endpoints": [{"conditions": {"ready": True}}]}
    labels = {"kubernetes.io/service-name": "metadata-grpc-service"}
    path = "/apis/discovery.k8s.io/v1/namespaces/kubeflow/endpointslices/m"
    bench.put(path, "EndpointSlice", endpoint, labels=labels)
    found = list(examine(bench.client, Question(), ALL))
    assert [f.state for f in found if f.check == "pipelines"] == ["ok", "ok", "ok"]

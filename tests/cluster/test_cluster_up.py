"""The cluster itself: what it admits, what its controllers do, that pods run, that nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import build
from tests.cluster.harness.access import Access, KubectlError
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.figures import figure
from tests.cluster.harness.host import ROOT, cache_root, poll, say
from tests.cluster.harness.images import BASE_TAG, PAUSE_TAG, pause_image
from tests.cluster.harness.network import claim_slot

CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def python_pod(name: str, code: str, claim: str | None = None) -> dict[str, Any]:
    """Return a pod that `restricted` admits and that runs `code`; a claim appears at /data."""
    container: dict[str, Any] = {
        "name": "main",
        "image": BASE_TAG,
        "command": ["/usr/bin/tini", "--", "python3", "-c", code],
        "securityContext": CONTAINER_SECURITY,
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
    }
    if claim:
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        spec["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec,
    }


def pytorch_job(name: str, container: str = "pytorch") -> dict[str, Any]:
    """Return a PyTorchJob of one master and one worker."""
    pod = python_pod("unused", "pass")["spec"]
    del pod["restartPolicy"]
    pod["containers"][0]["name"] = container
    replica = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": pod}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": {"Master": replica, "Worker": replica}},
    }


# The control plane: no node, pods stay Pending


def test_serves_the_pinned_version(own: Cluster) -> None:
    served = json.loads(own.kubectl("version", "-o", "json").stdout)["serverVersion"]["gitVersion"]
    assert served == build.module_version(build.KUBE, "k8s.io/kubernetes")


def test_unknown_field_is_refused(control_plane: Access, training_operator: None, namespace: str) -> None:
    job = pytorch_job("typo")
    job["spec"]["runPolicy"] = {"backofLimit": 1}
    with pytest.raises(
        KubectlError, match=r'strict decoding error: unknown field "spec.runPolicy.backofLimit"'
    ):
        control_plane.create(job, namespace=namespace, server_dry_run=True)


def test_operators_webhook_decides(control_plane: Access, training_operator: None, namespace: str) -> None:
    with pytest.raises(KubectlError, match=r"validator.pytorchjob.training-operator.kubeflow.org"):
        control_plane.create(pytorch_job("wrong", container="main"), namespace=namespace, server_dry_run=True)
    created = control_plane.create(pytorch_job("right"), namespace=namespace, server_dry_run=True)
    assert created == ["pytorchjob.kubeflow.org/right"]


def test_restricted_namespace_refuses_a_bare_pod(control_plane: Access, namespace: str) -> None:
    with pytest.raises(KubectlError, match=r"violates PodSecurity.*runAsNonRoot"):
        control_plane.kubectl("run", "bare", "--image=any", "-n", namespace)
    control_plane.create(python_pod("proper", "pass"), namespace=namespace, server_dry_run=True)


def labelled(access: Access, namespace: str, selector: str, count: int) -> Callable[[], list[str] | None]:
    """Return a condition: `count` pods of the selector exist."""

    def condition() -> list[str] | None:
        pods = access.items("pods", "-n", namespace, "-l", selector)
        return [pod["metadata"]["name"] for pod in pods] if len(pods) == count else None

    return condition


def test_training_operator_makes_pods(control_plane: Access, training_operator: None, namespace: str) -> None:
    control_plane.create(pytorch_job("ddp"), namespace=namespace)
    selector = "training.kubeflow.org/job-name=ddp"
    pods = poll("two pods of the job", labelled(control_plane, namespace, selector, 2), timeout=30)
    assert sorted(pods) == ["ddp-master-0", "ddp-worker-0"]


def test_trainer_makes_a_jobset_and_its_pods(control_plane: Access, trainer: None, namespace: str) -> None:
    pod = python_pod("unused", "pass")["spec"]
    pod["containers"][0]["name"] = "node"
    labels = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    template = {"metadata": {"labels": labels}, "spec": {"template": {"spec": pod}}}
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": "torch", "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": 2, "torch": {}},
            "template": {"spec": {"replicatedJobs": [{"name": "node", "template": template}]}},
        },
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "train"},
        "spec": {
            "runtimeRef": {
                "name": "torch",
                "kind": "TrainingRuntime",
                "apiGroup": "trainer.kubeflow.org",
            }
        },
    }
    control_plane.create([runtime, job], namespace=namespace)
    selector = "jobset.sigs.k8s.io/jobset-name=train"
    pods = poll("two pods of the JobSet", labelled(control_plane, namespace, selector, 2), timeout=30)
    assert {name.rsplit("-", 1)[0] for name in pods} == {"train-node-0-0", "train-node-0-1"}


def test_kuberay_makes_a_head_pod(control_plane: Access, kuberay: None, namespace: str) -> None:
    head = python_pod("unused", "pass")["spec"]
    head["containers"][0]["name"] = "ray-head"
    ray = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "serve"},
        "spec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {"rayStartParams": {}, "template": {"spec": head}},
        },
    }
    control_plane.create(ray, namespace=namespace)
    selector = "ray.io/cluster=serve,ray.io/node-type=head"
    (head_pod,) = poll("the head pod", labelled(control_plane, namespace, selector, 1), timeout=30)
    assert head_pod.startswith("serve-head")


def test_objects_outlive_the_api_server(own: Cluster, namespace: str) -> None:
    before = own.pid("apiserver")
    own.kill_component("apiserver")
    assert own.kubectl("get", "namespaces", check=False).returncode != 0
    own.start_component("apiserver")
    assert own.pid("apiserver") != before
    assert own.get("namespace", namespace)["status"]["phase"] == "Active"


# The node: real pods


def finished(access: Access, namespace: str, pod: str) -> Callable[[], str | None]:
    """Return a condition: the pod has ended; its phase."""

    def condition() -> str | None:
        phase = str(access.get("pod", pod, "-n", namespace)["status"]["phase"])
        return phase if phase in ("Succeeded", "Failed") else None

    return condition


def test_node_is_ready(own: Cluster, cluster: Access) -> None:
    figure("node Ready after the kubelet's start", own.node_ready_s)
    conditions = own.get("node", "node1")["status"]["conditions"]
    assert {"type": "Ready", "status": "True"}.items() <= conditions[-1].items()


def test_restricted_pod_writes_to_its_claim(cluster: Access, namespace: str) -> None:
    code = (
        "import os, pathlib\n"
        "pathlib.Path('/data/written').write_text(f'{os.getuid()} {os.getgroups()}')\n"
        "try: pathlib.Path('/root-write').touch()\n"
        "except OSError as error: print(error.strerror)\n"
    )
    volume = cluster.volume(namespace, "data")
    cluster.create(python_pod("writer", code, claim="data"), namespace=namespace)
    phase = poll("the writer to end", finished(cluster, namespace, "writer"), timeout=60)
    assert phase == "Succeeded"
    assert cluster.kubectl("logs", "writer", "-n", namespace).stdout == "Read-only file system\n"
    if volume.path is not None:
        assert (volume.path / "written").read_text() == "10001 [10001]"


def test_service_and_name_answer(cluster: Access, namespace: str) -> None:
    serve = (
        "import http.server, functools\n"
        "handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory='/etc/ssl')\n"
        "http.server.ThreadingHTTPServer(('', 8000), handler).serve_forever()\n"
    )
    port = {"name": "http", "port": 80, "targetPort": 8000}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [port]},
    }
    cluster.create([python_pod("web", serve), service], namespace=namespace)
    cluster.wait("pod/web", "-n", namespace, for_="condition=Ready")
    ask = (
        "import urllib.request, time\n"
        f"url = 'http://web.{namespace}.svc.cluster.local/openssl.cnf'\n"
        "deadline = time.monotonic() + 20\n"
        "while True:\n"
        "    try:\n"
        "        print(urllib.request.urlopen(url, timeout=5).status)\n"
        "        break\n"
        "    except OSError:\n"
        "        if time.monotonic() > deadline: raise\n"
        "        time.sleep(0.1)\n"
    )
    inside = cluster.kubectl("exec", "web", "-n", namespace, "--", "python3", "-c", ask)
    assert inside.stdout == "200\n"
    if isinstance(cluster, Cluster):
        address = cluster.get("service", "web", "-n", namespace)["spec"]["clusterIP"]
        with urllib.request.urlopen(f"http://{address}/openssl.cnf", timeout=5) as answer:
            assert answer.status == 200


def test_nothing_leaves_the_machine(own: Cluster, cluster: Access, namespace: str) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=10)"
    own.create(python_pod("escape", code), namespace=namespace)
    assert poll("the pod to end", finished(own, namespace, "escape"), timeout=60) == "Failed"
    assert "Network is unreachable" in own.kubectl("logs", "escape", "-n", namespace).stdout


def test_a_pod_outlives_every_component(own: Cluster, cluster: Access, namespace: str) -> None:
    own.create(python_pod("steady", "import time; time.sleep(600)"), namespace=namespace)
    own.wait("pod/steady", "-n", namespace, for_="condition=Ready")
    before = own.get("pod", "steady", "-n", namespace)["status"]["containerStatuses"][0]
    for name in ("containerd", "kubelet", "proxy", "coredns", "scheduler", "controller-manager", "etcd"):
        own.restart_component(name)
    answer = own.kubectl("exec", "steady", "-n", namespace, "--", "id", "-u")
    assert answer.stdout == "10001\n"
    after = own.get("pod", "steady", "-n", namespace)["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


# The end

CHILD = """
import sys
from tests.cluster.harness.cluster import Cluster
from tests.cluster.test_cluster_up import start_for_crash
start_for_crash()
"""


def start_for_crash() -> None:
    """Start a second cluster with a running pod, print its marks and wait for ever: to be killed."""
    cluster = Cluster()
    cluster.start("node")
    pod = python_pod("sleeper", "")
    pod["spec"]["containers"] = [
        {"name": "main", "image": PAUSE_TAG, "securityContext": CONTAINER_SECURITY, "volumeMounts": []}
    ]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "memory", "mountPath": "/memory"}]
    pod["spec"]["volumes"] = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
    poll(
        "the default account",
        lambda: cluster.kubectl("get", "serviceaccount", "default", check=False).returncode == 0,
        timeout=20,
    )
    cluster.create(pod)
    cluster.wait("pod/sleeper", for_="condition=Ready")
    assert cluster.sandbox.guard_pid is not None
    marks = {
        "pids": [*cluster.sandbox.pids(), cluster.sandbox.guard_pid],
        "link": cluster.slot.host_link,
        "cgroup": cluster.slot.cgroup,
        "work": str(cluster.slot.work),
        "prefix": cluster.slot.prefix,
    }
    print(json.dumps(marks), flush=True)
    signal.pause()


def mounts(marks: dict[str, Any]) -> list[str]:
    """Return the mounts of any process on this machine that belong to the cluster of `marks`."""
    found = []
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            found += [line for line in table.read_text().splitlines() if marks["work"] in line]
    return found


def control_groups(marks: dict[str, Any]) -> list[Path]:
    """Return the control groups of the cluster of `marks`."""
    root = Path("/sys/fs/cgroup")
    return [*root.glob(marks["cgroup"]), *root.glob(f"*/{marks['cgroup']}")]


def test_another_cache_gets_another_slot(
    own: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    slot = claim_slot()
    slot.lock.close()
    assert slot.number != own.slot.number
    assert Path("/sys/class/net", own.slot.host_link).exists()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_crash_leaves_nothing(own: Cluster, cluster: Access, sent: signal.Signals) -> None:
    pause_image()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            assert child.stdout is not None
            marks = json.loads(child.stdout.readline())
            assert marks["link"] != own.slot.host_link
            assert all(Path(f"/proc/{pid}").exists() for pid in marks["pids"])
            # Eight components, init, the guard; of the pod a shim and two containers.
            assert len(marks["pids"]) == 13
            assert mounts(marks)
            assert control_groups(marks)
            assert Path("/sys/class/net", marks["link"]).exists()
        finally:
            child.send_signal(sent)
    poll(
        "its processes to end",
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in marks["pids"]),
        timeout=30,
    )
    assert mounts(marks) == []
    assert control_groups(marks) == []
    assert not Path("/sys/class/net", marks["link"]).exists()
    assert not (Path(marks["work"]) / "state").exists()
    routes = subprocess.run(["/usr/sbin/ip", "route"], capture_output=True, text=True, check=True).stdout
    assert marks["prefix"] not in routes
    assert own.kubectl("get", "--raw", "/readyz").stdout == "ok"
    assert cache_root() in Path(marks["work"]).parents


def test_memory(own: Cluster, cluster: Access) -> None:
    running = ("pods", "-A", "--field-selector", "status.phase=Running")
    poll("the pods of other tests to go", lambda: not own.items(*running), timeout=120)
    used = own.pss()
    say("PSS in MB: " + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in used.items()))
    figure("memory of the whole cluster idle, sum of PSS", used["total"] / 1e9, "GB")
    components = {"etcd", "apiserver", "controller-manager", "scheduler", "kubelet", "containerd", "proxy"}
    assert components <= used.keys()
    assert used["total"] == sum(size for name, size in used.items() if name != "total")

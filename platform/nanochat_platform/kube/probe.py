"""What only a real pod can show: an image is pulled, its user is a number, workers of two nodes are made.

Makes objects named `nanochat-probe-...` in the namespace and removes them whatever happens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from nanochat.errors import NanochatError
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.doctor import Finding, Question
from nanochat_platform.kube.names import KINDS
from nanochat_platform.kube.refusals import refusal
from nanochat_platform.kube.resources import EVENTS, PODS, of_kind
from nanochat_platform.kube.symptoms import waiting

PULL_S, WORKER_S, LOOK_S = 300.0, 20.0, 0.5
_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
_POD_SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def probe(
    client: Client,
    question: Question,
    *,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Finding]:
    """Yield what real pods show about the image and about workers."""
    if question.image is not None:
        yield _image(client, question.image, wait, clock)
    if question.kind == "pytorchjob" and question.nodes > 1:
        yield _worker(client, wait, clock)


def _pod(name: str, image: str) -> dict[str, Any]:
    container = {
        "name": "probe",
        "image": image,
        "command": ["python", "-c", "import nanochat_platform"],
        "securityContext": _SECURITY,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": _POD_SECURITY,  # no runAsUser: the image's own user must be a number
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _image(
    client: Client, image: str, wait: Callable[[float], object], clock: Callable[[], float]
) -> Finding:
    name = f"nanochat-probe-{secrets.token_hex(3)}"
    client.create(PODS, _pod(name, image))
    began = clock()
    try:
        while clock() - began < PULL_S:
            pod = client.get(PODS, name) or {}
            phase = (pod.get("status") or {}).get("phase")
            if phase == "Succeeded":
                text = f"`{image}` was pulled and runs as a numeric user ({clock() - began:.0f} s)"
                return Finding("image", "ok", text)
            if phase == "Failed":
                return Finding(
                    "image", "error", f"`{image}` runs, but is not ours", "use the repository's `train` image"
                )
            cause = waiting(pod, client.items(EVENTS, fields=f"involvedObject.name={name}"))
            if cause is not None and cause.state == "stuck":
                return Finding("image", "error", cause.text, cause.fix)
            wait(LOOK_S)
        return Finding("image", "error", f"`{image}` was not running after {PULL_S:.0f} s", "see its events")
    finally:
        client.delete(PODS, name)


def _worker(client: Client, wait: Callable[[float], object], clock: Callable[[], float]) -> Finding:
    """Make a PyTorchJob that no node can take, and see whether its worker's pod is made."""
    name, kind = f"nanochat-probe-{secrets.token_hex(3)}", KINDS["pytorchjob"]
    template = _pod(name, "nanochat-probe")["spec"]
    del template["restartPolicy"]
    template["containers"][0]["name"] = kind.container
    template["nodeSelector"] = {"nanochat.dev/probe": "never"}
    replica = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": template}}
    spec = {
        "runPolicy": {"cleanPodPolicy": "All", "backoffLimit": 0},
        "pytorchReplicaSpecs": {"Master": replica, "Worker": replica},
    }
    job = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name}, "spec": spec}
    client.create(of_kind(kind), job)
    began = clock()
    try:
        while clock() - began < WORKER_S:
            if client.get(PODS, f"{name}-worker-0") is not None:
                return Finding("init container", "ok", "the training operator makes workers here")
            for event in client.items(EVENTS, fields=f"involvedObject.name={name}"):
                if event.get("reason") == "FailedCreatePod":
                    error: NanochatError = refusal(
                        str(event.get("message", "")),
                        what="create a worker's pod",
                        namespace=client.namespace,
                        forbidden=False,
                    )
                    return Finding("init container", "error", error.message, error.hint or "")
            wait(LOOK_S)
        text = f"the training operator made no worker within {WORKER_S:.0f} s"
        return Finding("init container", "error", text, "see whether it runs and watches this namespace")
    finally:
        client.delete(of_kind(kind), name)

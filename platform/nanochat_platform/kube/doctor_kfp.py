"""What `doctor` looks at where Kubeflow Pipelines is installed: the settings that decide how steps end.

Reads only. Knows nothing of pipelines' contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nanochat.errors import ForbiddenError, NanochatError
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.doctor import Finding, Question
from nanochat_platform.kube.resources import (
    CONFIG_MAPS,
    CRDS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    PODS,
    Object,
    meta,
    name_of,
)

_LEASE = "the lease ends the job within 90 s all the same"


def check_pipelines(client: Client, question: Question) -> Iterator[Finding]:
    """Argo's retry policy and requeue time, the metadata store, and the way to the kubelets."""
    if client.get(CRDS, "workflows.argoproj.io") is None:
        yield Finding("pipelines", "ok", "Kubeflow Pipelines is not installed; `nanochat submit` needs none")
        return
    controllers = [
        d for d in client.items(DEPLOYMENTS, namespace=None) if "workflow-controller" in name_of(d)
    ]
    if not controllers:
        yield Finding("pipelines", "error", "no Argo workflow controller runs", "install Kubeflow Pipelines")
        return
    where = str(meta(controllers[0], "namespace"))
    yield _retry_policy(client, where)
    yield _requeue(controllers[0])
    yield _metadata_store(client, where)
    yield from _kubelets(client)


def _retry_policy(client: Client, where: str) -> Finding:
    """Stock Kubeflow Pipelines 2.17 sets `retryPolicy: OnError`: no retry of a step that exits non-zero."""
    found = client.get(CONFIG_MAPS, "workflow-controller-configmap", namespace=where)
    text = "\n".join(str(value) for value in ((found or {}).get("data") or {}).values())
    if re.search(r"retryPolicy:\s*\"?OnError", text):
        return Finding(
            "pipelines",
            "warning",
            "Argo retries only its own errors (OnError): `set_retry` does nothing for a failed step",
            "our stages need nothing: their step makes the attempts; other pipelines need retryPolicy Always",
        )
    return Finding("pipelines", "ok", "Argo retries failed steps")


def _requeue(controller: Object) -> Finding:
    container = controller["spec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry.get("value", "") for entry in container.get("env") or []}
    time = env.get("DEFAULT_REQUEUE_TIME", "10s")
    if time in ("10s", ""):
        return Finding(
            "pipelines",
            "warning",
            "Argo looks at a workflow every 10 s: up to 20 s of waiting a stage",
            "set DEFAULT_REQUEUE_TIME=1s on the workflow controller",
        )
    return Finding("pipelines", "ok", f"Argo looks at a workflow every {time}")


def _metadata_store(client: Client, where: str) -> Finding:
    slices = client.items(
        ENDPOINT_SLICES, selector="kubernetes.io/service-name=metadata-grpc-service", namespace=where
    )
    ready = [e for s in slices for e in s.get("endpoints") or [] if (e.get("conditions") or {}).get("ready")]
    if ready:
        return Finding("pipelines", "ok", "the metadata store has an endpoint")
    return Finding(
        "pipelines",
        "error",
        f"metadata-grpc-service in `{where}` has no ready endpoint: steps cannot start",
        "look at its pod, and at the database behind it",
    )


def _kubelets(client: Client) -> Iterator[Finding]:
    """Read one line of a running pod's log: it travels from the API server to a kubelet."""
    running = client.items(PODS, fields="status.phase=Running")
    if not running:
        yield Finding("kubelets", "unknown", "no pod runs here, so the way to a kubelet is untried")
        return
    pod = running[0]
    container = pod["spec"]["containers"][0]["name"]
    path = PODS.path(client.namespace, name_of(pod), "log")
    try:
        client.raw(path, what="read a log", query={"container": container, "tailLines": "1"})
    except ForbiddenError:
        raise
    except NanochatError as error:
        yield Finding("kubelets", "error", f"the API server does not reach the kubelet: {error}", _LEASE)
        return
    yield Finding("kubelets", "ok", "the API server reaches the kubelet, so a terminated step is told")

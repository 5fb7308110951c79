"""Look a cluster over before anything is paid for: findings, each with what mends it.

Reads, and asks the server by dry runs; makes nothing unless it is told to probe. What the
caller may not see is `unknown`, never `ok`. Knows nothing of how findings are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.errors import ForbiddenError, NanochatError, UnavailableError
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.names import CLAIM, KINDS, apply_command
from nanochat_platform.kube.resources import (
    ACCESS_REVIEWS,
    CLAIMS,
    CRDS,
    DEPLOYMENTS,
    NAMESPACES,
    NODES,
    PODS,
    STORAGE_CLASSES,
    Object,
    annotation_of,
    meta,
    name_of,
)

State = Literal["ok", "warning", "error", "unknown"]
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_OLDEST_SIDECARS = 29
"""Kubernetes 1.29: native sidecars, which the lease guard is."""
_OPERATORS = {
    "pytorchjobs.kubeflow.org": ("training operator", "training-operator"),
    "trainjobs.trainer.kubeflow.org": ("Kubeflow Trainer", "kubeflow-trainer"),
    "rayservices.ray.io": ("KubeRay", "kuberay-operator"),
    "workloads.kueue.x-k8s.io": ("Kueue", "kueue-controller-manager"),
}
_NEEDED = {
    "jobs.batch": ("get", "list", "watch", "patch", "create", "delete"),
    "pods": ("list", "watch"),
    "pods/log": ("get",),
    "events": ("list",),
    "leases.coordination.k8s.io": ("get", "create", "patch", "delete"),
    "persistentvolumeclaims": ("get",),
    "services": ("list", "create", "patch", "delete"),
}
_TEMPLATE_FLAG, _TEMPLATE_FOLDER = "--pytorch-init-container-template-file", "/etc/config"
"""How the operator is given another template: by flag, or by a file at the flag's default."""
_ALWAYS_ADMITTED = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "container": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    check: str
    state: State
    text: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What the cluster is wanted for."""

    image: str | None = None
    claim: str = CLAIM
    nodes: int = 1
    kind: str = "pytorchjob"
    gpus: bool = False


Check = Callable[[Client, Question], Iterator[Finding]]


def examine(client: Client, question: Question, checks: Sequence[Check] | None = None) -> Iterator[Finding]:
    """Yield findings, the ones that everything else stands on first.

    Without an answering API server, or without the namespace, there is nothing more to look at.
    """
    for index, check in enumerate(CHECKS if checks is None else checks):
        findings = list(_guarded(check, client, question))
        yield from findings
        if index < FOUNDATIONS and any(finding.state == "error" for finding in findings):
            return


def _guarded(check: Check, client: Client, question: Question) -> Iterator[Finding]:
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        yield from check(client, question)
    except ForbiddenError as error:
        yield Finding(name, "unknown", f"not visible to you: {error.message}")
    except NanochatError as error:
        yield Finding(name, "error", error.message, error.hint or "")


def check_api(client: Client, question: Question) -> Iterator[Finding]:
    """The API server answers, and is new enough."""
    version = client.raw("/version", what="read the version").json()
    text = f"{client.transport.access.server} answers: Kubernetes {version.get('gitVersion', '?')}"
    minor = "".join(filter(str.isdigit, str(version.get("minor", "0")))) or "0"
    if int(minor) < _OLDEST_SIDECARS:
        fix = f"upgrade to 1.{_OLDEST_SIDECARS}: the lease guard is a native sidecar"
        yield Finding("api", "warning", text, fix)
    else:
        yield Finding("api", "ok", text)


def check_namespace(client: Client, question: Question) -> Iterator[Finding]:
    """The namespace exists; which Pod Security it enforces."""
    found = client.get(NAMESPACES, client.namespace)
    if found is None:
        yield Finding(
            "namespace",
            "error",
            f"namespace `{client.namespace}` does not exist",
            f"create it (`kubectl create namespace {client.namespace}`), or choose another --namespace",
        )
        return
    level = meta(found, "labels", {}).get("pod-security.kubernetes.io/enforce", "privileged")
    yield Finding("namespace", "ok", f"`{client.namespace}` exists and enforces Pod Security `{level}`")


def check_kinds(client: Client, question: Question) -> Iterator[Finding]:
    """Which APIs are served, and whether their operators run, in which version."""
    crds = {name_of(crd): crd for crd in client.items(CRDS)}
    try:
        deployments = client.items(DEPLOYMENTS, namespace=None)
    except ForbiddenError:
        deployments = None
    wanted = KINDS[question.kind].resource
    for resource, (title, name) in _OPERATORS.items():
        crd = crds.get(resource)
        if crd is None:
            state: State = "error" if resource == wanted else "warning"
            fix = f"install {title}, or use --kind job, which needs no operator" if state == "error" else ""
            yield Finding("kinds", state, f"{title}: `{resource}` is not served", fix)
            continue
        served = [v["name"] for v in (crd.get("spec") or {}).get("versions") or [] if v.get("served")]
        yield _operator(title, name, f"`{resource}` {', '.join(served)}", deployments)


def _operator(title: str, name: str, served: str, deployments: Sequence[Object] | None) -> Finding:
    if deployments is None:
        return Finding("kinds", "unknown", f"{title}: {served} is served; its operator is not visible to you")
    found = next((d for d in deployments if name_of(d).startswith(name)), None)
    if found is None:
        text = f"{title}: {served} is served; no Deployment `{name}` was found, so it runs elsewhere or not"
        return Finding("kinds", "unknown", text, "make sure that the operator runs")
    containers = ((found.get("spec") or {}).get("template") or {}).get("spec", {}).get("containers") or [{}]
    image = str(containers[0].get("image", "?"))
    where = f"{name_of(found)} ({image.rsplit('/', 1)[-1]}) in `{meta(found, 'namespace')}`"
    if not (found.get("status") or {}).get("readyReplicas"):
        return Finding(
            "kinds",
            "error",
            f"{title}: {where} is not ready",
            "it reconciles nothing: `kubectl describe` its pod",
        )
    return Finding("kinds", "ok", f"{title}: {served} is served, {where} is ready")


def check_rights(client: Client, question: Question) -> Iterator[Finding]:
    """Whether the caller may do what submit, logs and cancel do."""
    needed = dict(_NEEDED)
    needed[KINDS[question.kind].resource] = _NEEDED["jobs.batch"]
    missing = []
    for resource, verbs in needed.items():
        missing += [f"{verb} {resource}" for verb in verbs if not _allowed(client, resource, verb)]
    if missing:
        yield Finding(
            "rights",
            "error",
            f"you may not {', '.join(missing)} in `{client.namespace}`",
            "bind the role `nanochat-submit` of `manifests/base` to your user",
        )
    else:
        yield Finding("rights", "ok", "you may submit, follow and cancel")


def _allowed(client: Client, resource: str, verb: str) -> bool:
    plural, _, group = resource.partition(".")
    plural, _, sub = plural.partition("/")
    asked = {"namespace": client.namespace, "verb": verb, "group": group, "resource": plural}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "metadata": {},
        "spec": {"resourceAttributes": asked | ({"subresource": sub} if sub else {})},
    }
    return bool((client.create(ACCESS_REVIEWS, body).get("status") or {}).get("allowed"))


def check_volume(client: Client, question: Question) -> Iterator[Finding]:
    """The volume claim, or the storage classes it could come from."""
    claim = client.get(CLAIMS, question.claim)
    if claim is None:
        yield from _classes(client, question)
        return
    modes = (claim.get("spec") or {}).get("accessModes") or []
    phase = (claim.get("status") or {}).get("phase", "?")
    text = f"claim `{question.claim}` is {phase}, {', '.join(modes)}"
    if question.nodes > 1 and "ReadWriteMany" not in modes:
        yield Finding("volume", "error", text, f"{question.nodes} nodes need ReadWriteMany")
    elif phase == "Lost":
        yield Finding("volume", "error", text, "its volume is gone: restore it")
    elif "ReadWriteMany" not in modes:
        yield Finding("volume", "warning", text, "runs on two nodes need ReadWriteMany")
    else:
        yield Finding("volume", "ok", text)


def _classes(client: Client, question: Question) -> Iterator[Finding]:
    text = f"claim `{question.claim}` does not exist"
    try:
        classes = client.items(STORAGE_CLASSES)
    except ForbiddenError:
        classes = []
    default = next((name_of(c) for c in classes if annotation_of(c, _DEFAULT_CLASS) == "true"), None)
    named = ", ".join(f"`{name_of(c)}` ({c.get('provisioner')})" for c in classes) or "none visible"
    fix = f"{apply_command(client.namespace)}, or give `volume.size` in the spec"
    if default is None:
        fix += " together with `volume.storage_class`, for no class is the default"
    yield Finding("volume", "error", f"{text}; storage classes: {named}", fix)


def check_nodes(client: Client, question: Question) -> Iterator[Finding]:
    """Nodes, ready or not, and their GPUs."""
    nodes = client.items(NODES)
    ready = [node for node in nodes if _ready(node)]
    gpus: dict[str, int] = {}
    for node in ready:
        count = ((node.get("status") or {}).get("allocatable") or {}).get("nvidia.com/gpu", "0")
        product = meta(node, "labels", {}).get("nvidia.com/gpu.product", "unlabelled")
        if count != "0":
            gpus[product] = gpus.get(product, 0) + int(count)
    held = ", ".join(f"{count} x {product}" for product, count in sorted(gpus.items())) or "no GPU"
    text = f"{len(ready)} of {len(nodes)} nodes ready, {held}"
    if not ready:
        yield Finding("nodes", "error", text, "no pod can start; an autoscaler may bring nodes")
    elif question.gpus and not gpus:
        yield Finding("nodes", "error", text, "install the NVIDIA device plugin, or use --hardware cpu")
    elif "unlabelled" in gpus:
        fix = "install GPU feature discovery: pods select GPUs by `nvidia.com/gpu.product`"
        yield Finding("nodes", "warning", text, fix)
    else:
        yield Finding("nodes", "ok", text)


def _ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def check_image(client: Client, question: Question) -> Iterator[Finding]:
    """Whether a node has the image, or pods of the namespace could not pull it."""
    if question.image is None:
        return
    here = [
        name_of(node)
        for node in client.items(NODES)
        for image in (node.get("status") or {}).get("images") or []
        if question.image in (image.get("names") or [])
    ]
    if here:
        yield Finding("image", "ok", f"`{question.image}` is on {', '.join(f'`{name}`' for name in here)}")
        return
    fix = "`nanochat doctor --probe` pulls it in a pod of its own"
    yield Finding("image", "unknown", f"no node has `{question.image}` yet; it would be pulled", fix)


def check_init_container(client: Client, question: Question) -> Iterator[Finding]:
    """Whether the namespace admits the init container that the training operator adds to workers."""
    if question.kind != "pytorchjob" or question.nodes == 1:
        return
    bare = {"name": "init-pytorch", "image": "alpine", "command": ["sh", "-c", "true"]}
    main = {"name": "pytorch", "image": "alpine", "securityContext": _ALWAYS_ADMITTED["container"]}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": _ALWAYS_ADMITTED["securityContext"],
        "initContainers": [bare],
        "containers": [main],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nanochat-doctor"}, "spec": spec}
    try:
        client.create(PODS, pod, dry_run=True)
    except NanochatError as error:
        if "init-pytorch" not in error.message and "init container" not in error.message:
            raise
        yield _template(client)
        return
    yield Finding("init container", "ok", "the namespace admits the training operator's init container")


def _template(client: Client) -> Finding:
    """Judge the operator's own settings, where they can be seen, in a namespace that refuses its default."""
    fix = "install it with `manifests/components/training-operator`, or use --kind job"
    text = f"`{client.namespace}` refuses the training operator's default init container"
    try:
        found = [d for d in client.items(DEPLOYMENTS, namespace=None) if name_of(d) == "training-operator"]
    except ForbiddenError:
        found = []
    if not found:
        return Finding("init container", "unknown", f"{text}; the operator's settings are not visible", fix)
    container = found[0]["spec"]["template"]["spec"]["containers"][0]
    arguments = [*(container.get("command") or []), *(container.get("args") or [])]
    mounts = [mount.get("mountPath", "") for mount in container.get("volumeMounts") or []]
    if any(_TEMPLATE_FLAG in argument for argument in arguments) or _TEMPLATE_FOLDER in mounts:
        return Finding("init container", "ok", f"{text}, and the operator has another template")
    return Finding("init container", "error", f"{text}: workers of two nodes will never start", fix)


FOUNDATIONS = 2
CHECKS: tuple[Check, ...] = (
    check_api,
    check_namespace,
    check_kinds,
    check_rights,
    check_volume,
    check_nodes,
    check_image,
    check_init_container,
)


def worst(findings: Sequence[Finding], *, shown: bool = False) -> NanochatError | None:
    """Return the error that `doctor` ends with, None when nothing stands in the way.

    `shown`: the findings were printed, each with its fix.
    """
    errors = [finding for finding in findings if finding.state == "error"]
    if not errors:
        return None
    found = "1 thing stands" if len(errors) == 1 else f"{len(errors)} things stand"
    if shown:
        return UnavailableError(
            f"{found} in the way of a run", hint="mend what is marked ERROR, then look again"
        )
    return UnavailableError(f"{found} in the way of a run; the first: {errors[0].text}", hint=errors[0].fix)

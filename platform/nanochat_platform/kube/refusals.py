"""What the API server's refusals mean: our errors, each with its exit code and what mends it.

Pure: answers in, errors out. Knows nothing of connections or retries.
"""

from __future__ import annotations

import re
from typing import Any

from nanochat.errors import (
    ConfigError,
    ForbiddenError,
    NanochatError,
    QuotaError,
    RunLockedError,
    UnavailableError,
)
from nanochat_platform.kube.names import apply_command
from nanochat_platform.kube.resources import NAMESPACES, Resource
from nanochat_platform.kube.transport import Answer

_INSTALL = {
    "kubeflow.org": (
        "the Kubeflow training operator",
        "install the training operator 1.9, or use `--kind job`, which needs no operator",
    ),
    "trainer.kubeflow.org": (
        "Kubeflow Trainer",
        "install Kubeflow Trainer v2, or use `--kind pytorchjob` or `--kind job`",
    ),
    "kueue.x-k8s.io": ("Kueue", "install Kueue, or leave `queue` out of the spec"),
}
_TRANSIENT = (429, 500, 502, 503, 504)
_USER = re.compile(r'User "([^"]*)" cannot (\w+) resource "([^"]*)"')
_QUOTA = re.compile(r"exceeded quota: ([^,]+), requested: (.*?), used: (.*?), limited: (.*)", flags=re.DOTALL)
_POD_SECURITY = re.compile(r'violates PodSecurity "([^":]+)[^"]*": (.*)', flags=re.DOTALL)
_WEBHOOK = re.compile(r'admission webhook "([^"]*)" denied the request: (.*)', flags=re.DOTALL)


class NotServedError(UnavailableError):
    """The cluster has no such kind of object."""


def transient(answer: Answer) -> bool:
    """Return whether the same request may succeed later without anybody's help."""
    return answer.status in _TRANSIENT


def is_missing(answer: Answer, resource: Resource | None = None) -> bool:
    """Return whether an answer says that one object, whose type and namespace exist, is not there."""
    status = answer.json()
    kind = (status.get("details") or {}).get("kind")
    elsewhere = kind == "namespaces" and resource != NAMESPACES
    return answer.status == 404 and status.get("reason") == "NotFound" and not elsewhere


def error_of(
    answer: Answer, *, what: str, resource: Resource | None = None, namespace: str | None = None
) -> NanochatError:
    """Return the error of an answer with a status >= 400.

    Args:
        answer: what the server said.
        what: the request in words, e.g. "create pytorchjob `smoke-data-1`".
        resource: the collection it was about.
        namespace: where.
    """
    status = answer.json()
    message = str(
        status.get("message") or answer.body.decode("utf-8", "replace").strip() or "no reason given"
    )
    if answer.status == 401:
        return ForbiddenError(
            f"cannot {what}: the API server does not accept these credentials",
            hint="log in to the cluster again, or choose another --context",
        )
    if answer.status == 404:
        return _not_found(status, message, what, resource, namespace)
    if answer.status == 409:
        return _conflict(status, message, what)
    if answer.status in (400, 403, 422):
        return refusal(message, what=what, namespace=namespace, forbidden=answer.status == 403)
    if "failed calling webhook" in message:
        name = message.split('"')[1] if '"' in message else "?"
        return UnavailableError(
            f"cannot {what}: the cluster's webhook `{name}` does not answer: {_tail(message)}",
            hint="the operator behind it is not running: `nanochat doctor` says which",
        )
    return UnavailableError(f"cannot {what}: the API server answered {answer.status}: {_first_line(message)}")


def refusal(message: str, *, what: str, namespace: str | None, forbidden: bool) -> NanochatError:
    """Return the error of a refusal by admission, validation or RBAC; also of one that an event reports."""
    if found := _QUOTA.search(message):
        quota, requested, used, limited = (part.strip() for part in found.groups())
        return QuotaError(
            f"cannot {what}: quota `{quota}` of namespace `{namespace}` allows {limited}; "
            f"{used} is used and {requested} is asked for",
            hint="stop other runs (`nanochat list`), ask for less, or have the quota raised",
        )
    if "failed quota" in message or "must specify" in message:
        return QuotaError(f"cannot {what}: {_first_line(message)}", hint="set `resources` in the spec")
    if "violates PodSecurity" in message:
        return pod_security(message, what)
    if "because it is being terminated" in message:
        return ConfigError(
            f"cannot {what}: namespace `{namespace}` is being deleted", hint="choose another --namespace"
        )
    if "error looking up service account" in message or (
        "serviceaccount" in message.lower() and "not found" in message
    ):
        return ConfigError(
            f"cannot {what}: {_first_line(message)}",
            hint=f"create the service accounts: {apply_command(namespace)}",
        )
    if "PriorityClass" in message:
        return ConfigError(
            f"cannot {what}: {_first_line(message)}",
            hint=f"create it ({apply_command(namespace)}) or leave `priority_class` out of the spec",
        )
    if found := _WEBHOOK.search(message):
        return ConfigError(
            f"cannot {what}: `{found[1]}` refuses it: {_first_line(found[2])}",
            hint="the cluster's own rules decide here; change the spec, or ask who runs the cluster",
        )
    if found := _USER.search(message):
        return ForbiddenError(
            f"cannot {what}: user `{found[1]}` may not {found[2]} {found[3]} in namespace `{namespace}`",
            hint="bind the role `nanochat-submit` of `manifests/base` to this user",
        )
    if forbidden:
        return ForbiddenError(f"cannot {what}: {_first_line(message)}")
    return ConfigError(f"cannot {what}: {_first_line(message)}")


def pod_security(message: str, what: str) -> ConfigError:
    """Return the error of pods that a namespace's Pod Security standard refuses; names whose fault it is."""
    found = _POD_SECURITY.search(message)
    level, broken = (found[1], _first_line(found[2])) if found else ("restricted", _first_line(message))
    if "init-pytorch" in message:
        return ConfigError(
            f"cannot {what}: the training operator's own init container violates Pod Security `{level}`",
            hint="install the operator with `manifests/components/training-operator`, or use `--kind job`; "
            "`nanochat doctor` checks it",
        )
    return ConfigError(
        f"cannot {what}: the pods violate Pod Security `{level}`: {broken}",
        hint="choose a namespace that admits them, or take out of the spec what breaks the rule",
    )


def _not_found(
    status: dict[str, Any], message: str, what: str, resource: Resource | None, namespace: str | None
) -> NanochatError:
    kind = (status.get("details") or {}).get("kind")
    if kind == "namespaces" or 'namespaces "' in message:
        return ConfigError(
            f"cannot {what}: namespace `{namespace}` does not exist",
            hint=f"create it: `kubectl create namespace {namespace}`, then {apply_command(namespace)}, "
            "or pass --namespace",
        )
    if status.get("reason") != "NotFound" or not kind:
        group = resource.group if resource is not None else ""
        title, hint = _INSTALL.get(group, ("what serves it", "see `nanochat doctor`"))
        label = resource.label if resource is not None else "it"
        return NotServedError(
            f"cannot {what}: this cluster has no `{label}`: {title} is not installed", hint=hint
        )
    return ConfigError(f"cannot {what}: {_first_line(message)}")


def _conflict(status: dict[str, Any], message: str, what: str) -> NanochatError:
    fields = [str(cause.get("field", "")) for cause in (status.get("details") or {}).get("causes") or []]
    differs = f"; it differs in `{fields[0]}`" if fields and fields[0] else ""
    if status.get("reason") == "AlreadyExists":
        return RunLockedError(f"cannot {what}: it exists already", hint="see `nanochat status`")
    if fields or "conflict" in message.lower():
        return RunLockedError(
            f"cannot {what}: it exists with another spec{differs}",
            hint="wait for it, stop it with `nanochat cancel`, or choose another --run",
        )
    return RunLockedError(f"cannot {what}: {_first_line(message)}")


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line if len(line) <= 400 else f"{line[:397]}..."


def _tail(text: str) -> str:
    """Return the innermost reason of a chain `a: b: c`."""
    return _first_line(text).rsplit(": ", 1)[-1]

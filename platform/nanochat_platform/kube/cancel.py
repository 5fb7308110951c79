"""Cancel: delete what a run, or one of its stages, has in the cluster, and see that it is gone.

Idempotent. The volume, and so every checkpoint, stays. Knows nothing of specs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from nanochat.errors import ForbiddenError, UnavailableError
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.facts import attempts
from nanochat_platform.kube.names import lease_name, selector
from nanochat_platform.kube.resources import LEASES, PODS, SERVICES, Object, Resource, meta, of_kind

LOOK_S = 0.1
RUNTIMES = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes")


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What was found and is gone."""

    jobs: tuple[str, ...]
    pods: int
    """Pods that were told to stop; they write a checkpoint and end within their grace period."""


def cancel(
    client: Client,
    run: str,
    stage: str | None = None,
    *,
    limit_s: float = 30.0,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Cancelled:
    """Delete a run's jobs and all that belongs to them; returns once they are gone and every pod is told.

    Raises:
        UnavailableError: something is still there after `limit_s`, e.g. held by a finalizer.
        NanochatError: the cluster refuses.
    """
    jobs: dict[str, None] = {}
    told: set[str] = set()
    stages: set[str] = set()
    ends = clock() + limit_s
    while True:
        left = attempts(client, run, stage)
        for attempt in left:
            jobs[attempt.name] = None
            stages.add(attempt.stage)
            if not meta(attempt.job, "deletionTimestamp"):
                client.delete(of_kind(attempt.kind), attempt.name)
        untold = _untold_pods(client, run, stage, told) if not left else []
        if not left and not untold:
            break
        if clock() > ends:
            names = ", ".join(f"`{attempt.name}`" for attempt in left) or f"{len(untold)} pods"
            raise UnavailableError(
                f"run `{run}`: {names} did not go within {limit_s:.0f} s",
                hint="a finalizer may hold it: `kubectl get -o yaml` shows which",
            )
        wait(LOOK_S)
    for name in {lease_name(run, found) for found in (*stages, stage) if found}:
        client.delete(LEASES, name)
    for resource in (LEASES, SERVICES, RUNTIMES):
        _sweep(client, resource, run, stage)
    return Cancelled(tuple(jobs), len(told))


def _untold_pods(client: Client, run: str, stage: str | None, told: set[str]) -> list[Object]:
    """Return the pods that nobody had told to stop, after telling them; the garbage collector would later."""
    ours = f"{selector(run, stage)},app.kubernetes.io/component=train"
    pods = client.items(PODS, selector=ours)
    told |= {str(meta(pod, "uid")) for pod in pods}
    untold = [pod for pod in pods if not meta(pod, "deletionTimestamp")]
    if untold:
        with contextlib.suppress(ForbiddenError):
            client.delete_all(PODS, selector=ours)
    return untold


def _sweep(client: Client, resource: Resource, run: str, stage: str | None) -> None:
    try:
        for item in client.items(resource, selector=selector(run, stage), optional=True):
            client.delete(resource, str(meta(item, "name")))
    except ForbiddenError:
        return  # they are owned by the jobs, or run out by themselves

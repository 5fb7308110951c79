"""Ask the cluster for what an explanation needs, and for the attempts of a run.

The requests of `explain`, `status` and `submit`. Knows nothing of what the answers mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanochat.errors import ForbiddenError, NanochatError, UnavailableError
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.explain import Facts, event_time
from nanochat_platform.kube.names import ATTEMPT, KINDS, RUN, SPEC_HASH, STAGE, Kind, Phase, selector
from nanochat_platform.kube.resources import (
    EVENTS,
    NODES,
    PODS,
    WORKLOADS,
    Object,
    label_of,
    meta,
    name_of,
    of_kind,
)

_LOST_NODE_S = 60.0
_EVENT_PODS = 8
"""Pods whose events are asked for, one request each: more of them say the same."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One job object of a run."""

    kind: Kind
    job: Object

    @property
    def name(self) -> str:
        """Name of the job object."""
        return name_of(self.job)

    @property
    def run(self) -> str:
        """Name of the run."""
        return label_of(self.job, RUN)

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return label_of(self.job, STAGE)

    @property
    def number(self) -> int:
        """Which attempt at the stage, from 1."""
        text = label_of(self.job, ATTEMPT)
        return int(text) if text.isdigit() else 0

    @property
    def spec_hash(self) -> str:
        """What it was asked to do."""
        return label_of(self.job, SPEC_HASH)

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self.kind.phase(self.job)

    @property
    def active(self) -> bool:
        """Whether it may still work."""
        return not self.phase.finished and not meta(self.job, "deletionTimestamp")


def attempts(
    client: Client, run: str | None = None, stage: str | None = None, *, namespace: str | None = ""
) -> list[Attempt]:
    """Return the job objects of a run, a stage, or all runs, of every kind, oldest attempt first.

    Raises:
        ForbiddenError: none of the kinds may be listed; one that may not counts as not there.
        NanochatError: the cluster refuses otherwise, or stays away.
    """
    found: list[Attempt] = []
    refused: list[ForbiddenError] = []
    for kind in KINDS.values():
        try:
            jobs = client.items(
                of_kind(kind), selector=selector(run, stage), namespace=namespace, optional=True
            )
        except ForbiddenError as error:
            refused.append(error)
            continue
        told = {"apiVersion": kind.api_version, "kind": kind.kind}  # a list's items leave both out
        found += [Attempt(kind, told | job) for job in jobs if label_of(job, ATTEMPT)]
    if len(refused) == len(KINDS):
        raise refused[0]
    return sorted(found, key=lambda a: (a.run, a.stage, a.number))


def gather(client: Client, attempt: Attempt, *, pods: Sequence[Object] | None = None) -> Facts:
    """Return all that is known of an attempt now; what may not be read counts as unknown."""
    if pods is None:
        pods = client.items(PODS, selector=attempt.kind.pod_selector(attempt.name))
    queued = attempt.phase.name == "queued"
    return Facts(
        job=attempt.job,
        kind=attempt.kind,
        pods=pods,
        events=_events(client, attempt, pods),
        workload=_workload(client, attempt) if queued else None,
        lost_nodes=lost_nodes(client, pods),
        now=time.time(),
    )


def _events(client: Client, attempt: Attempt, pods: Sequence[Object]) -> list[Object]:
    if attempt.phase.name == "succeeded":
        return []
    unwell = [
        name_of(pod) for pod in pods if (pod.get("status") or {}).get("phase") not in ("Running", "Succeeded")
    ]
    between = [f"{attempt.name}-node-0"] if attempt.kind.name == "trainjob" else []
    found: list[Object] = []
    for name in [attempt.name, *between, *unwell[:_EVENT_PODS]]:
        found += _allowed(client, f"involvedObject.name={name}")
    return sorted(found, key=event_time)


def _allowed(client: Client, fields: str) -> list[Object]:
    try:
        return client.items(EVENTS, fields=fields)
    except ForbiddenError:
        return []


def _workload(client: Client, attempt: Attempt) -> Object | None:
    """Return Kueue's object of a queued job: it is owned by the job."""
    try:
        owned = client.items(WORKLOADS, optional=True)
    except (ForbiddenError, UnavailableError):
        return None
    uid = meta(attempt.job, "uid")
    return next((w for w in owned if any(o.get("uid") == uid for o in meta(w, "ownerReferences", []))), None)


def lost_nodes(client: Client, pods: Iterable[Object]) -> dict[str, str]:
    """Return the nodes of running pods whose kubelet has been silent for a minute, and since when."""
    named = {str((pod.get("spec") or {}).get("nodeName") or "") for pod in pods if _not_ready(pod)}
    lost = {}
    for name in sorted(named - {""}):
        try:
            node = client.get(NODES, name)
        except NanochatError:
            continue
        if node is None:
            lost[name] = "it left the cluster"
            continue
        for condition in (node.get("status") or {}).get("conditions") or []:
            if condition.get("type") == "Ready" and condition.get("status") == "Unknown":
                lost[name] = str(condition.get("lastTransitionTime", ""))
    return lost


def _not_ready(pod: Object) -> bool:
    """Return whether a pod runs without being ready, which a lost node does to all of its pods."""
    status = pod.get("status") or {}
    if status.get("phase") != "Running":
        return False
    ready = [c for c in status.get("conditions") or [] if c.get("type") == "Ready"]
    return any(c.get("status") != "True" for c in ready)

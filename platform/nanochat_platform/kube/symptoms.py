"""What one pod shows: how its containers ended, or what keeps them from starting.

Pure: a pod and its events in, causes out. Knows nothing of jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nanochat.run.reason import LastWords, parse_last_words
from nanochat_platform.kube.cause import Cause
from nanochat_platform.kube.resources import Object, label_of, meta

_CONTINUES = "the next attempt continues from the last checkpoint"
_BY_CODE = {
    64: "config",
    65: "data",
    66: "locked",
    69: "unavailable",
    70: "diverged",
    73: "taken",
    75: "quota",
    77: "forbidden",
    130: "stopped",
    137: "killed",
    139: "crashed",
    143: "stopped",
    201: "storage",
    202: "hang",
}
_DISRUPTIONS = {
    "PreemptionByScheduler": ("preempted", "was preempted by a pod of higher priority", 143),
    "DeletionByTaintManager": ("node-lost", "was removed because its node stopped answering", 137),
    "DeletionByPodGC": ("node-lost", "was removed because its node is gone", 137),
    "EvictionByEvictionAPI": ("evicted", "was evicted: its node is being drained", 143),
    "TerminationByKubelet": ("evicted", "was evicted by its node", 143),
}
_PULL = ("ImagePullBackOff", "ErrImagePull")
_NO_IMAGE = re.compile(
    r"not found|manifest unknown|does not exist|no such host|repository name not known", re.I
)
_NO_ACCESS = re.compile(r"unauthorized|denied|authentication required|forbidden|no basic auth", re.I)
_START_ERRORS = ("StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError")


@dataclass(frozen=True, slots=True)
class Symptom:
    """A cause, and what decides between several: the lowest (rank, at, node_rank) is the root."""

    rank: int
    """0: from outside the process; 1: killed; 2: it said why itself; 3: it was stopped; 4: it just failed."""
    at: float
    node_rank: int
    cause: Cause


def seconds(timestamp: str) -> float:
    """Return an API timestamp as Unix seconds; 0 where there is none."""
    try:
        return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def node_rank(pod: Mapping[str, Any]) -> int:
    """Return which node of its job a pod is."""
    index = label_of(pod, "batch.kubernetes.io/job-completion-index")
    if index:
        return int(index)
    index = label_of(pod, "training.kubeflow.org/replica-index") or "0"
    return int(index) + (label_of(pod, "training.kubeflow.org/replica-type").lower() == "worker")


def main_status(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of a pod's one working container; empty before there is one."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return statuses[0] if statuses else {}


def last_words(pod: Mapping[str, Any]) -> LastWords | None:
    """Return what the launcher of a pod said at its end."""
    ended = (main_status(pod).get("state") or {}).get("terminated") or {}
    return parse_last_words(str(ended.get("message") or ""))


def words_of(pod: Mapping[str, Any]) -> Iterator[LastWords]:
    """Yield the last words of every container of a pod that left some."""
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        words = parse_last_words(str(ended.get("message") or ""))
        if words is not None:
            yield words


def failures(pod: Mapping[str, Any], lost_nodes: Mapping[str, str]) -> Iterator[Symptom]:
    """Yield what is known to have ended a pod; nothing while it works or after it is done."""
    who, rank = f"pod {meta(pod, 'name')}", node_rank(pod)
    status = pod.get("status") or {}
    disrupted = _disruption(pod, who, lost_nodes)
    if disrupted is not None:
        yield Symptom(0, _ended_at(pod), rank, disrupted)
    for container in status.get("initContainerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode") and status.get("phase") == "Failed":
            yield Symptom(
                2, seconds(str(ended.get("finishedAt", ""))), rank, _init_failed(container, who, ended)
            )
    container = main_status(pod)
    ended = (container.get("state") or {}).get("terminated") or {}
    if ended.get("exitCode"):
        cause = _container_failed(pod, container, who, ended)
        yield Symptom(_severity(cause), seconds(str(ended.get("finishedAt", ""))), rank, cause)


def _severity(cause: Cause) -> int:
    if cause.kind == "oom-killed":
        return 0
    if cause.kind in ("killed", "crashed"):
        return 1
    if cause.kind == "stopped":
        return 3
    return 4 if cause.kind == "failed" else 2


def _ended_at(pod: Mapping[str, Any]) -> float:
    ended = (main_status(pod).get("state") or {}).get("terminated") or {}
    return seconds(str(ended.get("finishedAt") or meta(pod, "deletionTimestamp", "")))


def _disruption(pod: Mapping[str, Any], who: str, lost_nodes: Mapping[str, str]) -> Cause | None:
    status = pod.get("status") or {}
    node = (pod.get("spec") or {}).get("nodeName", "")
    message = " ".join(str(status.get("message") or "").split())
    for condition in status.get("conditions") or []:
        if condition.get("type") != "DisruptionTarget" or condition.get("status") != "True":
            continue
        kind, text, code = _DISRUPTIONS.get(condition.get("reason", ""), ("evicted", "was evicted", 143))
        detail = f": {message}" if message and kind == "evicted" else f" ({node})" if node else ""
        return Cause(kind=kind, text=f"{who} {text}{detail}", exit_code=code, fix=_CONTINUES)
    if status.get("reason") == "Evicted":
        return Cause(
            kind="evicted",
            text=f"{who} was evicted from node `{node}`: {message}",
            exit_code=137,
            fix=f"ask for what it really uses (`resources` in the spec); {_CONTINUES}",
        )
    if status.get("reason") in ("NodeLost", "NodeShutdown", "Terminated") or node in lost_nodes:
        since = f" since {lost_nodes[node]}" if node in lost_nodes else ""
        return Cause(
            kind="node-lost",
            text=f"node `{node}` of {who} does not answer{since}",
            exit_code=137,
            fix=_CONTINUES,
        )
    return None


def _init_failed(container: Mapping[str, Any], who: str, ended: Mapping[str, Any]) -> Cause:
    name, code = container.get("name", "?"), int(ended["exitCode"])
    if name == "init-pytorch":
        return Cause(
            kind="rendezvous",
            text=f"{who} could not resolve the name of the first pod within the operator's limit",
            exit_code=137,
            fix="the first pod came too late (a slow image pull?) or cluster DNS fails; " + _CONTINUES,
        )
    return Cause(
        kind="init-failed",
        text=f"init container `{name}` of {who} ended with exit code {code}",
        exit_code=code,
        fix="`nanochat logs` shows its last lines",
    )


def _container_failed(
    pod: Mapping[str, Any], container: Mapping[str, Any], who: str, ended: Mapping[str, Any]
) -> Cause:
    code, reason = int(ended["exitCode"]), str(ended.get("reason") or "")
    if reason == "OOMKilled":
        limit = _memory_limit(pod)
        at = f" at its limit of {limit}" if limit else ""
        return Cause(
            kind="oom-killed",
            text=f"{who} was killed for memory{at} (OOMKilled)",
            exit_code=137,
            fix="raise `resources.memory`, or lower --device-batch-size",
        )
    message = str(ended.get("message") or "")
    if reason in _START_ERRORS or (code in (126, 127, 128) and parse_last_words(message) is None):
        return Cause(
            kind="start",
            text=f"{who} could not start its command: {_last_line(message) or reason}",
            exit_code=64,
            fix="`image` must be the repository's `train` image",
        )
    words = parse_last_words(message)
    kind = _BY_CODE.get(code, "killed" if code > 128 else "failed")
    if words is not None and words.message:
        return Cause(kind=kind, text=words.message, exit_code=code, fix=words.hint or "")
    said = _last_line(message)
    signal = f"signal {ended['signal']}, " if ended.get("signal") else ""
    text = f"{who} ended with {signal}exit code {code}"
    return Cause(kind=kind, text=f"{text}: {said}" if said else text, exit_code=code)


def _memory_limit(pod: Mapping[str, Any]) -> str:
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    return str(((containers[0].get("resources") or {}).get("limits") or {}).get("memory", ""))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def waiting(pod: Mapping[str, Any], events: Sequence[Object]) -> Cause | None:
    """Return what keeps a pod from working, None when nothing does."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return None
    who = f"pod {meta(pod, 'name')}"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _unscheduled(pod, who, condition)
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or []:
            held = (container.get("state") or {}).get("waiting") or {}
            cause = _held(
                container, who, str(held.get("reason") or ""), str(held.get("message") or ""), events
            )
            if cause is not None:
                return cause
    return _not_mounted(who, events)


def _unscheduled(pod: Mapping[str, Any], who: str, condition: Mapping[str, Any]) -> Cause | None:
    message = " ".join(str(condition.get("message") or "").split())
    if condition.get("reason") == "SchedulingGated":
        return Cause(kind="queued", text=f"{who} waits for its queue", exit_code=75, state="waits")
    claim = re.search(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted|bound to non)', message)
    if claim:
        return Cause(
            kind="claim-missing",
            text=f"{who} cannot be placed: volume claim `{claim[1]}` {claim[2]}",
            exit_code=64,
            fix="create the claim, or let the spec make it with `volume.size`",
            state="stuck",
        )
    if "unbound immediate PersistentVolumeClaims" in message:
        return Cause(
            kind="claim-unbound",
            text=f"{who} waits for its volume claim, which no storage class has bound yet",
            exit_code=69,
            fix="`nanochat doctor` shows the storage classes; set `volume.storage_class`",
            state="waits",
        )
    wanted = ", ".join(_wanted(pod))
    wants = f" (it wants {wanted})" if wanted else ""
    return Cause(
        kind="unschedulable",
        text=f"{who} fits on no node{wants}: {message.split(' preemption:')[0]}",
        exit_code=75,
        fix="it starts when a node has room; ask for less, add nodes, or `nanochat cancel`",
        state="waits",
    )


def _wanted(pod: Mapping[str, Any]) -> Iterator[str]:
    spec = pod.get("spec") or {}
    for container in (spec.get("containers") or [])[:1]:
        requests = (container.get("resources") or {}).get("requests") or {}
        yield from (f"{name} {amount}" for name, amount in requests.items() if name != "ephemeral-storage")
    yield from (f"{name}={value}" for name, value in (spec.get("nodeSelector") or {}).items())


def _held(
    container: Mapping[str, Any], who: str, reason: str, message: str, events: Sequence[Object]
) -> Cause | None:
    image = container.get("image", "?")
    if reason in _PULL:
        return _pull(who, image, message, events)
    if reason in ("InvalidImageName", "ErrImageNeverPull"):
        text = "is not a valid image name" if reason == "InvalidImageName" else "is not on the node"
        return Cause(
            kind="image-missing",
            text=f"image `{image}` of {who} {text}",
            exit_code=64,
            fix="correct `image` in the spec",
            state="stuck",
        )
    if reason == "CreateContainerConfigError":
        return Cause(
            kind="container-config",
            text=f"{who} cannot be set up: {_last_line(message)}",
            exit_code=64,
            fix="create what is missing; an image must name its user by number",
            state="stuck",
        )
    if reason in _START_ERRORS:
        return Cause(
            kind="start",
            text=f"{who} could not start its command: {_last_line(message)}",
            exit_code=64,
            fix="`image` must be the repository's `train` image",
            state="stuck",
        )
    if reason == "CrashLoopBackOff":
        return Cause(
            kind="init-failed",
            text=f"container `{container.get('name')}` of {who} fails again and again: {_last_line(message)}",
            exit_code=1,
            fix="`nanochat logs` shows its last lines",
            state="waits",
        )
    return None


def _pull(who: str, image: str, message: str, events: Sequence[Object]) -> Cause:
    said = [message, *(str(e.get("message", "")) for e in events if e.get("reason") == "Failed")]
    told = next((text for text in said if "rpc error" in text or "failed to" in text), message)
    detail = _last_line(told).rsplit("failed to resolve", 1)[-1].rsplit("rpc error: ", 1)[-1].strip(' ":')
    if any(_NO_ACCESS.search(text) for text in said):
        fix, state = "give `image_pull_secrets`, and check that the image exists", "stuck"
        kind, text = "image-forbidden", f"the registry refuses image `{image}` to {who}: {detail}"
    elif any(_NO_IMAGE.search(text) for text in said):
        fix, state = "correct `image` in the spec, or push it", "stuck"
        kind, text = "image-missing", f"image `{image}` of {who} does not exist: {detail}"
    else:
        fix, state = "the node cannot reach the registry", "waits"
        kind, text = "image-pull", f"image `{image}` of {who} cannot be pulled: {detail}"
    code = {"image-forbidden": 77, "image-missing": 64, "image-pull": 69}[kind]
    return Cause.model_validate({"kind": kind, "text": text, "exit_code": code, "fix": fix, "state": state})


def _not_mounted(who: str, events: Sequence[Object]) -> Cause | None:
    for event in reversed(events):
        message = " ".join(str(event.get("message", "")).split())
        if event.get("reason") == "FailedAttachVolume" and "Multi-Attach" in message:
            return Cause(
                kind="volume-busy",
                text=f"{who} waits: its volume is mounted by another node and is not ReadWriteMany",
                exit_code=64,
                fix="use a claim with access mode ReadWriteMany, or one node",
                state="waits",
            )
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            return Cause(
                kind="volume",
                text=f"{who} cannot mount its volume: {message[:300]}",
                exit_code=69,
                fix="`kubectl describe pvc` says more",
                state="waits",
            )
        if event.get("reason") == "FailedCreatePodSandBox":
            return Cause(
                kind="sandbox",
                text=f"{who} gets no network on its node: {message[:300]}",
                exit_code=69,
                state="waits",
            )
    return None

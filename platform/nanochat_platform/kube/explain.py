"""The root cause of an attempt, from its job object, its pods and their events.

Pure: objects in, one `Cause` out. Of several pods that failed the one that failed first
and worst counts: the others fail because it is gone. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nanochat_platform.kube import refusals, symptoms
from nanochat_platform.kube.cause import Cause
from nanochat_platform.kube.names import CAUSE, Kind, Phase
from nanochat_platform.kube.resources import Object, annotation_of, meta, name_of

_FAILED_CREATE = ("FailedCreate", "FailedCreatePod", "FailedCreateService")
_NO_PODS_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that is known of one attempt."""

    job: Object
    kind: Kind
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    """Of the job, of its pods and of what lies in between."""
    workload: Object | None = None
    """Kueue's view of the job, where it is queued."""
    lost_nodes: Mapping[str, str] = field(default_factory=dict)
    """Nodes that stopped answering, and since when."""
    now: float = 0.0
    """Unix seconds of the API server."""


def explain(facts: Facts) -> Cause | None:
    """Return why the attempt failed or does not go on; None when it runs, just began, or is done."""
    phase = facts.kind.phase(facts.job)
    kept = Cause.parse(annotation_of(facts.job, CAUSE))
    if kept is not None and phase.name != "succeeded":
        return kept
    if phase.name == "succeeded":
        return None
    failed = _failed_pods(facts)
    if phase.name == "failed":
        return _deadline(facts, phase) or failed or _without_pods(facts, phase)
    if phase.name == "queued":
        return _queued(facts, phase)
    return failed or _not_created(facts) or _waiting_pods(facts)


def _failed_pods(facts: Facts) -> Cause | None:
    found = [symptom for pod in facts.pods for symptom in symptoms.failures(pod, facts.lost_nodes)]
    return min(found, key=lambda s: (s.rank, s.at, s.node_rank)).cause if found else None


def _waiting_pods(facts: Facts) -> Cause | None:
    events: dict[str, list[Object]] = {}
    for event in facts.events:
        events.setdefault(str((event.get("involvedObject") or {}).get("name", "")), []).append(event)
    found = [symptoms.waiting(pod, events.get(name_of(pod), ())) for pod in facts.pods]
    causes = [cause for cause in found if cause is not None]
    return min(causes, key=lambda c: c.state != "stuck") if causes else None


def _deadline(facts: Facts, phase: Phase) -> Cause | None:
    if phase.reason != "DeadlineExceeded" and "longer than specified deadline" not in phase.message:
        return None
    return Cause(
        kind="deadline",
        text="the attempt reached its deadline and was stopped; its last checkpoint is kept",
        exit_code=75,
        fix="raise deadline_minutes and run `nanochat resume`",
    )


def _without_pods(facts: Facts, phase: Phase) -> Cause:
    """Explain a failed job whose pods tell nothing."""
    refused = _not_created(facts, whenever=True)
    if refused is not None:
        return refused
    # No container ended badly, so the pod that did was deleted before anybody could look: a node that is
    # gone, a forced deletion. The job's other pods are removed with it, working or not.
    text = "a pod of it is gone and left no reason" if facts.pods else "its pods are gone and left no reason"
    return Cause(
        kind="pods-lost",
        text=f"{text}: {phase.message or phase.reason}" if phase.message or phase.reason else text,
        exit_code=137,
        fix="`nanochat logs` shows what is left; the run continues from its last checkpoint",
    )


def _queued(facts: Facts, phase: Phase) -> Cause:
    conditions = ((facts.workload or {}).get("status") or {}).get("conditions") or []
    held = next(
        (c for c in conditions if c.get("type") == "QuotaReserved" and c.get("status") != "True"), None
    )
    reason = (held or {}).get("message") or phase.message or "the job is suspended"
    return Cause(
        kind="queued",
        text=f"queued: {_one_line(reason)}",
        exit_code=75,
        fix="it starts when the queue admits it; `nanochat cancel` takes it out",
        state="waits",
    )


def _not_created(facts: Facts, *, whenever: bool = False) -> Cause | None:
    """Explain pods that the controller cannot create, from the newest event that says so."""
    refused = [
        e
        for e in facts.events
        if e.get("reason") in _FAILED_CREATE and "object is being deleted" not in e.get("message", "")
    ]
    if not refused:
        return _silent_controller(facts)
    newest = max(refused, key=event_time)
    made = max((symptoms.seconds(meta(pod, "creationTimestamp", "")) for pod in facts.pods), default=0.0)
    if not whenever and made > event_time(newest):
        return None
    message = str(newest.get("message", "")).removeprefix("Error creating: ")
    error = refusals.refusal(
        message,
        what=f"create the pods of `{name_of(facts.job)}`",
        namespace=str(meta(facts.job, "namespace", "")),
        forbidden=False,
    )
    kind = {64: "admission", 75: "quota", 77: "forbidden"}.get(error.exit_code, "admission")
    return Cause(
        kind="pod-security" if "Pod Security" in error.message else kind,
        text=error.message,
        exit_code=error.exit_code,
        fix=error.hint or "",
        state="waits" if kind == "quota" else "stuck",
    )


def _silent_controller(facts: Facts) -> Cause | None:
    """Explain a job that no controller has touched."""
    status = facts.job.get("status") or {}
    age_s = facts.now - symptoms.seconds(meta(facts.job, "creationTimestamp", ""))
    if facts.pods or status.get("conditions") or status.get("active") or age_s < _NO_PODS_S:
        return None
    return Cause(
        kind="no-operator",
        text=f"no controller has taken up the {facts.kind.kind} for {age_s:.0f} s",
        exit_code=69,
        fix=f"the operator that serves `{facts.kind.resource}` does not run: `nanochat doctor`",
        state="waits",
    )


def event_time(event: Mapping[str, object]) -> float:
    """Return when an event was last seen, Unix seconds; 0 where it does not say."""
    series = event.get("series")
    last = series.get("lastObservedTime") if isinstance(series, Mapping) else None
    times = (last, event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return symptoms.seconds(str(next((t for t in times if t), "")))


def _one_line(text: str) -> str:
    return " ".join(text.split())

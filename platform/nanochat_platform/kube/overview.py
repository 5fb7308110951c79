"""Runs and stages as rows for `status`, `list` and `explain`.

Pure: attempts, pods and explanations in, rows out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanochat.run.stage import STAGE_NAMES
from nanochat_platform.kube.cause import Cause
from nanochat_platform.kube.facts import Attempt
from nanochat_platform.kube.resources import Object, meta
from nanochat_platform.kube.symptoms import seconds


def newest(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Return the last attempt at every stage, in the order of the stages."""
    last: dict[tuple[str, str], Attempt] = {}
    for attempt in attempts:
        key = (attempt.run, attempt.stage)
        if key not in last or attempt.number > last[key].number:
            last[key] = attempt
    return sorted(last.values(), key=_position)


def _position(attempt: Attempt) -> tuple[str, int]:
    known = attempt.stage in STAGE_NAMES
    return attempt.run, STAGE_NAMES.index(attempt.stage) if known else len(STAGE_NAMES)


def state(attempt: Attempt) -> str:
    """Return where an attempt stands, in one word."""
    if meta(attempt.job, "deletionTimestamp"):
        return "stopping"
    return attempt.phase.name


def stage_row(attempt: Attempt, pods: Sequence[Object], cause: Cause | None, *, now: float) -> dict[str, Any]:
    """Return one stage of `nanochat status`."""
    began = seconds(meta(attempt.job, "creationTimestamp", ""))
    ended = _ended(attempt.job)
    ready = sum(_ready(pod) for pod in pods)  # controllers count a second later
    return {
        "stage": attempt.stage,
        "attempt": attempt.number,
        "job": attempt.name,
        "kind": attempt.kind.name,
        "state": "running" if state(attempt) == "pending" and ready else state(attempt),
        "pods": len(pods),
        "ready": ready,
        "nodes": sorted({str((pod.get("spec") or {}).get("nodeName") or "") for pod in pods} - {""}),
        "age_s": round(max(0.0, now - began), 1),
        "wall_s": round(ended - began, 1) if ended else None,
        "cause": None if cause is None else cause.model_dump(mode="json"),
    }


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _ended(job: Object) -> float | None:
    status = job.get("status") or {}
    if status.get("completionTime"):
        return seconds(status["completionTime"])
    ends = [
        seconds(str(c.get("lastTransitionTime", "")))
        for c in status.get("conditions") or []
        if c.get("type") in ("Succeeded", "Complete", "Failed") and c.get("status") == "True"
    ]
    return max(ends, default=0.0) or None


def run_rows(attempts: Sequence[Attempt], *, now: float) -> list[dict[str, Any]]:
    """Return one row a run of `nanochat list`, the newest first."""
    runs: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in attempts:
        runs.setdefault((str(meta(attempt.job, "namespace", "")), attempt.run), []).append(attempt)
    rows = []
    for (namespace, run), mine in runs.items():
        last = newest(mine)
        current = max(reversed(last), key=lambda a: seconds(meta(a.job, "creationTimestamp", "")))
        began = min(seconds(meta(a.job, "creationTimestamp", "")) for a in mine)
        rows.append(
            {
                "namespace": namespace,
                "run": run,
                "stage": current.stage,
                "state": state(current),
                "done": sum(a.phase.name == "succeeded" for a in last),
                "attempts": len(mine),
                "age_s": round(max(0.0, now - began), 1),
            }
        )
    return sorted(rows, key=lambda row: row["age_s"])


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return rows as aligned text; `columns`: title -> key."""
    cells = [list(columns), *([str(row[key]) for key in columns.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )

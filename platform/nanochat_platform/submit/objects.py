"""What is sent for an attempt: the rendered objects, with the spec that made them kept beside.

Pure. Knows nothing of what is in the cluster.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from nanochat.errors import ConfigError, did_you_mean
from nanochat_platform.kube.jobs import JobDescription, OwnerReference, describe
from nanochat_platform.kube.names import FIELD_MANAGER, GROUP, lease_name
from nanochat_platform.kube.render import claim, render
from nanochat_platform.kube.resources import Object
from nanochat_platform.spec import RunSpec

SPEC = f"{GROUP}/spec"
"""Annotation of a job object: the whole spec as JSON, from which `nanochat resume` goes on."""
RECORD = f"{GROUP}/record"
"""Annotation of a job object: how the stage was completed, once that was verified."""


def stages_of(spec: RunSpec, stage: str | None) -> tuple[str, ...]:
    """Return the stages to run: the one named, else the spec's.

    Raises:
        ConfigError: the spec has no such stage; the nearest is offered.
    """
    names = spec.stage_names()
    if stage is None:
        return names
    if stage not in names:
        raise ConfigError(
            f"--stage is `{stage}`, which the spec does not run", hint=did_you_mean(stage, names)
        )
    return (stage,)


def description(
    spec: RunSpec, stage: str, attempt: int, *, leased: bool = False, owner: OwnerReference | None = None
) -> JobDescription:
    """Return the job of an attempt; `leased`: it ends when nobody renews the stage's lease."""
    lease = lease_name(spec.run_name, stage) if leased else None
    return describe(spec, stage, attempt, lease=lease, owner=owner)


def objects(spec: RunSpec, job: JobDescription) -> list[Object]:
    """Return what is sent for one attempt: the job object, then what must exist before it."""
    first, *others = render(job, spec.kind)
    kept = json.dumps(
        spec.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":")
    )
    meta = first["metadata"]
    annotated = meta | {"annotations": {**meta.get("annotations", {}), SPEC: kept}}
    return [first | {"metadata": annotated}, *others]


def manager(job: JobDescription) -> str:
    """Return the field manager of an attempt: of two specs, which are two managers, the second is refused."""
    return f"{FIELD_MANAGER}-{job.spec_hash}"


def dry_run(
    spec: RunSpec,
    stages: Sequence[str],
    attempts: dict[str, int],
    *,
    leased: bool = False,
    owner: OwnerReference | None = None,
) -> list[Object]:
    """Return all objects in the order of sending; `attempts`: the number of each stage's next."""
    sent: list[Object] = []
    volume = claim(spec)
    if volume is not None:
        sent.append(volume)
    for stage in stages:
        job = description(spec, stage, attempts.get(stage, 1), leased=leased, owner=owner)
        first, *others = objects(spec, job)
        sent += [*others, first]
    return sent

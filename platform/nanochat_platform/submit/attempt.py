"""One attempt: made or adopted, followed to its end, judged.

Everything here may be cut off at any point and done again: names are deterministic, writes are
server-side applies, and what was decided is kept on the job object.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from nanochat.errors import DataError, NanochatError, RunLockedError
from nanochat.run.config import Frozen
from nanochat.run.record import Record, missing_output
from nanochat.settings import Home
from nanochat_platform.kube.cause import Cause
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.explain import explain
from nanochat_platform.kube.facts import Attempt, gather
from nanochat_platform.kube.follow import follow
from nanochat_platform.kube.jobs import JobDescription, OwnerReference
from nanochat_platform.kube.names import CAUSE, KINDS
from nanochat_platform.kube.render import owned
from nanochat_platform.kube.resources import (
    PODS,
    Object,
    Resource,
    annotation_of,
    meta,
    name_of,
    of_kind,
    of_object,
)
from nanochat_platform.kube.symptoms import last_words
from nanochat_platform.spec import RunSpec
from nanochat_platform.submit.objects import RECORD, manager, objects

STARTING_S, RUNNING_S = 2.0, 20.0
"""Seconds between two looks at pods and events, before and after the job runs."""
NODE_LOST_LOOKS = 2
PATIENCE_S = {"image-pull": 300.0, "no-operator": 300.0, "claim-unbound": 300.0, "volume": 600.0}
"""Seconds to wait for what need not pass by itself; a queue, a quota or a busy cluster is waited for."""
VOLUME_LAG_S = 60
_ADOPT_TRIES = 5
_RUNTIME = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes")


class Completion(Frozen):
    """How a stage was completed: kept in the annotation `nanochat.dev/record`."""

    status: Literal["done", "skip"]
    record: str
    config: str | None = None
    wall_s: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, job: Object) -> Completion | None:
        """Return what is kept on a job object, None when nothing is."""
        try:
            return cls.model_validate_json(annotation_of(job, RECORD))
        except ValidationError:
            return None


@dataclass(frozen=True, slots=True)
class End:
    """How following an attempt ended: `gone` when somebody deleted the job."""

    kind: Literal["succeeded", "failed", "gone"]
    attempt: Attempt
    cause: Cause | None = None
    removed: bool = False
    """Whether the job was deleted here."""


def _collection(value: Object) -> Resource:
    return _RUNTIME if value["kind"] == "TrainingRuntime" else of_object(value)


def create(client: Client, spec: RunSpec, job: JobDescription) -> Attempt:
    """Make the objects of an attempt, or find them made by an earlier self.

    Raises:
        RunLockedError: they exist with another spec.
        NanochatError: the cluster refuses one of them; what was made before it is removed again.
    """
    kind = KINDS[spec.kind]
    first, *others = objects(spec, job)
    made: list[Object] = []
    try:
        for other in others:
            client.apply(_collection(other), other, manager=manager(job))
            made.append(other)
        found = client.apply(of_kind(kind), first, manager=manager(job))
    except NanochatError as error:
        if error.exit_code != 66:
            for other in made:
                client.delete(_collection(other), name_of(other))
        raise
    attempt = Attempt(kind, found)
    own(client, spec, job, attempt)
    return attempt


def own(client: Client, spec: RunSpec, job: JobDescription, attempt: Attempt) -> None:
    """Make the job object the owner of what lies beside it, so that it goes with it."""
    _, *others = objects(spec, job)
    for other in owned(attempt.job, others):
        client.apply(_collection(other), other, manager=manager(job))


def adopt(client: Client, spec: RunSpec, job: JobDescription, attempt: Attempt) -> Attempt:
    """Finish what an earlier self began to make, and add our owner to the owners of its job object."""
    if attempt.kind.name == spec.kind:
        own(client, spec, job, attempt)
    for _ in range(_ADOPT_TRIES):
        owners = list(meta(attempt.job, "ownerReferences", []))
        if job.owner is None or any(owner.get("uid") == job.owner.uid for owner in owners):
            break
        version = meta(attempt.job, "resourceVersion")
        change = {
            "metadata": {"resourceVersion": version, "ownerReferences": [*owners, reference(job.owner)]}
        }
        with contextlib.suppress(RunLockedError):  # somebody changed it meanwhile: look again
            client.patch(of_kind(attempt.kind), attempt.name, change)
        found = client.get(of_kind(attempt.kind), attempt.name)
        if found is None:
            break
        attempt = Attempt(attempt.kind, found)
    return attempt


def reference(owner: OwnerReference) -> Object:
    """Return an owner in Kubernetes' own words."""
    return {"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}


def remove(client: Client, attempt: Attempt, *, timeout_s: float = 30.0) -> None:
    """Delete an attempt's job object, and with it all that it owns."""
    client.delete(of_kind(attempt.kind), attempt.name, timeout_s=timeout_s)


class Follower:
    """Follows attempts and says, once each, what keeps them from going on."""

    def __init__(
        self, client: Client, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self._held: tuple[str, float] = ("", 0.0)
        """Which kind of cause holds the attempt up, and since when."""
        self._say = say
        self._said = ""
        self._suspect: dict[str, int] = {}

    def to_end(self, attempt: Attempt) -> End:
        """Return how an attempt ended.

        An attempt that cannot go on (no such image, pods that the namespace refuses) is deleted, so that
        nothing half-made stays. One whose node is lost is deleted too: its pods never end by themselves.

        Raises:
            NanochatError: the cluster stays away.
        """
        resource, uid = of_kind(attempt.kind), meta(attempt.job, "uid")
        window, seen = [STARTING_S], False
        for change in follow(
            self._client, resource, fields=f"metadata.name={attempt.name}", window_s=lambda: window[0]
        ):
            if change.kind == "gone" or (change.object is not None and meta(change.object, "uid") != uid):
                return End("gone", attempt)
            if change.kind == "tick" and not seen:
                return End("gone", attempt)  # deleted before the first list
            if change.object is not None:
                seen = True
                attempt = Attempt(attempt.kind, change.object)
            phase = attempt.phase
            if phase.name == "succeeded":
                return End("succeeded", attempt)
            if phase.name == "failed":
                return End("failed", attempt, self._cause(attempt))
            if change.kind == "tick" and not meta(attempt.job, "deletionTimestamp"):
                given_up = self._look(attempt)
                if given_up is not None:
                    return End("failed", attempt, given_up, removed=True)
            window[0] = RUNNING_S if phase.name == "running" else STARTING_S
        raise AssertionError("following ends only by a change")

    def _cause(self, attempt: Attempt) -> Cause:
        found = explain(gather(self._client, attempt))
        return found or Cause(kind="unknown", text="the job failed and left no reason", exit_code=1)

    def _look(self, attempt: Attempt) -> Cause | None:
        """Look at what holds an attempt up; returns the cause once waiting is of no use."""
        cause = explain(gather(self._client, attempt))
        if cause is None:
            self._suspect.clear()
            self._held = ("", 0.0)
            return None
        if cause.kind != self._held[0]:
            self._held = (cause.kind, self._clock())
        if cause.state == "waits":
            self._suspect.clear()
            if cause.line() != self._said:
                self._said = cause.line()
                self._say(f"{attempt.stage}: {cause.line()}")
            if self._clock() - self._held[1] < PATIENCE_S.get(cause.kind, float("inf")):
                return None
            remove(self._client, attempt)
            return cause
        if cause.state == "failed" and cause.kind != "node-lost":
            return None  # a pod ended: the controller is about to say so
        looks = self._suspect[cause.kind] = self._suspect.get(cause.kind, 0) + 1
        if looks < NODE_LOST_LOOKS:
            return None
        remove(self._client, attempt)
        return cause


def verify(
    client: Client,
    attempt: Attempt,
    home: Home | None,
    *,
    wait: Callable[[float], object] = time.sleep,
) -> Completion | None:
    """Return how a succeeded attempt completed its stage, None when nothing is left that says so.

    What is found is kept on the job object, because pods do not stay for ever.

    Args:
        client: the cluster.
        attempt: whose job succeeded.
        home: where the run's volume is mounted here, None where it is not.

    Raises:
        DataError: the record on the volume is not the one the pod reported, or its outputs are not there.
    """
    found = Completion.of(attempt.job)
    if found is None:
        pods = client.items(PODS, selector=attempt.kind.first_pod_selector(attempt.name))
        words = next((w for w in map(last_words, pods) if w is not None), None)
        if words is None or words.status == "failed" or words.record is None:
            return None
        found = Completion(
            status=words.status,
            record=words.record,
            config=words.config,
            wall_s=words.wall_s,
            metrics=words.metrics or {},
        )
        annotate(client, attempt, RECORD, found.model_dump_json(exclude_none=True))
    if home is not None:
        _await_record(home, attempt, found, wait)
    return found


def _await_record(home: Home, attempt: Attempt, found: Completion, wait: Callable[[float], object]) -> None:
    """Check the record until it is right: a network volume shows another node's files up to a minute late."""
    for _ in range(VOLUME_LAG_S):
        try:
            _check_record(home, attempt, found)
        except DataError:
            wait(1.0)
        else:
            return
    _check_record(home, attempt, found)


def _check_record(home: Home, attempt: Attempt, found: Completion) -> None:
    folder: Path = home.stage(attempt.run, attempt.stage)
    record = Record.load(folder)
    if record is None:
        raise DataError(
            f"stage `{attempt.stage}` reported record {found.record[:12]}, but `{folder}` holds none",
            hint="is this the volume that the run writes to?",
        )
    if record.hash != found.record:
        raise DataError(
            f"stage `{attempt.stage}` reported record {found.record[:12]}, "
            f"but `{folder / 'record.json'}` is {record.hash[:12]}",
            hint="another run wrote to the volume; run the stage again",
        )
    missing = missing_output(record, home)
    if missing is not None:
        raise DataError(
            f"stage `{attempt.stage}` is recorded as finished, but {missing}",
            hint=f"delete `{folder / 'record.json'}` and submit again",
        )


def annotate(client: Client, attempt: Attempt, name: str, text: str) -> None:
    """Keep a decision on a job object."""
    client.patch(of_kind(attempt.kind), attempt.name, {"metadata": {"annotations": {name: text}}})


def keep_cause(client: Client, attempt: Attempt, cause: Cause) -> None:
    """Keep why an attempt failed where `explain` and a later self find it."""
    annotate(client, attempt, CAUSE, cause.annotation())

"""The stages of a run, one after another: attempts, retries, and what ends them.

Knows the exit classes; knows nothing of how objects look.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.errors import DataError, Interrupted, NanochatError, RunLockedError
from nanochat.run.signals import StopNow
from nanochat.settings import Home
from nanochat_platform.kube.cause import Cause
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.facts import Attempt, attempts, lost_nodes
from nanochat_platform.kube.jobs import END_MARGIN_S, JobDescription, OwnerReference
from nanochat_platform.kube.lease import Renewer
from nanochat_platform.kube.logs import TRAINING
from nanochat_platform.kube.names import CAUSE, FIELD_MANAGER, KINDS, labels, lease_name, selector
from nanochat_platform.kube.render import claim
from nanochat_platform.kube.resources import CLAIMS, PODS, Object, annotation_of, name_of, of_kind
from nanochat_platform.spec import RunSpec
from nanochat_platform.submit import preflight
from nanochat_platform.submit.attempt import (
    Completion,
    Follower,
    adopt,
    create,
    keep_cause,
    reference,
    remove,
    verify,
)
from nanochat_platform.submit.objects import description

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
STOP_TIMEOUT_S = 0.3
SETTLE_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a run is submitted, beside what it is."""

    leased: bool = False
    """Jobs end when this process, or one after it, does not renew their stage's lease; a stop signal then
    deletes what works, which goes on without a lease."""
    owner: OwnerReference | None = None
    home: Home | None = None
    """Where the run's volume is mounted here."""
    wait_for_nodes: bool = False
    detach: bool = False
    """Return as soon as the first stage that is not finished has its job."""


@dataclass(slots=True)
class StageResult:
    """How one stage went."""

    stage: str
    job: str
    attempt: int
    """Its number: 1 where the first completed it."""
    status: str
    """done | skip | kept (finished before) | started."""
    wall_s: float
    """Seconds here, from the look for earlier attempts to the verified record."""
    work_s: float | None = None
    """Seconds of the stage's own work, all attempts together, as its record has them."""
    record: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """How the stages went."""

    run: str
    namespace: str
    stages: list[StageResult] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        stages = [
            {name: getattr(stage, name) for name in StageResult.__dataclass_fields__} for stage in self.stages
        ]
        return {"run": self.run, "namespace": self.namespace, "stages": stages}


def submit(
    client: Client,
    spec: RunSpec,
    stages: Sequence[str],
    options: Options,
    say: Callable[[str], None],
    *,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Run stages on a cluster, each as one job an attempt; what is finished is not repeated.

    Raises:
        NanochatError: a stage failed for good, something else holds the run, or the cluster refuses or
            stays away. Jobs that work go on.
    """
    return _Submitter(client, spec, options, say, wait, clock).run(stages)


class _Submitter:
    def __init__(
        self,
        client: Client,
        spec: RunSpec,
        options: Options,
        say: Callable[[str], None],
        wait: Callable[[float], object],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._spec = spec
        self._options = options
        self._say = say
        self._wait = wait
        self._clock = clock
        self._follower = Follower(client, say, clock=clock)
        self._seen: Attempt | None = None
        """The last attempt this process saw: while it is there, nobody cancelled the run."""
        self._causes: dict[str, Cause] = {}
        """Of the attempts that failed in this process, by job."""
        self._working: Attempt | JobDescription | None = None
        """What a stop signal deletes when the jobs are leased."""
        self._anew = False
        """Whether a stage was really done in this process: what follows it is judged again."""

    def run(self, stages: Sequence[str]) -> Result:
        result = Result(self._spec.run_name, self._spec.namespace)
        known = attempts(self._client, self._spec.run_name)
        self._prepare(stages, known)
        for stage in stages:
            result.stages.append(self._stage(stage, [a for a in known if a.stage == stage]))
            if result.stages[-1].status == "started":
                break
        return result

    def _describe(self, stage: str, number: int) -> JobDescription:
        return description(self._spec, stage, number, leased=self._options.leased, owner=self._options.owner)

    def _prepare(self, stages: Sequence[str], known: Sequence[Attempt]) -> None:
        """Refuse what cannot work, once, unless the run is at work already; make the claim it asks for."""
        if any(attempt.active for attempt in known):
            return
        jobs = [self._describe(stage, 1) for stage in stages if not self._kept(stage, known)]
        if not jobs:
            return
        preflight.check(self._client, self._spec, jobs, wait_for_nodes=self._options.wait_for_nodes)
        volume = claim(self._spec)
        if volume is not None and self._client.get(CLAIMS, self._spec.volume.claim) is None:
            self._client.apply(CLAIMS, volume, manager=FIELD_MANAGER)

    def _kept(self, stage: str, known: Sequence[Attempt]) -> Completion | None:
        """Return how the newest attempt completed a stage with the same settings, if it is known."""
        mine = [attempt for attempt in known if attempt.stage == stage]
        if not mine or mine[-1].phase.name != "succeeded":
            return None
        kept = Completion.of(mine[-1].job)
        same = kept is not None and kept.config == self._spec.stage_config(stage).hash
        return kept if same else None

    def _stage(self, stage: str, known: Sequence[Attempt]) -> StageResult:
        began = self._clock()
        lease = self._lease(stage)
        if lease is None:
            return self._attempts(stage, known, began)
        with lease:
            try:
                result = self._attempts(stage, known, began)
            except StopNow:
                self._end_now()
                lease.release()
                raise
            except NanochatError as error:
                if error.exit_code != 69:  # while the cluster is away the job may still be fine
                    lease.release()
                raise
            lease.release()
            return result

    def _end_now(self) -> None:
        """Delete what works, first of all: who is told to stop may have a third of a second left."""
        working = self._working
        kind = working.kind if isinstance(working, Attempt) else KINDS[self._spec.kind]
        self._client.patience_s = 5.0
        if working is not None:
            with contextlib.suppress(NanochatError):
                self._client.delete(of_kind(kind), working.name, timeout_s=STOP_TIMEOUT_S)

    def _lease(self, stage: str) -> Renewer | None:
        if not self._options.leased:
            return None
        run = self._spec.run_name
        owners = [] if self._options.owner is None else [reference(self._options.owner)]
        return Renewer(self._client, lease_name(run, stage), labels(run=run, stage=stage), owners=owners)

    def _attempts(self, stage: str, known: Sequence[Attempt], began: float) -> StageResult:
        """Make attempts at a stage until one completes it."""
        current = self._adopt(stage, known)
        unproven = 0
        while True:
            if current is None:
                current = self._create(stage, 1 + max((a.number for a in known), default=0))
                known = [*known, current]
            self._working = current
            if self._options.detach and current.active:
                return self._result(stage, current, "started", began)
            end = self._follower.to_end(current)
            current = end.attempt
            if end.kind == "gone":
                raise self._cancelled(current)
            if end.kind == "failed":
                self._seen = None if end.removed else current
                self._failed(current, end.cause, known)
                current = None
                continue
            self._seen = current
            done = verify(self._client, current, self._options.home, wait=self._wait)
            if done is not None:
                fresh = done.status == "done" and not Completion.of(current.job)
                self._anew = self._anew or fresh
                status = done.status if fresh or done.status == "skip" else "kept"
                return self._result(stage, current, status, began, done)
            unproven += 1
            if unproven > 1:
                raise DataError(
                    f"stage `{stage}`: two jobs succeeded without saying which record they left",
                    hint="`nanochat logs` shows what it did; is `image` the repository's `train` image?",
                )
            self._say(
                f"{stage}: job `{current.name}` left no word of its record; another attempt looks for it"
            )
            current = None

    def _adopt(self, stage: str, known: Sequence[Attempt]) -> Attempt | None:
        """Return the attempt to go on with, None when a new one must be made.

        Raises:
            RunLockedError: one with another spec is at work.
        """
        newest = known[-1] if known else None
        if newest is None:
            return None
        wanted = self._describe(stage, newest.number)
        same = newest.spec_hash == wanted.spec_hash
        if newest.active and not same:
            raise RunLockedError(
                f"stage `{stage}` of run `{newest.run}` is at work with another spec: job `{newest.name}` "
                f"has spec hash {newest.spec_hash}, this one {wanted.spec_hash}",
                hint="wait for it, stop it with `nanochat cancel`, or choose another --run",
            )
        if newest.active:
            self._say(f"{stage}: adopting job `{newest.name}`")
            return adopt(self._client, self._spec, wanted, newest)
        if newest.phase.name == "succeeded":
            # An earlier stage that was done anew may have changed what this one reads: its launcher judges.
            return newest if not self._anew and (same or self._kept(stage, known)) else None
        return newest if same and self._reported(newest) is None else None

    def _reported(self, attempt: Attempt) -> Cause | None:
        """Return the cause of a failed attempt that was dealt with, here or by an earlier self."""
        known = self._causes.get(attempt.name)
        return known or Cause.parse(annotation_of(attempt.job, CAUSE))

    def _create(self, stage: str, number: int) -> Attempt:
        job = self._describe(stage, number)
        self._settle(stage, job.grace_s + END_MARGIN_S)
        self._check_uncancelled()
        self._working = job
        attempt = create(self._client, self._spec, job)
        try:
            self._check_uncancelled()
        except Interrupted:
            remove(self._client, attempt)
            raise
        self._say(f"{stage}: started job `{attempt.name}`" + (f", attempt {number}" if number > 1 else ""))
        return attempt

    def _settle(self, stage: str, grace_s: float) -> None:
        """Wait for pods of earlier attempts to end: one that still saves its last checkpoint holds the run.

        No longer than they are given, and not for those of a lost node: they never end, and their number in
        `owner` fences them.
        """
        # A pipeline's step has the labels of its stage too: it is what waits here.
        mine = f"{selector(run=self._spec.run_name, stage=stage)},{TRAINING}"
        deadline, told = self._clock() + grace_s, False
        while left := self._working_pods(mine):
            if self._clock() > deadline:
                self._say(
                    f"{stage}: pod `{name_of(left[0])}` has not ended in {grace_s:.0f} s; going on without it"
                )
                return
            if not told:
                self._say(f"{stage}: waiting for pod `{name_of(left[0])}` of an earlier attempt to end")
                told = True
            self._wait(SETTLE_POLL_S)

    def _working_pods(self, mine: str) -> list[Object]:
        pods = [pod for pod in self._client.items(PODS, selector=mine) if _works(pod)]
        lost = lost_nodes(self._client, pods)
        return [pod for pod in pods if pod["spec"].get("nodeName") not in lost]

    def _check_uncancelled(self) -> None:
        seen = self._seen
        if seen is not None and self._client.get(of_kind(seen.kind), seen.name) is None:
            raise self._cancelled(seen)

    def _cancelled(self, attempt: Attempt) -> Interrupted:
        return Interrupted(
            15,
            f"run `{attempt.run}` was cancelled: job `{attempt.name}` was deleted",
            hint="submit again to continue from the last checkpoint",
        )

    def _failed(self, attempt: Attempt, cause: Cause | None, known: Sequence[Attempt]) -> None:
        """Wait before the next attempt.

        Raises:
            NanochatError: there is none.
        """
        cause = cause or Cause(kind="unknown", text="the job failed and left no reason", exit_code=1)
        where = f"stage `{attempt.stage}`, attempt {attempt.number}"
        series = self._series(known, attempt, cause)
        stop = self._why_stop(series)
        retried = cause.worth_retrying and stop is None
        cause = cause.model_copy(update={"retried": retried})
        self._causes[attempt.name] = cause
        keep_cause(self._client, attempt, cause)
        if not retried:
            raise cause.error(f"{where}{f' ({stop})' if cause.worth_retrying else ''}")
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (len(series) - 1))
        self._say(f"{where} failed: {cause.text}; the next one begins in {delay:.0f} s")
        self._wait(delay)

    def _series(self, known: Sequence[Attempt], newest: Attempt, cause: Cause) -> list[Cause]:
        """Return the failures in a row that led here, the newest last: since a person last had to look."""
        series = [cause]
        for attempt in reversed([a for a in known if a.number < newest.number]):
            earlier = self._reported(attempt)
            if earlier is None or not earlier.retried or attempt.spec_hash != newest.spec_hash:
                break
            series.insert(0, earlier)
        return series

    def _why_stop(self, series: Sequence[Cause]) -> str | None:
        """Return why a series of failures, the newest last, is not continued."""
        if len(series) >= self._spec.max_attempts:
            return f"the last of {self._spec.max_attempts}"
        if len(series) > 1 and {cause.kind for cause in series[-2:]} == {"oom-killed"}:
            return "the same again"
        return None

    def _result(
        self, stage: str, attempt: Attempt, status: str, began: float, done: Completion | None = None
    ) -> StageResult:
        if status in ("done", "skip"):
            self._say(f"{stage}: {'done' if status == 'done' else 'was done before'}")
        return StageResult(
            stage=stage,
            job=attempt.name,
            attempt=attempt.number,
            status=status,
            wall_s=round(self._clock() - began, 3),
            work_s=None if done is None else done.wall_s,
            record=None if done is None else done.record,
            metrics={} if done is None else done.metrics,
        )


def _works(pod: Object) -> bool:
    """Return whether a pod has begun and not ended, to be deleted or not."""
    return bool((pod.get("status") or {}).get("phase") == "Running")

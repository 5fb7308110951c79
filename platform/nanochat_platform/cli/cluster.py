"""`nanochat status`, `list`, `explain`, `logs` and `cancel`. Knows nothing of how they find out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanochat_platform.cli import connect as c
from nanochat_platform.cli import options as o

if TYPE_CHECKING:
    from nanochat_platform.kube.client import Client
    from nanochat_platform.kube.facts import Attempt

AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run's jobs have ended.")]
Tail = Annotated[int | None, typer.Option("--tail", metavar="N", help="Last lines of each pod alone.")]
All = Annotated[bool, typer.Option("--all-attempts", help="Of earlier attempts too.")]
Self = Annotated[
    bool,
    typer.Option("--self", help="What NANOCHAT_RUN, NANOCHAT_STAGE and NANOCHAT_NAMESPACE say."),
]
IDLE_S = 10.0
"""Seconds without a working job after which `logs -f` ends: the submitter makes the next one at once."""


def status(
    *,
    run: c.RunName = None,
    stage: c.StageName = None,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Show where the stages of a run stand in the cluster, and what holds them up."""
    from nanochat.run.progress import duration
    from nanochat_platform.kube.overview import table

    client = c.connect(kubeconfig, context, namespace)
    name, rows = stage_rows(client, run, stage)
    if as_json:
        o.print_json({"run": name, "namespace": client.namespace, "stages": rows})
        return
    shown = [
        row
        | {
            "ready": f"{row['ready']}/{row['pods']}" if row["pods"] else "-",
            "time": duration(row["wall_s"] if row["wall_s"] is not None else row["age_s"]),
            "why": row["cause"]["text"] if row["cause"] else "",
        }
        for row in rows
    ]
    columns = {"STAGE": "stage", "ATTEMPT": "attempt", "STATE": "state", "READY": "ready", "TIME": "time"}
    print(f"run {name} in namespace {client.namespace}\n")
    print(table(shown, {**columns, "JOB": "job", "": "why"}), flush=True)


def stage_rows(client: Client, run: str | None, stage: str | None) -> tuple[str, list[dict[str, Any]]]:
    """Return the run's name and one row a stage: its newest attempt, its pods, what holds it up.

    Raises:
        ConfigError: there is no such run.
    """
    from nanochat_platform.kube import facts
    from nanochat_platform.kube.explain import explain
    from nanochat_platform.kube.overview import newest, stage_row

    name = c.one_run(client, run)
    now, rows = time.time(), []
    for attempt, pods in _with_pods(client, newest(_attempts(client, name, stage))):
        done = attempt.phase.name == "succeeded"
        cause = None if done else explain(facts.gather(client, attempt, pods=pods))
        rows.append(stage_row(attempt, pods, cause, now=now))
    return name, rows


def _attempts(client: Client, run: str, stage: str | None) -> list[Attempt]:
    from nanochat.errors import ConfigError
    from nanochat_platform.kube.facts import attempts

    found = attempts(client, run, stage)
    if not found:
        what = f"run `{run}`" if stage is None else f"stage `{stage}` of run `{run}`"
        raise ConfigError(
            f"there is no job of {what} in namespace `{client.namespace}`",
            hint="`nanochat list -A` shows all runs; `nanochat submit` starts one",
        )
    return found


def _with_pods(client: Client, found: list[Attempt]) -> list[tuple[Attempt, list[Any]]]:
    """Return each attempt with its pods, from one request."""
    from nanochat_platform.kube.names import ATTEMPT, STAGE, selector
    from nanochat_platform.kube.resources import PODS, label_of

    pods = client.items(PODS, selector=f"{selector(found[0].run)},app.kubernetes.io/component=train")

    def of(attempt: Attempt) -> list[Any]:
        number = str(attempt.number)
        return [p for p in pods if label_of(p, STAGE) == attempt.stage and label_of(p, ATTEMPT) == number]

    return [(attempt, of(attempt)) for attempt in found]


def list_runs(
    *,
    namespace: c.Namespace = None,
    all_namespaces: AllNamespaces = False,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """List the runs that have jobs in the cluster."""
    from nanochat.run.progress import duration
    from nanochat_platform.kube.facts import attempts
    from nanochat_platform.kube.overview import run_rows, table

    client = c.connect(kubeconfig, context, namespace)
    found = attempts(client, namespace=None if all_namespaces else "")
    rows = run_rows(found, now=time.time())
    if as_json:
        o.print_json(rows)
        return
    shown = [row | {"age": duration(row["age_s"])} for row in rows]
    columns = {"NAMESPACE": "namespace", "RUN": "run", "STAGE": "stage", "STATE": "state"}
    if shown:
        print(table(shown, {**columns, "DONE": "done", "ATTEMPTS": "attempts", "AGE": "age"}), flush=True)
    else:
        o.say("no runs")


def explain(
    *,
    run: c.RunName = None,
    stage: c.StageName = None,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Say in one line why a run failed or does not go on, and what mends it."""
    client = c.connect(kubeconfig, context, namespace)
    found = root_cause(client, run, stage)
    if as_json:
        o.print_json(found)
        return
    number = f", attempt {found['attempt']}" if found.get("attempt") else ""
    where = f"{found['stage']}{number}: " if found.get("stage") else ""
    print(f"{where}{found['text']}", flush=True)
    if found["fix"]:
        print(f"hint: {found['fix']}", flush=True)


def root_cause(client: Client, run: str | None, stage: str | None) -> dict[str, Any]:
    """Return what stopped a run last, or that nothing did, as JSON values.

    Raises:
        ConfigError: the run has left nothing in the namespace.
    """
    from nanochat.errors import ConfigError
    from nanochat_platform.kube import facts
    from nanochat_platform.kube.explain import explain as judge
    from nanochat_platform.kube.overview import newest, stage_row

    name = c.one_run(client, run)
    try:
        found = newest(_attempts(client, name, stage))
    except ConfigError:
        step = _step_cause(client, name, stage)
        if step is None:
            raise
        return step
    open_ = [attempt for attempt in found if attempt.phase.name != "succeeded"]
    rows = []
    for attempt in reversed(open_):
        known = facts.gather(client, attempt)
        rows.append(stage_row(attempt, known.pods, None, now=known.now))
        cause = judge(known)
        if cause is not None:
            facts_ = {"run": name, "stage": attempt.stage, "attempt": attempt.number, "job": attempt.name}
            return facts_ | cause.model_dump(mode="json")
    now = f"`{rows[0]['stage']}` is {rows[0]['state']}" if rows else f"all {len(found)} stages are done"
    text = f"nothing is wrong with run `{name}`: {now}"
    return {"run": name, "kind": "none", "text": text, "exit_code": 0, "fix": ""}


def _step_cause(client: Client, run: str, stage: str | None) -> dict[str, Any] | None:
    """Return what the newest failed pipeline step of the run left on its pod, where no job is left."""
    from nanochat_platform.kube.names import CAUSE, RUN, STAGE
    from nanochat_platform.kube.resources import PODS, annotation_of, label_of, meta
    from nanochat_platform.kube.symptoms import words_of

    wanted = {RUN: run, "app.kubernetes.io/component": "pipeline"} | ({STAGE: stage} if stage else {})
    steps = client.items(PODS, selector=",".join(f"{key}={value}" for key, value in wanted.items()))
    for pod in sorted(steps, key=lambda p: str(meta(p, "creationTimestamp", "")), reverse=True):
        told = next((words for words in words_of(pod) if words.status == "failed"), None)
        text = told.message if told is not None else annotation_of(pod, CAUSE)
        if text:
            code, fix = (told.exit_code, told.hint or "") if told is not None else (1, "")
            cause = {"kind": "step", "text": text, "exit_code": code, "fix": fix}
            return {"run": run, "stage": label_of(pod, STAGE), "attempt": 0, "job": "", **cause}
    return None


def logs(
    *,
    run: c.RunName = None,
    stage: c.StageName = None,
    follow: Follow = False,
    tail: Tail = None,
    all_attempts: All = False,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
) -> None:
    """Print the logs of all ranks, each line after `<pod>/<node rank> | `."""
    client = c.connect(kubeconfig, context, namespace, patience_s=600.0)
    name = c.one_run(client, run)
    if follow:
        follow_logs(client, name, stage, tail)
        return
    from nanochat_platform.kube.logs import Reader
    from nanochat_platform.kube.overview import newest
    from nanochat_platform.kube.symptoms import node_rank

    found = _attempts(client, name, stage)
    for _, pods in _with_pods(client, found if all_attempts else newest(found)):
        for pod in sorted(pods, key=node_rank):
            Reader(client, pod, _show, follow=False, tail=tail).read()


def follow_logs(client: Client, run: str, stage: str | None, tail: int | None) -> None:
    """Print lines as they come, of the pods that are there and of those that come, until no job works."""
    from nanochat_platform.kube.facts import attempts
    from nanochat_platform.kube.follow import follow
    from nanochat_platform.kube.logs import Readers
    from nanochat_platform.kube.names import selector
    from nanochat_platform.kube.resources import PODS

    _attempts(client, run, stage)
    readers = Readers(client, _show, follow=True, tail=tail)
    idle_since: float | None = None
    ours = f"{selector(run, stage)},app.kubernetes.io/component=train"
    try:
        for change in follow(client, PODS, selector=ours, window_s=lambda: 2.0):
            if change.object is not None and change.kind == "set":
                readers.add(change.object)
            if readers.broken:
                raise BrokenPipeError
            if change.kind != "tick":
                continue
            if readers.busy() or any(attempt.active for attempt in attempts(client, run, stage)):
                idle_since = None
                continue
            idle_since = idle_since or time.monotonic()
            if time.monotonic() - idle_since >= IDLE_S or stage is not None:
                return
    finally:
        readers.stop()


def _show(prefix: str, line: str) -> None:
    print(f"{prefix} | {line}", flush=True)


def cancel(
    *,
    run: c.RunName = None,
    stage: c.StageName = None,
    of_self: Self = False,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Stop a run and remove its jobs and pods; the volume with every checkpoint stays. Safe to repeat."""
    from nanochat_platform.kube.access import own_identity
    from nanochat_platform.kube.cancel import cancel as cancel_run

    if of_self:
        run, stage, where = own_identity()
        namespace = namespace or where
    client = c.connect(kubeconfig, context, namespace)
    name = c.one_run(client, run)
    gone = cancel_run(client, name, stage)
    if as_json:
        o.print_json({"run": name, "stage": stage, "jobs": list(gone.jobs), "pods": gone.pods})
        return
    what = f"stage {stage} of run {name}" if stage else f"run {name}"
    if gone.jobs or gone.pods:
        o.say(f"cancelled {what}: {len(gone.jobs)} jobs removed, {gone.pods} pods told to stop")
    else:
        o.say(f"{what} has nothing in namespace {client.namespace}")

"""`nanochat submit` and `nanochat resume`. Knows nothing of how jobs look."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanochat_platform.cli import connect as c
from nanochat_platform.cli import options as o

if TYPE_CHECKING:
    from nanochat_platform.kube.client import Client
    from nanochat_platform.kube.jobs import OwnerReference
    from nanochat_platform.spec import RunSpec
    from nanochat_platform.submit import Options

PATIENCE_S = 900.0
"""Seconds that the API server may be away under a run, e.g. while a control plane is upgraded."""

Spec = Annotated[Path | None, typer.Option("--spec", metavar="FILE", help="YAML; options go over it.")]
Stage = Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="Run this stage alone.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the YAML that would be sent; send nothing.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the next stage has its job.")]
Lease = Annotated[
    bool, typer.Option("--lease", help="End the jobs when this process ends or loses the cluster.")
]
Logs = Annotated[
    bool | None, typer.Option("--logs/--no-logs", help="Print the ranks' logs too; on with --lease.")
]
Owner = Annotated[
    str | None,
    typer.Option(
        "--owner", metavar="OBJECT", help="apiVersion/Kind/name/uid of an object that owns the jobs."
    ),
]
Mounted = Annotated[
    Path | None,
    typer.Option("--mounted", metavar="FOLDER", help="Where the volume is mounted here."),
]
WaitForNodes = Annotated[
    bool, typer.Option("--wait-for-nodes", help="Do not refuse where no node of that kind is there yet.")
]
Image = Annotated[str | None, typer.Option("--image", metavar="REF", help="The train image, best by digest.")]
Claim = Annotated[
    str | None, typer.Option("--claim", metavar="NAME", help="The volume claim; nanochat-data without it.")
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="SIZE", help="Make the claim of this size if it is missing.")
]
StorageClass = Annotated[
    str | None,
    typer.Option("--storage-class", metavar="NAME", help="Of a claim that is made; else the cluster's."),
]
AccessMode = Annotated[
    str | None,
    typer.Option("--access-mode", metavar="MODE", help="ReadWriteMany, or ReadWriteOnce for one node."),
]
Hardware = Annotated[
    str | None, typer.Option("--hardware", metavar="NAME", help="8xh100, 8xa100, 1xh100 or cpu.")
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", metavar="N", help="Nodes of the stages that train; 1 without it.")
]
Gpus = Annotated[int | None, typer.Option("--gpus", metavar="N", help="GPUs of each node; all without it.")]
Nproc = Annotated[
    int | None, typer.Option("--nproc", metavar="N", help="Ranks of each node on cpu; 1 without it.")
]
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind", metavar="KIND", help="pytorchjob (without it), trainjob, or job, which needs no operator."
    ),
]
Queue = Annotated[
    str | None, typer.Option("--queue", metavar="NAME", help="Kueue's LocalQueue; none: not queued.")
]
Priority = Annotated[
    str | None, typer.Option("--priority-class", metavar="NAME", help="PriorityClass of the pods.")
]
Deadline = Annotated[
    float | None, typer.Option("--deadline-minutes", metavar="M", help="Limit of each attempt.")
]
Budget = Annotated[float | None, typer.Option("--budget-usd", metavar="USD", help="Refuse a plan above it.")]
MaxAttempts = Annotated[
    int | None, typer.Option("--max-attempts", metavar="N", help="Attempts at a stage before you look; 5.")
]
Grace = Annotated[
    int | None,
    typer.Option("--grace-s", metavar="S", help="Seconds to write a checkpoint in at a stop; 300."),
]
Cpu = Annotated[str | None, typer.Option("--cpu", metavar="N", help="CPUs of a pod that trains.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory of a pod that trains.")]

_OURS = (
    *("spec", "stage", "dry_run", "detach", "lease", "logs", "owner", "mounted", "wait_for_nodes"),
    *("kubeconfig", "context", "as_json"),
)


def submit(
    *,
    spec: Spec = None,
    stage: Stage = None,
    dry_run: DryRun = False,
    detach: Detach = False,
    run: o.Run = None,
    preset: o.Preset = None,
    depth: o.Depth = None,
    device_batch_size: o.DeviceBatchSize = None,
    source: o.Source = None,
    steps: o.Steps = None,
    checkpoint_every: o.CheckpointEvery = None,
    checkpoint_minutes: o.CheckpointMinutes = None,
    seed: o.Seed = None,
    deterministic: o.Deterministic = None,
    dtype: o.Dtype = None,
    max_problems: o.MaxProblems = None,
    allow_epochs: o.AllowEpochs = None,
    identity: o.Identity = None,
    image: Image = None,
    hardware: Hardware = None,
    nodes: Nodes = None,
    gpus: Gpus = None,
    nproc: Nproc = None,
    kind: Kind = None,
    queue: Queue = None,
    priority_class: Priority = None,
    claim: Claim = None,
    size: Size = None,
    storage_class: StorageClass = None,
    access_mode: AccessMode = None,
    cpu: Cpu = None,
    memory: Memory = None,
    deadline_minutes: Deadline = None,
    budget_usd: Budget = None,
    max_attempts: MaxAttempts = None,
    grace_s: Grace = None,
    lease: Lease = False,
    logs: Logs = None,
    owner: Owner = None,
    mounted: Mounted = None,
    wait_for_nodes: WaitForNodes = False,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Run a spec's stages on a cluster, one job each. The same command again adopts what is there."""
    flags = {name: value for name, value in locals().items() if name not in _OURS}
    from nanochat_platform.submit import stages_of

    found = read_spec(spec, flags, kubeconfig, context)
    stages = stages_of(found, stage)
    _warn(found)
    options = _options(lease, owner, mounted, wait_for_nodes, detach)
    if dry_run:
        _dry_run(found, stages, options, kubeconfig, context, as_json=as_json)
        return
    _run(found, stages, options, kubeconfig, context, as_json=as_json, logs=lease if logs is None else logs)


def resume(
    *,
    run: c.RunName = None,
    detach: Detach = False,
    mounted: Mounted = None,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Go on with a run from the spec that its newest job keeps; finished stages are not repeated."""
    from nanochat_platform.submit import stages_of

    client = c.connect(kubeconfig, context, namespace)
    found = kept_spec(client, c.one_run(client, run))
    options = _options(False, None, mounted, False, detach)
    _run(found, stages_of(found, None), options, kubeconfig, context, as_json=as_json, logs=False)


def read_spec(
    path: Path | None, flags: dict[str, Any], kubeconfig: Path | None, context: str | None
) -> RunSpec:
    """Return the spec of a file with options over it, in the kubeconfig's namespace where neither names one.

    Raises:
        ConfigError: the spec is wrong.
    """
    from nanochat.errors import NanochatError
    from nanochat_platform.kube import access
    from nanochat_platform.local import full_source
    from nanochat_platform.spec import RunSpec, read_yaml

    if flags.get("source") is not None:
        flags["source"] = full_source(flags["source"])
    if flags.get("identity") is not None:
        flags["identity"] = str(flags["identity"])
    named = flags.get("namespace") or (path is not None and read_yaml(path).get("namespace"))
    if not named:
        with contextlib.suppress(NanochatError):  # the spec's own error names the field that is missing
            flags["namespace"] = access.load(kubeconfig, context).namespace
    return RunSpec.load(path, flags)


def kept_spec(client: Client, run: str) -> RunSpec:
    """Return the spec kept on the newest job of a run.

    Raises:
        ConfigError: the run has no job that keeps one.
    """
    from nanochat.errors import ConfigError
    from nanochat_platform.kube.facts import attempts
    from nanochat_platform.kube.resources import annotation_of, meta
    from nanochat_platform.spec import RunSpec
    from nanochat_platform.submit.objects import SPEC

    found = sorted(attempts(client, run), key=lambda a: str(meta(a.job, "creationTimestamp", "")))
    kept = [text for text in (annotation_of(a.job, SPEC) for a in found) if text]
    if not kept:
        raise ConfigError(
            f"run `{run}` has no job in namespace `{client.namespace}` that keeps its spec",
            hint="start it from its file: `nanochat submit --spec run.yaml`; checkpoints on the volume count",
        )
    return RunSpec.model_validate_json(kept[-1])


def _warn(spec: RunSpec) -> None:
    from nanochat_platform.kube.planned import plan_cluster

    for warning in plan_cluster(spec).warnings:
        o.say(f"notice: {warning}")


def _options(
    lease: bool, owner: str | None, mounted: Path | None, wait_for_nodes: bool, detach: bool
) -> Options:
    from nanochat.settings import Home
    from nanochat_platform.submit import Options

    return Options(
        leased=lease,
        owner=None if owner is None else parse_owner(owner),
        home=None if mounted is None else Home(mounted.absolute()),
        wait_for_nodes=wait_for_nodes,
        detach=detach,
    )


def parse_owner(text: str) -> OwnerReference:
    """Return `apiVersion/Kind/name/uid` as an owner reference.

    Raises:
        ConfigError: it has another form.
    """
    from nanochat.errors import ConfigError
    from nanochat_platform.kube.jobs import OwnerReference

    *version, kind, name, uid = parts = text.split("/") if text.count("/") >= 3 else [""] * 4
    if not all(parts):
        raise ConfigError(
            f"--owner is `{text}`", hint="write e.g. `argoproj.io/v1alpha1/Workflow/<name>/<uid>`"
        )
    return OwnerReference(api_version="/".join(version), kind=kind, name=name, uid=uid)


def _dry_run(
    spec: RunSpec,
    stages: tuple[str, ...],
    options: Options,
    kubeconfig: Path | None,
    context: str | None,
    *,
    as_json: bool,
) -> None:
    import yaml

    from nanochat.errors import UnavailableError
    from nanochat_platform.kube.facts import attempts
    from nanochat_platform.submit import dry_run

    numbers: dict[str, int] = {}
    try:
        client = c.connect(kubeconfig, context, spec.namespace, patience_s=0.0)
        for attempt in attempts(client, spec.run_name):
            numbers[attempt.stage] = attempt.number + 1
    except UnavailableError as error:
        o.say(f"notice: the attempts made so far are unknown, so these are the first: {error.message}")
    sent = dry_run(spec, stages, numbers, leased=options.leased, owner=options.owner)
    if as_json:
        o.print_json(sent)
        return
    print(yaml.safe_dump_all(sent, sort_keys=False, width=1_000_000), end="", flush=True)


def _run(
    spec: RunSpec,
    stages: tuple[str, ...],
    options: Options,
    kubeconfig: Path | None,
    context: str | None,
    *,
    as_json: bool,
    logs: bool,
) -> None:
    from nanochat.errors import Interrupted
    from nanochat.run.signals import StopNow
    from nanochat_platform.submit import submit as run_stages

    client = c.connect(kubeconfig, context, spec.namespace, patience_s=PATIENCE_S)
    try:
        with _stops(), _logs(client, spec.run_name, shown=logs):
            result = run_stages(client, spec, stages, options, _say)
    except StopNow as stop:
        name = signal.Signals(stop.signum).name
        if options.leased:
            raise Interrupted(stop.signum, f"stopped by {name}; the job was deleted") from None
        raise Interrupted(
            stop.signum,
            f"stopped by {name}; what works in the cluster goes on",
            hint="the same command again adopts it; `nanochat cancel` stops it",
        ) from None
    if as_json:
        o.print_json(result.to_json())


@contextlib.contextmanager
def _logs(client: Client, run: str, *, shown: bool) -> Iterator[None]:
    """Print the logs of the run's pods to stderr meanwhile, and what is left of them at the end."""
    if not shown:
        yield
        return
    from nanochat_platform.kube.logs import Tee

    with Tee(client, run, lambda prefix, line: _say(f"{prefix} | {line}")):
        yield


def _say(text: str) -> None:
    """Talk; a reader that left, as after a pipeline's stop, is no reason to stop working."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stops() -> Iterator[None]:
    """Turn the first stop signal into `StopNow` wherever the main thread is; ignore the ones after it."""
    from nanochat.run.signals import StopNow, forwarded, handled_signals

    def stop(signum: int, frame: FrameType | None) -> None:
        for other in handled_signals():
            signal.signal(other, signal.SIG_IGN)
        raise StopNow(forwarded(signum))

    before = {signum: signal.signal(signum, stop) for signum in handled_signals()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)

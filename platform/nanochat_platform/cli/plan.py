"""`nanochat plan`. Knows nothing of formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nanochat_platform.cli import connect as c
from nanochat_platform.cli import options as o

Machine = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        metavar="NAME",
        help="mps, or a count and a device: 1xh100, 8xa100, ...; without it cpu, and with --spec the spec's.",
    ),
]
Run = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="Plan this run, and keep its plan.json.")
]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="On cpu and mps: time three steps here first.")
]

Spec = Annotated[
    Path | None,
    typer.Option("--spec", metavar="FILE", help="Plan this run on a cluster: its objects and quota too."),
]
Lease = Annotated[
    bool, typer.Option("--lease", help="With --spec: count the lease's guard too, as pipelines have it.")
]

_OURS = ("spec", "lease", "hardware", "measure", "namespace", "kubeconfig", "context", "as_json")


def plan(
    *,
    spec: Spec = None,
    run: Run = None,
    preset: o.Preset = None,
    hardware: Machine = None,
    depth: o.Depth = None,
    device_batch_size: o.DeviceBatchSize = None,
    steps: o.Steps = None,
    source: o.Source = None,
    max_problems: o.MaxProblems = None,
    dtype: o.Dtype = None,
    nproc: o.Nproc = None,
    allow_epochs: o.AllowEpochs = None,
    measure: Measure = True,
    lease: Lease = False,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Print what a run needs, takes and costs before it is started: model, memory, shards, time, money."""
    given = {name: value for name, value in locals().items() if name not in _OURS}
    if spec is not None:
        flags = given | {"hardware": hardware, "namespace": namespace}
        _on_a_cluster(spec, flags, kubeconfig, context, leased=lease, as_json=as_json)
        return

    from nanochat import settings
    from nanochat.errors import ConfigError
    from nanochat.files import write_json
    from nanochat_platform import local
    from nanochat_platform.hardware import find
    from nanochat_platform.plan import describe, known_data, make_plan, measure_here

    if lease:
        raise ConfigError("--lease counts what a cluster's jobs ask for", hint="name the run's --spec FILE")
    home = settings.home()
    config = local.make_spec(home, given, stored=run is not None, check=False)
    found = make_plan(
        config,
        find(hardware or "cpu"),
        measure=measure_here if measure else None,
        data=known_data(home, config),
    )
    values = found.model_dump(mode="json")
    if run is not None:
        write_json(home.run(run) / "plan.json", values)
    if as_json:
        o.print_json(values)
    else:
        print(describe(found), flush=True)


def _on_a_cluster(
    path: Path,
    flags: dict[str, object],
    kubeconfig: Path | None,
    context: str | None,
    *,
    leased: bool,
    as_json: bool,
) -> None:
    """Print the plan of a cluster's spec, with options over it."""
    from nanochat_platform.cli.submit import read_spec
    from nanochat_platform.kube.planned import plan_cluster
    from nanochat_platform.plan import describe

    found = plan_cluster(read_spec(path, flags, kubeconfig, context), leased=leased)
    if as_json:
        o.print_json(found.model_dump(mode="json"))
    else:
        print(describe(found), flush=True)

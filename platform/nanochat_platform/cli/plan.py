"""`nanochat plan`. Knows nothing of formulas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat_platform.cli import connect as c
from nanochat_platform.cli import options as o

if TYPE_CHECKING:
    from nanochat.run.config import RunConfig
    from nanochat.settings import Home
    from nanochat_platform.plan import DataFacts

Machine = Annotated[
    str,
    typer.Option(
        "--hardware",
        metavar="NAME",
        help="cpu, mps, or a count and a device: 1xh100, 8xa100, ...; with --spec the spec's, if not given.",
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


def plan(
    ctx: typer.Context,
    *,
    spec: Spec = None,
    run: Run = None,
    preset: o.Preset = None,
    hardware: Machine = "cpu",
    depth: o.Depth = None,
    device_batch_size: o.DeviceBatchSize = None,
    steps: o.Steps = None,
    source: o.Source = None,
    max_problems: o.MaxProblems = None,
    dtype: o.Dtype = None,
    nproc: o.Nproc = None,
    allow_epochs: o.AllowEpochs = None,
    measure: Measure = True,
    namespace: c.Namespace = None,
    kubeconfig: c.Kubeconfig = None,
    context: c.Context = None,
    as_json: o.Json = False,
) -> None:
    """Print what a run needs, takes and costs before it is started: model, memory, shards, time, money."""
    given = dict(locals())
    for name in ("ctx", "spec", "hardware", "measure", "as_json"):
        given.pop(name)
    for name in ("namespace", "kubeconfig", "context"):
        given.pop(name)
    if spec is not None:
        chosen_by = ctx.get_parameter_source("hardware")
        flags = given | {"namespace": namespace}
        if chosen_by is not None and chosen_by.name != "DEFAULT":
            flags["hardware"] = hardware
        _on_a_cluster(spec, flags, kubeconfig, context, as_json=as_json)
        return

    from nanochat import settings
    from nanochat.files import write_json
    from nanochat_platform import local
    from nanochat_platform.hardware import find
    from nanochat_platform.plan import describe, make_plan, measure_here

    home = settings.home()
    config = local.make_spec(home, given, stored=run is not None, check=False)
    found = make_plan(
        config, find(hardware), measure=measure_here if measure else None, data=data_facts(home, config)
    )
    values = found.model_dump(mode="json")
    if run is not None:
        write_json(home.run(run) / "plan.json", values)
    if as_json:
        o.print_json(values)
    else:
        print(describe(found), flush=True)


def _on_a_cluster(
    path: Path, flags: dict[str, object], kubeconfig: Path | None, context: str | None, *, as_json: bool
) -> None:
    """Print the plan of a cluster's spec, with options over it."""
    from nanochat_platform.cli.submit import read_spec
    from nanochat_platform.kube.planned import plan_cluster
    from nanochat_platform.plan import describe

    found = plan_cluster(read_spec(path, flags, kubeconfig, context))
    if as_json:
        o.print_json(found.model_dump(mode="json"))
    else:
        print(describe(found), flush=True)


def data_facts(home: Home, spec: RunConfig) -> DataFacts | None:
    """Return the size of a hub's dataset once it is here and tokenised; None before, and for others."""
    from nanochat.data.manifest import MANIFEST, load
    from nanochat.data.sources import load_sources
    from nanochat.files import read_json
    from nanochat_platform.plan import DataFacts

    folder = home.dataset(spec.dataset())
    tokens = sorted(folder.glob(f"tokens-*/{MANIFEST}"))
    if spec.source not in load_sources().hub or not tokens or not (folder / MANIFEST).exists():
        return None
    size = load(folder).utf8_bytes
    count = sum(shard["tokens"] for shard in read_json(tokens[-1])["shards"][:-1])
    return DataFacts(utf8_bytes=size, bytes_per_token=size / count)

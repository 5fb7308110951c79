"""`nanochat plan`. Knows nothing of formulas."""

from __future__ import annotations

from typing import Annotated

import typer

from nanochat_platform.cli import options as o

Hardware = Annotated[str, typer.Option("--hardware", metavar="NAME", help="cpu, 1xh100, 8xh100, 8xa100, ...")]


def plan(
    *,
    preset: o.Preset = None,
    hardware: Hardware = "cpu",
    depth: o.Depth = None,
    device_batch_size: o.DeviceBatchSize = None,
    steps: o.Steps = None,
    source: o.Source = None,
    allow_epochs: o.AllowEpochs = None,
    as_json: o.Json = False,
) -> None:
    """Print parameters, tokens, steps, memory, shards, time and cost of a run before it is started."""
    from nanochat import settings
    from nanochat_platform import local
    from nanochat_platform import plan as planner

    given = {
        "preset": preset,
        "depth": depth,
        "device_batch_size": device_batch_size,
        "steps": steps,
        "source": source,
        "allow_epochs": allow_epochs,
    }
    raise NotImplementedError((settings, local, planner, hardware, given, as_json))

"""Options that several commands share. Knows nothing of what they mean."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Run = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="Name of the run; the preset's name without it.")
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="smoke, tiny, speedrun, classic-d20, d26 or run1000."),
]
Depth = Annotated[
    int | None, typer.Option("--depth", metavar="LAYERS", help="The one dial: layers; all else follows.")
]
DeviceBatchSize = Annotated[
    int | None,
    typer.Option("--device-batch-size", metavar="ROWS", help="Rows on a device at once; the total stays."),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="NAME", help="packages/cpu, packages/core, generated, climbmix or fineweb-edu."
    ),
]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Optimizer steps of each training stage.")
]
CheckpointEvery = Annotated[
    int | None, typer.Option("--checkpoint-every", metavar="N", help="Steps between checkpoints.")
]
CheckpointMinutes = Annotated[
    float | None, typer.Option("--checkpoint-minutes", metavar="M", help="Minutes between checkpoints.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of weights and data order.")]
Deterministic = Annotated[
    bool | None, typer.Option("--deterministic/--no-deterministic", help="Bit-identical resume; slower.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", metavar="TYPE", help="auto, bf16 or fp32.")]
MaxProblems = Annotated[
    int | None, typer.Option("--max-problems", metavar="N", help="Problems of each evaluation task at most.")
]
Nproc = Annotated[int | None, typer.Option("--nproc", metavar="N", help="Ranks on this machine.")]
Identity = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="JSONL of your own identity conversations; on a cluster /data/..., on the volume.",
    ),
]
AllowEpochs = Annotated[
    bool | None,
    typer.Option("--allow-epochs/--no-allow-epochs", help="Repeat the data where it is too little."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def print_json(value: Any) -> None:
    """Print a result to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def say(text: str) -> None:
    """Print talk to stderr."""
    print(text, file=sys.stderr, flush=True)

"""`nanochat speedrun` and `nanochat run STAGE`. Knows nothing of what stages do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat_platform.cli import options as o


def speedrun(
    *,
    run: o.Run = None,
    preset: o.Preset = None,
    depth: o.Depth = None,
    device_batch_size: o.DeviceBatchSize = None,
    source: o.Source = None,
    until: o.Until = None,
    steps: o.Steps = None,
    checkpoint_every: o.CheckpointEvery = None,
    checkpoint_minutes: o.CheckpointMinutes = None,
    seed: o.Seed = None,
    deterministic: o.Deterministic = None,
    dtype: o.Dtype = None,
    max_problems: o.MaxProblems = None,
    nproc: o.Nproc = None,
    identity: o.Identity = None,
    allow_epochs: o.AllowEpochs = None,
    as_json: o.Json = False,
) -> None:
    """Run all stages: data, tokenizer, training, evaluation, report. The same command again continues."""
    given = dict(locals())
    _train(given, first=None, last=given.pop("until"), as_json=given.pop("as_json"))


def run_stage(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="data, tok_train, ..., report.")],
    *,
    run: o.Run = None,
    preset: o.Preset = None,
    depth: o.Depth = None,
    device_batch_size: o.DeviceBatchSize = None,
    source: o.Source = None,
    until: o.Until = None,
    steps: o.Steps = None,
    checkpoint_every: o.CheckpointEvery = None,
    checkpoint_minutes: o.CheckpointMinutes = None,
    seed: o.Seed = None,
    deterministic: o.Deterministic = None,
    dtype: o.Dtype = None,
    max_problems: o.MaxProblems = None,
    nproc: o.Nproc = None,
    identity: o.Identity = None,
    allow_epochs: o.AllowEpochs = None,
    as_json: o.Json = False,
) -> None:
    """Run one stage of a run, or the stages from it to --until. A finished stage is not repeated."""
    given = dict(locals())
    _train(given, first=given.pop("stage"), last=given.pop("until"), as_json=given.pop("as_json"))


def _train(given: dict[str, Any], *, first: str | None, last: str | None, as_json: bool) -> None:
    from nanochat import settings
    from nanochat_platform import local

    home = settings.home()
    stages = local.choose(first, last)
    spec = local.make_spec(home, given)
    result = local.run_stages(home, spec, stages, o.say)
    answer = None
    if result.exit_code == 0 and first is None and stages[-1].name == "report":
        answer = ask(spec.run, local.QUESTION)
    if as_json:
        o.print_json({**result.to_json(), "answer": answer, "report": str(home.run(spec.run) / "report")})
    elif answer is not None:
        _close(home.run(spec.run), answer)
    raise typer.Exit(result.exit_code)


def ask(run: str, question: str) -> str:
    """Return the newest chat model's answer, made by a `nanochat chat` process; this one has no torch."""
    command = [sys.executable, "-m", "nanochat_platform.cli", "chat", "--run", run, "-p", question]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise typer.Exit(done.returncode)
    return done.stdout.strip()


def own_name() -> str:
    """Return how this command line was called, e.g. `.venv/bin/nanochat` from the Makefile."""
    name = sys.argv[0]
    found = shutil.which("nanochat")
    if Path(name).name != "nanochat":
        return "nanochat" if found else f"{sys.executable} -m nanochat_platform.cli"
    return "nanochat" if found and Path(found).resolve() == Path(name).resolve() else name


def _close(run_dir: Path, answer: str) -> None:
    from nanochat.report.markdown import summary_table
    from nanochat_platform import local

    name = own_name()
    print(f"\n{summary_table(run_dir)}\n\nReport: {run_dir / 'report' / 'report.html'}\n")
    print(f"> {local.QUESTION}\n{answer}\n")
    print(f"Chat in the terminal:  {name} chat --run {run_dir.name}")
    print(f"Serve page and API:    {name} serve --run {run_dir.name}", flush=True)

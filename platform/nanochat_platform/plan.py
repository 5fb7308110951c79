"""What a run will need, take and cost, before anything is started or paid for.

`make_plan` is pure: a configuration, a machine, and what was measured or prepared go in; a `Plan` or a
refusal that names the fix comes out. Imports no torch; on machines without published figures a subprocess
measures. Knows nothing of how stages run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from nanochat.data.sources import load_sources
from nanochat.errors import ConfigError, QuotaError
from nanochat.files import read_json
from nanochat.run.config import Frozen, RunConfig
from nanochat.run.stage import STAGES
from nanochat.settings import Home
from nanochat.shape import BYTES_PER_TOKEN, PACKING_LOSS, Preset, resolve, shards_needed
from nanochat_platform.hardware import GIB, Hardware, quantity, quantity_text

USABLE_MEMORY = 0.9  # the rest goes to the allocator's gaps, the CUDA context and communication buffers
SHARD_FILE_BYTES = 100_000_000
# An evaluation's cost in training tokens: 15 minutes of the published 8xH100 run at depth 20; where problems
# are capped, by problem.
EVAL_TOKENS, EVAL_TOKENS_PER_PROBLEM = 900_000_000, 3000
FIRST_STEP_S = 90.0  # compiling on a GPU machine, each training stage

Measure = Callable[[RunConfig], Mapping[str, Any]]


class StagePlan(Frozen):
    """One stage's share."""

    stage: str
    parameters: int | None = None
    """Trained parameters; None for a stage that trains no model."""
    tokens: int | None = None
    steps: int | None = None
    device_batch_size: int | None = None
    accumulation: int | None = None
    seconds: float | None = None
    """None: not known until it is measured."""
    usd: float | None = None


class PlannedObject(Frozen):
    """One object that will be created in a cluster, and what its pods ask for in all."""

    kind: str
    name: str
    stage: str | None = None
    """None: it serves all stages."""
    pods: int = 0
    requests: dict[str, str] = Field(default_factory=dict)


class Plan(Frozen):
    """All of a run, stage by stage."""

    run: str
    preset: str
    hardware: str
    hardware_title: str
    nodes: int = 1
    ranks: int
    """Of all nodes."""
    arch: str
    depth: int
    width: int
    seq_len: int
    vocab_size: int
    parameters: dict[str, int]
    """By group, and in total."""
    scaling_params: int
    flops_per_token: int
    total_flops: float
    total_batch_tokens: int
    device_batch_size: int
    accumulation: int
    memory_bytes: dict[str, int]
    """Estimate for one device, by use, and in total."""
    memory_limit_bytes: int
    source: str
    shards_needed: int | None
    """Of a hub's shards, validation included; None for data that is not made of them."""
    epochs: float | None
    """Passes over the training text; None while its size is not known."""
    tok_per_s: float | None
    """Training throughput of all ranks."""
    mfu: float | None
    throughput_source: str
    stages: tuple[StagePlan, ...]
    seconds: float | None
    usd: float | None
    usd_per_hour: float | None = None
    """Price of one machine that the costs suppose."""
    objects: tuple[PlannedObject, ...] = ()
    """Of a run on a cluster, in the order of their creation."""
    quota: dict[str, str] = Field(default_factory=dict)
    """What the namespace must have room for: the most that exists at one time, stage after stage."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What is known of a dataset that is already prepared."""

    utf8_bytes: int | None
    """Of the training text; None where more can be fetched."""
    bytes_per_token: float = BYTES_PER_TOKEN
    packing_loss: float = PACKING_LOSS
    """Tokens written per token trained on."""


@dataclass(frozen=True, slots=True)
class _Speed:
    tok_per_s: float | None
    mfu: float | None
    source: str
    first_step_s: float


def make_plan(
    spec: RunConfig,
    hardware: Hardware,
    *,
    nodes: int = 1,
    measure: Measure | None = None,
    data: DataFacts | None = None,
    objects: Sequence[PlannedObject] = (),
    budget_usd: float | None = None,
) -> Plan:
    """Return the plan of a run on a machine, or on `nodes` of them where a stage trains.

    `measure` is called for machines without published figures, after everything else was found to fit; its
    result holds `tok_per_s` and, optionally, `first_step_s`. Without it their times stay None.

    Raises:
        ConfigError: the preset does not exist, the batch does not divide, the model does not fit the memory,
            or the data is too little; each names the fix.
        QuotaError: it costs more than the budget.
    """
    local = hardware.devices if hardware.kind == "cuda" else spec.nproc
    ranks = nodes * local
    preset = resolve(spec, world_size=ranks)
    shape = preset.shape
    half = spec.dtype != "fp32"
    memory = _memory(preset, hardware, ranks=ranks, half=half)
    limit = int(hardware.memory_bytes * USABLE_MEMORY) // (1 if hardware.kind == "cuda" else local)
    if memory["total"] > limit:
        raise _does_not_fit(preset, hardware, ranks=ranks, half=half, limit=limit)
    tokens = preset.base_steps * preset.total_batch_tokens
    shards, epochs, warnings = _data(spec, tokens, data)
    speed = _speed(spec, preset, hardware, measure)
    if nodes > 1 and speed.mfu is not None:
        warnings.append(f"no figures of {nodes} nodes are published; the time supposes {nodes} times one's")
    stages = tuple(_stages(preset, hardware, speed, ranks=ranks, nodes=nodes, shards=shards))
    usd = _total([stage.usd for stage in stages])
    warnings += _within(budget_usd, usd)
    return Plan(
        run=spec.run,
        preset=spec.preset,
        hardware=hardware.name,
        hardware_title=hardware.title,
        nodes=nodes,
        ranks=ranks,
        arch=shape.arch,
        depth=shape.depth,
        width=shape.width,
        seq_len=shape.seq_len,
        vocab_size=shape.vocab_size,
        parameters=shape.parameter_counts(),
        scaling_params=shape.scaling_params(),
        flops_per_token=shape.flops_per_token(),
        total_flops=float(shape.flops_per_token() * tokens),
        total_batch_tokens=preset.total_batch_tokens,
        device_batch_size=preset.device_batch_size,
        accumulation=preset.accumulation(ranks),
        memory_bytes=memory,
        memory_limit_bytes=limit,
        source=spec.source,
        shards_needed=shards,
        epochs=epochs,
        tok_per_s=None if speed.tok_per_s is None else nodes * speed.tok_per_s,
        mfu=speed.mfu,
        throughput_source=speed.source,
        stages=stages,
        seconds=_total([stage.seconds for stage in stages]),
        usd=usd,
        usd_per_hour=hardware.usd_per_hour,
        objects=tuple(objects),
        quota=needed_quota(objects),
        warnings=tuple(warnings),
    )


def _within(budget_usd: float | None, usd: float | None) -> list[str]:
    """Return a warning where the budget cannot be checked.

    Raises:
        QuotaError: the plan costs more.
    """
    if budget_usd is None:
        return []
    if usd is None:
        return [f"the budget of {_dollars(budget_usd)} cannot be checked: time or price is not known"]
    if usd > budget_usd:
        raise QuotaError(
            f"the plan costs {_dollars(usd)}, and the budget is {_dollars(budget_usd)}",
            hint="raise budget_usd, use a smaller --depth, fewer --steps, or other hardware",
        )
    return []


def needed_quota(objects: Sequence[PlannedObject]) -> dict[str, str]:
    """Return the most that is asked for at one time, where one stage runs after another."""
    most: dict[str, float] = {}
    for planned in objects:
        asked = {name: quantity(amount) for name, amount in planned.requests.items()}
        if planned.pods:
            asked["pods"] = float(planned.pods)
        for name, amount in asked.items():
            most[name] = max(most.get(name, 0.0), amount)
    return {name: quantity_text(name, amount) for name, amount in sorted(most.items())}


def _memory(preset: Preset, hardware: Hardware, *, ranks: int, half: bool) -> dict[str, int]:
    tables = 2 if half and hardware.kind == "cuda" else 4  # fp32 tables cost a CPU nothing
    return preset.shape.memory_bytes(
        preset.device_batch_size, world_size=ranks, table_bytes=tables, compute_bytes=2 if half else 4
    )


def _does_not_fit(preset: Preset, hardware: Hardware, *, ranks: int, half: bool, limit: int) -> ConfigError:
    """Return the refusal, with the largest device batch that fits and divides, or what else would help."""
    wanted = _memory(preset, hardware, ranks=ranks, half=half)["total"]
    per_rank = preset.rows_per_step() // ranks
    smaller = [rows for rows in range(1, preset.device_batch_size) if per_rank % rows == 0]
    fitting = [
        rows
        for rows in smaller
        if _memory(replace(preset, device_batch_size=rows), hardware, ranks=ranks, half=half)["total"]
        <= limit
    ]
    if fitting:
        hint = f"use --device-batch-size {max(fitting)}; the total batch stays the same"
    else:
        hint = "use a smaller --depth, or --hardware with more memory or more devices"
    return ConfigError(
        f"depth {preset.shape.depth} with a device batch of {preset.device_batch_size} rows needs about"
        f" {wanted / GIB:.1f} GiB per rank, but {hardware.name} has {limit / GIB:.1f} GiB to use",
        hint=hint,
    )


def _data(spec: RunConfig, tokens: int, data: DataFacts | None) -> tuple[int | None, float | None, list[str]]:
    """Return (shards needed, epochs, warnings).

    Raises:
        ConfigError: the data is less than one epoch and epochs are not allowed.
    """
    hub = load_sources().hub.get(spec.source)
    shards = available = None
    if hub is not None:
        per_token = data.bytes_per_token if data else BYTES_PER_TOKEN
        shards, available = shards_needed(tokens, bytes_per_token=per_token), hub.files
    epochs = None
    if data is not None and data.utf8_bytes is not None:
        epochs = tokens * data.bytes_per_token * data.packing_loss / data.utf8_bytes
    elif shards is not None and available is not None:
        epochs = (shards - 1) / (available - 1) if shards > available else 1.0
    if epochs is None or epochs <= 1.0:
        return shards, epochs, []
    if shards is not None and available is not None:
        shards = min(shards, available)
    text = f"base training takes {tokens:,} tokens, about {epochs:.1f} times what `{spec.source}` holds"
    if not spec.allow_epochs:
        raise ConfigError(text, hint="pass --allow-epochs, use fewer --steps, or another --source")
    return shards, epochs, [text]


def _speed(spec: RunConfig, preset: Preset, hardware: Hardware, measure: Measure | None) -> _Speed:
    shape = preset.shape
    published = hardware.mfu(shape.depth)
    if published is not None and hardware.peak_flops is not None:
        per_device = published.mfu * hardware.peak_flops / shape.flops_per_token()
        return _Speed(per_device * hardware.devices, published.mfu, published.source, FIRST_STEP_S)
    if measure is None:
        return _Speed(None, None, "not measured", 0.0)
    figures = measure(spec)
    return _Speed(
        float(figures["tok_per_s"]) * spec.nproc,
        None,
        "three steps measured on this machine",
        float(figures.get("first_step_s", 0.0)),
    )


def _stages(
    preset: Preset, hardware: Hardware, speed: _Speed, *, ranks: int, nodes: int, shards: int | None
) -> list[StagePlan]:
    parameters = preset.shape.parameter_counts()["total"]
    steps = {"base_train": preset.base_steps, "mid_train": preset.mid_steps, "chat_sft": preset.sft_steps}
    other = _other_seconds(preset, hardware, speed, shards)
    plans = []
    for stage in STAGES:
        if stage.name not in steps:
            seconds = other.get(stage.name)
            plans.append(StagePlan(stage=stage.name, seconds=seconds, usd=_usd(seconds, hardware)))
            continue
        tokens = steps[stage.name] * preset.total_batch_tokens
        seconds = speed.first_step_s + tokens / (nodes * speed.tok_per_s) if speed.tok_per_s else None
        plans.append(
            StagePlan(
                stage=stage.name,
                parameters=parameters,
                tokens=tokens,
                steps=steps[stage.name],
                device_batch_size=preset.device_batch_size,
                accumulation=preset.accumulation(ranks),
                seconds=seconds,
                usd=_usd(seconds, hardware, nodes),
            )
        )
    return plans


def _other_seconds(
    preset: Preset, hardware: Hardware, speed: _Speed, shards: int | None
) -> dict[str, float | None]:
    """Return rough times of the stages that do not train: bytes over rates, tokens over throughput."""
    tokens = preset.base_steps * preset.total_batch_tokens
    cap = preset.max_problems
    eval_tokens = EVAL_TOKENS if cap is None else cap * EVAL_TOKENS_PER_PROBLEM
    evaluation = eval_tokens / speed.tok_per_s if speed.tok_per_s else None
    download = (shards or 0) * SHARD_FILE_BYTES / hardware.download_bytes_per_s
    return {
        "data": download + 15.0,
        "tok_train": preset.tokenizer_characters / hardware.text_bytes_per_s + 2.0,
        "tok_eval": 5.0,
        "tokenize": tokens * BYTES_PER_TOKEN * PACKING_LOSS / hardware.text_bytes_per_s + 2.0,
        "base_eval": evaluation,
        "mid_eval": evaluation,
        "chat_eval": evaluation,
        "report": 5.0,
    }


def _total(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _usd(seconds: float | None, hardware: Hardware, nodes: int = 1) -> float | None:
    if seconds is None or hardware.usd_per_hour is None:
        return None
    return seconds / 3600 * hardware.usd_per_hour * nodes


def measure_here(spec: RunConfig) -> Mapping[str, Any]:
    """Return what `python -m nanochat.train.measure` measures: three steps of base training on this machine.

    Raises:
        ConfigError: the measurement failed; carries its last words.
    """
    command = [sys.executable, "-m", "nanochat.train.measure", "--preset", spec.preset, "--dtype", spec.dtype]
    for option in ("depth", "device_batch_size", "steps"):
        if (value := getattr(spec, option)) is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no output"]
        raise ConfigError(f"could not measure three steps on this machine: {words[-1]}")
    figures: Mapping[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def known_data(home: Home, spec: RunConfig) -> DataFacts | None:
    """Return what the home's prepared and tokenized dataset says of the run's source; None without one.

    Raises:
        DataError: the dataset's manifest is damaged.
    """
    from nanochat.data import loader, manifest  # numpy takes 0.2 s to import

    folder = home.dataset(spec.dataset())
    if not (folder / manifest.MANIFEST).exists():
        return None
    dataset = manifest.load(folder)
    text = sum(dataset.files[name].utf8_bytes or 0 for name in dataset.train_shards)
    per_token = BYTES_PER_TOKEN
    for tokens in sorted(folder.glob("tokens-*/manifest.json")):
        counted = {shard["name"]: shard["tokens"] for shard in read_json(tokens)["shards"]}
        if known := sum(counted.get(Path(name).stem, 0) for name in dataset.train_shards):
            per_token = text / known
    short = resolve(spec).shape.seq_len < loader.SPLIT_BELOW  # such contexts keep what does not fit a row
    return DataFacts(
        utf8_bytes=None if spec.source in load_sources().hub else text,
        bytes_per_token=per_token,
        packing_loss=1.05 if short else PACKING_LOSS,
    )


def describe(plan: Plan) -> str:
    """Return the plan as text for a terminal."""
    lines = [f"{plan.preset} on {plan.hardware} ({plan.hardware_title})"]
    lines += [f"  {name:<12}{text}" for name, text in _facts(plan).items()]
    lines += ["", f"  {'stage':<12}{'steps':>8}{'tokens':>10}{'time':>10}{'cost':>10}"]
    for row in plan.stages:
        tokens = _count(row.tokens) if row.tokens else "-"
        ends = f"{_time(row.seconds):>10}{_dollars(row.usd):>10}"
        lines.append(f"  {row.stage:<12}{row.steps or '-':>8}{tokens:>10}{ends}")
    lines.append(f"  {'total':<30}{_time(plan.seconds):>10}{_dollars(plan.usd):>10}")
    lines += _cluster_lines(plan)
    lines += [f"  warning: {text}" for text in plan.warnings]
    return "\n".join(lines)


def _cluster_lines(plan: Plan) -> list[str]:
    if not plan.objects:
        return []
    wide = max(len(f"{planned.kind}/{planned.name}") for planned in plan.objects)
    lines = ["", f"  {'object':<{wide}}  {'pods':>4}  requests"]
    for planned in plan.objects:
        asked = ", ".join(f"{name} {amount}" for name, amount in planned.requests.items())
        lines.append(f"  {planned.kind + '/' + planned.name:<{wide}}  {planned.pods or '-':>4}  {asked}")
    quota = ", ".join(f"{name} {amount}" for name, amount in plan.quota.items())
    return [*lines, f"  quota needed at one time: {quota}"]


def _facts(plan: Plan) -> dict[str, str]:
    counts = plan.parameters
    groups = ", ".join(f"{name} {_count(n)}" for name, n in counts.items() if n and name != "total")
    data = plan.source
    if plan.shards_needed:
        data += f", {plan.shards_needed} shards"
    if plan.epochs and plan.epochs > 1:
        data += f", {plan.epochs:.2f} epochs"
    speed = f"{plan.tok_per_s:,.0f} tok/s" if plan.tok_per_s else "unknown"
    if plan.mfu:
        speed += f", MFU {plan.mfu:.0%}"
    needed, limit = plan.memory_bytes["total"] / GIB, plan.memory_limit_bytes / GIB
    return {
        "model": f"{plan.arch} d{plan.depth}, width {plan.width}, {_count(counts['total'])} parameters",
        "": groups,
        "horizon": f"{_count(plan.flops_per_token)} FLOPs/token, {plan.total_flops:.2e} in base training",
        "batch": f"{plan.total_batch_tokens:,} tokens = ranks {plan.ranks} x rows {plan.device_batch_size}"
        f" x accumulation {plan.accumulation} x length {plan.seq_len}",
        "memory": f"{needed:.1f} of {limit:.1f} GiB per rank",
        "data": data,
        "throughput": f"{speed} ({plan.throughput_source})",
        **({"price": f"{_dollars(plan.usd_per_hour)} an hour a node, supposed"} if plan.usd_per_hour else {}),
    }


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _dollars(usd: float | None) -> str:
    return "-" if usd is None else f"${usd:,.2f}"

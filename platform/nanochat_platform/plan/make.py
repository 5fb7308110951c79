"""From a configuration and a machine to a plan.

`make_plan` is pure: a configuration, a machine, and what was measured or prepared go in; a `Plan` or a
refusal that names the fix comes out. Knows nothing of how stages run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.data.sources import load_sources
from nanochat.errors import ConfigError, QuotaError
from nanochat.run.config import RunConfig
from nanochat.run.stage import STAGES
from nanochat.shape import BYTES_PER_TOKEN, PACKING_LOSS, Preset, resolve, shards_needed
from nanochat_platform.hardware import GIB, Hardware
from nanochat_platform.plan.model import DataFacts, Plan, PlannedObject, StagePlan, needed_quota
from nanochat_platform.plan.text import dollars

USABLE_MEMORY = 0.9  # the rest goes to the allocator's gaps, the CUDA context and communication buffers
SHARD_FILE_BYTES = 100_000_000
# An evaluation's cost in training tokens: 15 minutes of the published 8xH100 run at depth 20; where problems
# are capped, by problem.
EVAL_TOKENS, EVAL_TOKENS_PER_PROBLEM = 900_000_000, 3000
FIRST_STEP_S = 90.0  # compiling on a GPU machine, each training stage

Measure = Callable[[RunConfig], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Case:
    """A run's sizes on `nodes` machines of one kind."""

    spec: RunConfig
    hardware: Hardware
    nodes: int
    ranks: int
    preset: Preset

    @classmethod
    def of(cls, spec: RunConfig, hardware: Hardware, nodes: int) -> _Case:
        ranks = nodes * (hardware.devices if hardware.kind == "cuda" else spec.nproc)
        return cls(spec, hardware, nodes, ranks, resolve(spec, world_size=ranks))

    @property
    def tokens(self) -> int:
        """Of base training."""
        return self.preset.base_steps * self.preset.total_batch_tokens

    def memory(self, rows: int) -> dict[str, int]:
        """Return one rank's bytes by use, at a device batch of `rows`."""
        half = self.spec.dtype != "fp32"
        tables = 2 if half and self.hardware.kind == "cuda" else 4  # fp32 tables cost a CPU nothing
        return self.preset.shape.memory_bytes(
            rows, world_size=self.ranks, table_bytes=tables, compute_bytes=2 if half else 4
        )

    def memory_limit(self) -> int:
        """Return the bytes that one rank may use."""
        sharing = 1 if self.hardware.kind == "cuda" else self.spec.nproc
        return int(self.hardware.memory_bytes * USABLE_MEMORY) // sharing


@dataclass(frozen=True, slots=True)
class _Data:
    shards: int | None
    epochs: float | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Speed:
    tok_per_s: float | None
    """Of one node."""
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
    case = _Case.of(spec, hardware, nodes)
    _check_memory(case)
    found = _data(case, data)
    speed = _speed(case, measure)
    stages = tuple(_stages(case, speed, found.shards))
    warnings = list(found.warnings)
    if nodes > 1 and speed.mfu is not None:
        warnings.append(f"no figures of {nodes} nodes are published; the time supposes {nodes} times one's")
    warnings += _within(budget_usd, _total([stage.usd for stage in stages]))
    return _plan(case, found, speed, stages, objects, warnings)


def _plan(
    case: _Case,
    data: _Data,
    speed: _Speed,
    stages: tuple[StagePlan, ...],
    objects: Sequence[PlannedObject],
    warnings: Sequence[str],
) -> Plan:
    preset, shape = case.preset, case.preset.shape
    return Plan(
        run=case.spec.run,
        preset=case.spec.preset,
        hardware=case.hardware.name,
        hardware_title=case.hardware.title,
        nodes=case.nodes,
        ranks=case.ranks,
        arch=shape.arch,
        depth=shape.depth,
        width=shape.width,
        seq_len=shape.seq_len,
        vocab_size=shape.vocab_size,
        parameters=shape.parameter_counts(),
        scaling_params=shape.scaling_params(),
        flops_per_token=shape.flops_per_token(),
        total_flops=float(shape.flops_per_token() * case.tokens),
        total_batch_tokens=preset.total_batch_tokens,
        device_batch_size=preset.device_batch_size,
        accumulation=preset.accumulation(case.ranks),
        memory_bytes=case.memory(preset.device_batch_size),
        memory_limit_bytes=case.memory_limit(),
        source=case.spec.source,
        shards_needed=data.shards,
        epochs=data.epochs,
        tok_per_s=None if speed.tok_per_s is None else case.nodes * speed.tok_per_s,
        mfu=speed.mfu,
        throughput_source=speed.source,
        stages=stages,
        seconds=_total([stage.seconds for stage in stages]),
        usd=_total([stage.usd for stage in stages]),
        usd_per_hour=case.hardware.usd_per_hour,
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
        return [f"the budget of {dollars(budget_usd)} cannot be checked: time or price is not known"]
    if usd > budget_usd:
        raise QuotaError(
            f"the plan costs {dollars(usd)}, and the budget is {dollars(budget_usd)}",
            hint="raise budget_usd, use a smaller --depth, fewer --steps, or other hardware",
        )
    return []


def _check_memory(case: _Case) -> None:
    """Refuse what does not fit, with the largest device batch that fits and divides, or what else would help.

    Raises:
        ConfigError: one rank needs more than it may use.
    """
    preset, limit = case.preset, case.memory_limit()
    wanted = case.memory(preset.device_batch_size)["total"]
    if wanted <= limit:
        return
    per_rank = preset.rows_per_step() // case.ranks
    smaller = [rows for rows in range(1, preset.device_batch_size) if per_rank % rows == 0]
    fitting = [rows for rows in smaller if case.memory(rows)["total"] <= limit]
    if fitting:
        hint = f"use --device-batch-size {max(fitting)}; the total batch stays the same"
    else:
        hint = "use a smaller --depth, or --hardware with more memory or more devices"
    raise ConfigError(
        f"depth {preset.shape.depth} with a device batch of {preset.device_batch_size} rows needs about"
        f" {wanted / GIB:.1f} GiB per rank, but {case.hardware.name} has {limit / GIB:.1f} GiB to use",
        hint=hint,
    )


def _data(case: _Case, facts: DataFacts | None) -> _Data:
    """Return what of the source's text the run takes.

    Raises:
        ConfigError: the data is less than one epoch and epochs are not allowed.
    """
    spec, tokens = case.spec, case.tokens
    hub = load_sources().hub.get(spec.source)
    shards = available = None
    if hub is not None:
        per_token = facts.bytes_per_token if facts else BYTES_PER_TOKEN
        shards, available = shards_needed(tokens, bytes_per_token=per_token), hub.files
    epochs = None
    if facts is not None and facts.utf8_bytes is not None:
        epochs = tokens * facts.bytes_per_token * facts.packing_loss / facts.utf8_bytes
    elif shards is not None and available is not None:
        epochs = (shards - 1) / (available - 1) if shards > available else 1.0
    if epochs is None or epochs <= 1.0:
        return _Data(shards, epochs)
    if shards is not None and available is not None:
        shards = min(shards, available)
    text = f"base training takes {tokens:,} tokens, about {epochs:.1f} times what `{spec.source}` holds"
    if not spec.allow_epochs:
        raise ConfigError(text, hint="pass --allow-epochs, use fewer --steps, or another --source")
    return _Data(shards, epochs, (text,))


def _speed(case: _Case, measure: Measure | None) -> _Speed:
    hardware, shape = case.hardware, case.preset.shape
    published = hardware.mfu(shape.depth)
    if published is not None and hardware.peak_flops is not None:
        per_device = published.mfu * hardware.peak_flops / shape.flops_per_token()
        return _Speed(per_device * hardware.devices, published.mfu, published.source, FIRST_STEP_S)
    if measure is None:
        return _Speed(None, None, "not measured", 0.0)
    figures = measure(case.spec)
    return _Speed(
        float(figures["tok_per_s"]) * case.spec.nproc,
        None,
        "three steps measured on this machine",
        float(figures.get("first_step_s", 0.0)),
    )


def _stages(case: _Case, speed: _Speed, shards: int | None) -> list[StagePlan]:
    preset, hardware, nodes = case.preset, case.hardware, case.nodes
    parameters = preset.shape.parameter_counts()["total"]
    steps = {"base_train": preset.base_steps, "mid_train": preset.mid_steps, "chat_sft": preset.sft_steps}
    other = _other_seconds(case, speed, shards)
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
                accumulation=preset.accumulation(case.ranks),
                seconds=seconds,
                usd=_usd(seconds, hardware, nodes),
            )
        )
    return plans


def _other_seconds(case: _Case, speed: _Speed, shards: int | None) -> dict[str, float | None]:
    """Return rough times of the stages that do not train: bytes over rates, tokens over throughput."""
    preset, hardware = case.preset, case.hardware
    cap = preset.max_problems
    eval_tokens = EVAL_TOKENS if cap is None else cap * EVAL_TOKENS_PER_PROBLEM
    evaluation = eval_tokens / speed.tok_per_s if speed.tok_per_s else None
    download = (shards or 0) * SHARD_FILE_BYTES / hardware.download_bytes_per_s
    return {
        "data": download + 15.0,
        "tok_train": preset.tokenizer_characters / hardware.text_bytes_per_s + 2.0,
        "tok_eval": 5.0,
        "tokenize": case.tokens * BYTES_PER_TOKEN * PACKING_LOSS / hardware.text_bytes_per_s + 2.0,
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

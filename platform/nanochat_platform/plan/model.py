"""What a plan says, and what it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from nanochat.run.config import Frozen
from nanochat.shape import BYTES_PER_TOKEN, PACKING_LOSS
from nanochat_platform.hardware import quantity, quantity_text


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

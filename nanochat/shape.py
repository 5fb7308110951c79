"""Sizes of every model and preset: the one dial (depth) and all that follows from it.

Pure arithmetic: parameters, FLOPs, memory, horizons, the preset table. Knows
nothing of torch, of files or of the hardware, so a plan takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Protocol

from nanochat.errors import ConfigError, did_you_mean

Arch = Literal["modern", "classic"]

HEAD_DIM = 128
MLP_RATIO = 4
SMEAR_CHANNELS = 24  # leading channels that the smear gate reads
GATE_CHANNELS = 12  # leading channels that a value-embedding gate reads
VOCAB_MULTIPLE = 64
REFERENCE_BATCH_TOKENS = 2**19
FORMULA_MIN_DEPTH = 8  # below it the B and D formulas extrapolate badly; presets fix both

MID_TOKENS = 400_000_000  # one pass over the mid mixture of the GPU presets
SFT_TOKENS = 450_000_000  # one pass over the SFT mixture, padding included

SHARD_UTF8_BYTES = 250_000_000
BYTES_PER_TOKEN = 4.7  # measured on ClimbMix with 32,768 tokens; the plan takes a measured one instead
PACKING_LOSS = 1.5  # tokens written per token trained on: best-fit rows crop long documents


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What decides a model's tensors; `config.json` of an exported model holds exactly this."""

    arch: Arch = "modern"
    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int = HEAD_DIM
    vocab_size: int
    seq_len: int
    window_pattern: str = "SSSL"

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "kv_heads", "head_dim", "vocab_size", "seq_len"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, but a model needs at least 1",
                    hint=f"set {name} to 1 or more",
                )
        if self.arch not in ("modern", "classic"):
            raise ConfigError(f"arch is `{self.arch}`", hint=did_you_mean(self.arch, ("modern", "classic")))
        if self.heads % self.kv_heads:
            raise ConfigError(f"kv_heads is {self.kv_heads}, which does not divide heads {self.heads}")
        if self.head_dim % 2 or self.width < SMEAR_CHANNELS:
            raise ConfigError(
                f"head_dim {self.head_dim} must be even and width {self.width} >= {SMEAR_CHANNELS}"
            )
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise ConfigError(
                f"window_pattern is `{self.window_pattern}`", hint="use letters S and L, e.g. `SSSL`"
            )

    @classmethod
    def from_depth(
        cls, depth: int, *, arch: Arch = "modern", vocab_size: int, seq_len: int, width: int | None = None
    ) -> Shape:
        """Return the shape that follows from depth: width 64 per layer, rounded up to whole heads.

        Raises:
            ConfigError: depth is below 1, or `width` is not a whole number of heads.
        """
        if depth < 1:
            raise ConfigError(
                f"depth is {depth}, but a model needs at least one layer", hint="set --depth to 1 or more"
            )
        width = math.ceil(64 * depth / HEAD_DIM) * HEAD_DIM if width is None else width
        if width < 1 or width % HEAD_DIM:
            raise ConfigError(f"width is {width}, not a multiple of {HEAD_DIM}")
        heads = width // HEAD_DIM
        return cls(
            arch=arch,
            depth=depth,
            width=width,
            heads=heads,
            kv_heads=heads,
            vocab_size=vocab_size,
            seq_len=seq_len,
            window_pattern="SSSL" if arch == "modern" else "L",
        )

    @property
    def kv_width(self) -> int:
        """Channels of k or v of one token: kv_heads * head_dim."""
        return self.kv_heads * self.head_dim

    def padded_vocab(self) -> int:
        """Return rows of wte, lm_head and value embeddings: the vocabulary rounded up to a multiple of 64."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def windows(self) -> tuple[int, ...]:
        """Return, per layer, how many tokens to the left a query sees besides itself; seq_len means all."""
        short = min(self.seq_len, math.ceil(self.seq_len / 4 / 128) * 128)
        letters = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.depth)]
        letters[-1] = "L"  # the last layer always sees everything
        return tuple(short if letter == "S" else self.seq_len for letter in letters)

    def has_value_embedding(self, layer: int) -> bool:
        """Return whether a layer adds a gated value embedding: every second one, the last included."""
        return self.arch == "modern" and layer % 2 == (self.depth - 1) % 2

    def parameter_counts(self) -> dict[str, int]:
        """Return parameters by group: wte, value_embeddings, lm_head, matrices, scalars, total."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = 2 * MLP_RATIO * self.width**2
        layers_with_values = sum(self.has_value_embedding(i) for i in range(self.depth))
        table = self.padded_vocab() * self.width
        modern = self.arch == "modern"
        counts = {
            "wte": table,
            "value_embeddings": layers_with_values * self.padded_vocab() * self.kv_width,
            "lm_head": table,
            "matrices": self.depth * (attention + mlp) + layers_with_values * GATE_CHANNELS * self.kv_heads,
            "scalars": 2 * self.depth + SMEAR_CHANNELS + 2 if modern else 0,
        }
        return counts | {"total": sum(counts.values())}

    def scaling_params(self) -> int:
        """Return N of the scaling laws: all block matrices and lm_head."""
        counts = self.parameter_counts()
        return counts["matrices"] + counts["lm_head"]

    def flops_per_token(self) -> int:
        """Return training FLOPs per token: 6 per matmul weight, 12 per attention channel and window token."""
        smear = SMEAR_CHANNELS if self.arch == "modern" else 0
        attention = sum(
            12 * self.heads * self.head_dim * min(window, self.seq_len) for window in self.windows()
        )
        return 6 * (self.scaling_params() + smear) + attention

    def memory_bytes(
        self, rows: int, *, world_size: int = 1, table_bytes: int = 2, compute_bytes: int = 2
    ) -> dict[str, int]:
        """Return an estimate of one device's training memory in bytes.

        weights: fp32 masters and gradients, and copies in the compute type; optimizer: its shard of the
        state; activations: what a compiled backward keeps of `rows` rows, 18 values per channel, layer and
        token; logits: in the compute type and in fp32.
        """
        counts = self.parameter_counts()
        tables = counts["wte"] + counts["value_embeddings"]
        dense = counts["total"] - tables
        tokens = rows * self.seq_len
        parts = {
            "weights": dense * (8 + compute_bytes % 4) + tables * 2 * table_bytes,
            "optimizer": (counts["matrices"] * 4 + counts["lm_head"] * 8 + tables * 2 * table_bytes)
            // world_size,
            "activations": tokens * self.depth * self.width * 18 * compute_bytes,
            "logits": tokens * self.padded_vocab() * (4 + compute_bytes),
        }
        return parts | {"total": sum(parts.values())}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Shape:
        """Return the shape that `to_json` gave.

        Raises:
            ConfigError: a field is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"model config: unknown field `{unknown[0]}`", hint=did_you_mean(unknown[0], known)
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"model config: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Horizon:
    """How long and how hard to pretrain: fixed numbers once resolved."""

    tokens: int
    total_batch_tokens: int
    steps: int
    lr_scale: float
    weight_decay: float


def horizon(
    shape: Shape, *, ratio: float = 12.0, steps: int | None = None, target_flops: float | None = None
) -> Horizon:
    """Return batch, steps, learning-rate scale and Muon weight decay that the scaling laws give.

    Precedence of the length: `steps`, then `target_flops`, then `ratio` (tokens per scaling parameter; per
    parameter at a fixed batch of 2^19 for the classic architecture).
    """
    per_token = shape.flops_per_token()
    if shape.arch == "classic":
        tokens = round(ratio * shape.parameter_counts()["total"])
        batch, decay = REFERENCE_BATCH_TOKENS, 0.0
        scale = 1.0
    else:
        tokens = round(ratio * shape.scaling_params())
        d12 = Shape.from_depth(12, arch=shape.arch, vocab_size=shape.vocab_size, seq_len=shape.seq_len)
        tokens_d12 = ratio * d12.scaling_params()
        batch = 2 ** round(math.log2(REFERENCE_BATCH_TOKENS * (tokens / tokens_d12) ** 0.383))
        scale = math.sqrt(batch / REFERENCE_BATCH_TOKENS)
        decay = 0.28 * scale * tokens_d12 / tokens
    if steps is None:
        steps = round(target_flops / per_token / batch) if target_flops else tokens // batch
    return Horizon(
        tokens=steps * batch, total_batch_tokens=batch, steps=steps, lr_scale=scale, weight_decay=decay
    )


def default_device_batch(shape: Shape) -> int:
    """Return rows that fit an 80 GB device: 32 below depth 20, 16 to depth 26, 8 above (at 2,048 tokens)."""
    rows = 32 if shape.depth < 20 else 16 if shape.depth < 28 else 8
    return max(1, rows * 2048 // shape.seq_len)


def shards_needed(
    tokens: int, *, bytes_per_token: float = BYTES_PER_TOKEN, packing_loss: float = PACKING_LOSS
) -> int:
    """Return training shards that `tokens` of base training read once, plus the validation shard."""
    return math.ceil(tokens * bytes_per_token * packing_loss / SHARD_UTF8_BYTES) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One row of the table: everything about a run that is not a choice of its user."""

    name: str
    shape: Shape
    source: str
    """Default data source."""
    total_batch_tokens: int
    """B: tokens of one optimizer step over all ranks."""
    device_batch_size: int
    """Rows that one device holds at once."""
    base_steps: int
    mid_steps: int
    sft_steps: int
    lr_scale: float
    """s of the learning-rate table."""
    weight_decay: float
    """Muon's, before its schedule."""
    ratio: float
    """Tokens per scaling parameter where the formulas apply."""
    lr_warmup_fraction: float
    """Part of base training with a linearly rising learning rate."""
    momentum_warmup_fraction: float
    """Part of base training in which Muon's momentum rises."""
    lr_warmdown_fraction: float = 0.65
    lr_final: float = 0.05
    """Multiplier that the warmdown ends at."""
    eval_every: int
    """Steps between validation losses."""
    eval_tokens: int
    """Validation tokens of each."""
    max_problems: int | None
    """Problems an evaluation task takes at most; None: all."""
    tokenizer_characters: int
    """Characters the tokenizer is trained on at most."""
    document_characters: int = 10_000
    """Characters of one document that the tokenizer is trained on at most."""
    prompts: tuple[str, ...] = (
        "The capital of France is",
        "Water is made of",
        "In the beginning",
        "The planets of the solar system are",
    )
    """Continued as samples during and after base training."""

    def rows_per_step(self) -> int:
        """Return rows of seq_len tokens in one optimizer step over all ranks."""
        return self.total_batch_tokens // self.shape.seq_len

    def accumulation(self, world_size: int = 1) -> int:
        """Return micro-batches per step and rank.

        Raises:
            ConfigError: device batch times ranks does not divide a step's rows; names the nearest that do.
        """
        rows = self.rows_per_step()
        if self.total_batch_tokens % self.shape.seq_len or rows % world_size:
            raise ConfigError(
                f"a step of {self.total_batch_tokens:,} tokens does not divide into rows of"
                f" {self.shape.seq_len} on {world_size} ranks",
                hint=f"use {_nearest(world_size, _divisors(rows))} ranks",
            )
        per_rank = rows // world_size
        if per_rank % self.device_batch_size:
            nearest = _nearest(self.device_batch_size, _divisors(per_rank))
            raise ConfigError(
                f"device-batch-size is {self.device_batch_size}, which does not divide the {per_rank} rows"
                f" that each of {world_size} ranks takes of a step",
                hint=f"use --device-batch-size {nearest}",
            )
        return per_rank // self.device_batch_size


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _nearest(value: int, allowed: Iterable[int]) -> str:
    """Return the closest allowed numbers below and above, for a hint."""
    below = max((a for a in allowed if a <= value), default=None)
    above = min((a for a in allowed if a > value), default=None)
    return " or ".join(str(a) for a in (below, above) if a is not None)


def _scaled(name: str, shape: Shape, *, source: str, ratio: float) -> Preset:
    """Return a preset of depth 8 or more whose batch and horizon follow from the formulas."""
    law = horizon(shape, ratio=ratio)
    modern = shape.arch == "modern"
    return Preset(
        name=name,
        shape=shape,
        source=source,
        total_batch_tokens=law.total_batch_tokens,
        device_batch_size=min(default_device_batch(shape), law.total_batch_tokens // shape.seq_len),
        base_steps=law.steps,
        mid_steps=max(1, MID_TOKENS // law.total_batch_tokens),
        sft_steps=max(1, SFT_TOKENS // law.total_batch_tokens),
        lr_scale=law.lr_scale,
        weight_decay=law.weight_decay,
        ratio=ratio,
        lr_warmup_fraction=40 / law.steps if modern else 0.0,
        momentum_warmup_fraction=(400 if modern else 300) / law.steps,
        lr_warmdown_fraction=0.65 if modern else 0.2,
        lr_final=0.05 if modern else 0.0,
        eval_every=250,
        eval_tokens=20 * REFERENCE_BATCH_TOKENS,
        max_problems=None,
        tokenizer_characters=2_000_000_000,
    )


def _gpu(name: str, depth: int, *, ratio: float) -> Preset:
    shape = Shape.from_depth(depth, vocab_size=2**15, seq_len=2048)
    return _scaled(name, shape, source="climbmix", ratio=ratio)


_SMOKE = Preset(
    name="smoke",
    shape=Shape.from_depth(2, vocab_size=512, seq_len=128),
    source="generated",
    total_batch_tokens=1024,
    device_batch_size=8,
    base_steps=120,
    mid_steps=40,
    sft_steps=40,
    lr_scale=0.5,
    weight_decay=0.0,
    ratio=12.0,
    lr_warmup_fraction=0.05,
    momentum_warmup_fraction=0.2,
    eval_every=40,
    eval_tokens=4096,
    max_problems=16,
    tokenizer_characters=500_000,
)

_TINY = Preset(
    name="tiny",
    shape=Shape.from_depth(4, vocab_size=4096, seq_len=256),
    source="packages/cpu",
    total_batch_tokens=4096,
    device_batch_size=16,
    base_steps=800,
    mid_steps=170,
    sft_steps=110,
    lr_scale=1.0,
    weight_decay=0.1,
    ratio=12.0,
    lr_warmup_fraction=0.02,
    momentum_warmup_fraction=0.1,
    eval_every=200,
    eval_tokens=65_536,
    max_problems=100,
    tokenizer_characters=20_000_000,
)

_CLASSIC_D20 = _scaled(
    "classic-d20",
    Shape.from_depth(20, arch="classic", vocab_size=2**16, seq_len=2048),
    source="fineweb-edu",
    ratio=20.0,
)

PRESETS: dict[str, Preset] = {
    row.name: row
    for row in (
        _SMOKE,
        _TINY,
        _gpu("speedrun", 24, ratio=8.0),
        _CLASSIC_D20,
        _gpu("d26", 26, ratio=12.0),
        _gpu("run1000", 32, ratio=12.0),
    )
}


def preset(name: str) -> Preset:
    """Return a row of the preset table.

    Raises:
        ConfigError: no such preset; the nearest name is offered.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset `{name}`", hint=did_you_mean(name, PRESETS))
    return PRESETS[name]


class Overrides(Protocol):
    """The fields of a run's configuration that change its preset."""

    @property
    def preset(self) -> str: ...
    @property
    def depth(self) -> int | None: ...
    @property
    def device_batch_size(self) -> int | None: ...
    @property
    def steps(self) -> int | None: ...


def resolve(spec: Overrides, *, world_size: int = 1) -> Preset:
    """Return the preset with depth, device batch and steps overridden; the total batch stays.

    A depth of 8 or more takes batch and horizon from the scaling laws; below 8 those of the preset stay.

    Raises:
        ConfigError: unknown preset, depth below 1, steps below 1, or a device batch that does not divide.
    """
    row = preset(spec.preset)
    if spec.depth is not None and spec.depth != row.shape.depth:
        row = _with_depth(row, spec.depth)
    for field in ("steps", "device_batch_size"):
        value = getattr(spec, field)
        if value is not None and value < 1:
            raise ConfigError(f"{field.replace('_', '-')} is {value}, but at least 1 is needed")
    if spec.steps is not None:
        row = replace(row, base_steps=spec.steps, mid_steps=spec.steps, sft_steps=spec.steps)
    if spec.device_batch_size is not None:
        row = replace(row, device_batch_size=spec.device_batch_size)
    elif row.rows_per_step() % world_size == 0:
        # A default is ours to lower: with many ranks a rank's share of a step can be smaller than it.
        row = replace(
            row, device_batch_size=math.gcd(row.device_batch_size, row.rows_per_step() // world_size)
        )
    row.accumulation(world_size)
    return row


def _with_depth(row: Preset, depth: int) -> Preset:
    old = row.shape
    shape = Shape.from_depth(depth, arch=old.arch, vocab_size=old.vocab_size, seq_len=old.seq_len)
    if depth < FORMULA_MIN_DEPTH:
        return replace(row, shape=shape)
    scaled = _scaled(row.name, shape, source=row.source, ratio=row.ratio)
    return replace(
        scaled,
        eval_every=row.eval_every,
        eval_tokens=row.eval_tokens,
        max_problems=row.max_problems,
        tokenizer_characters=row.tokenizer_characters,
        prompts=row.prompts,
    )

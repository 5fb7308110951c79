"""Stage `base_train`: pretraining on the global row sequence of a tokenised dataset.

Knows nothing of how rows are packed or steps are taken.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nanochat.data.loader import Batches, StepBatch, expected_epochs
from nanochat.data.tokens import TokenFiles, tokens_folder
from nanochat.errors import ConfigError
from nanochat.optim import base_schedule
from nanochat.run.context import StageContext, StageResult
from nanochat.settings import Topology
from nanochat.shape import Preset, resolve
from nanochat.train.session import Plan, Prompt, train_stage
from nanochat.train.vocabulary import fit_vocabulary, load_tokenizer


def run(context: StageContext) -> StageResult:
    """Pretrain, validate, export.

    Raises:
        ConfigError: the data is too little for the steps asked, or a batch does not divide.
        DataError: a token file is missing or damaged.
    """
    spec, topology = context.spec, context.topology
    tokenizer = load_tokenizer(context)
    preset = fit_vocabulary(resolve(spec, world_size=topology.world_size), tokenizer)
    folder = tokens_folder(context.dataset_dir, tokenizer.hash)
    files = TokenFiles.load(folder)
    files.verify(files.shards[topology.rank :: topology.world_size])
    check_epochs(folder, preset, seed=spec.seed, allowed=spec.allow_epochs)

    def batches(position: dict[str, Any] | None) -> Batches:
        return Batches(
            folder,
            split="train",
            seq_len=preset.shape.seq_len,
            rows_per_step=preset.rows_per_step(),
            topology=topology,
            seed=spec.seed,
            position=position,
        )

    plan = Plan(
        preset=preset,
        schedule=base_schedule(preset),
        batches=batches,
        validation=validation_rows(folder, preset, topology),
        prompts=[Prompt(text, [tokenizer.bos, *tokenizer.encode(text)]) for text in preset.prompts],
        stop=frozenset({tokenizer.bos}),
    )
    return train_stage(context, tokenizer, plan)


def validation_rows(folder: Path, preset: Preset, topology: Topology) -> StepBatch:
    """Return this rank's part of the first `eval_tokens` tokens of the validation split's row sequence."""
    world = topology.world_size
    rows = max(1, preset.eval_tokens // preset.shape.seq_len // world) * world
    seed = 0  # the same rows whatever the run's seed, so that runs compare
    return next(
        Batches(
            folder,
            split="val",
            seq_len=preset.shape.seq_len,
            rows_per_step=rows,
            topology=topology,
            seed=seed,
        )
    )


def check_epochs(folder: Path, preset: Preset, *, seed: int, allowed: bool) -> float:
    """Return how often the run reads its data, and refuse more than once unless that is allowed.

    Raises:
        ConfigError: the data is too little.
    """
    wanted = preset.base_steps * preset.total_batch_tokens
    epochs = expected_epochs(folder, seq_len=preset.shape.seq_len, tokens=wanted, seed=seed)
    if epochs <= 1.0:
        return epochs
    text = f"{preset.base_steps} steps take {wanted:,} tokens, {epochs:.2f} times what the dataset holds"
    if not allowed:
        raise ConfigError(text, hint="prepare more data, use fewer --steps, or pass --allow-epochs")
    print(f"warning: {text}", file=sys.stderr)
    return epochs

"""Stage `mid_train`: the base model meets conversations; every token is learnt.

Knows nothing of packing or of the loop.
"""

from __future__ import annotations

from nanochat.optim import mid_schedule
from nanochat.run.context import StageContext, StageResult
from nanochat.shape import resolve
from nanochat.tasks.mixture import mid_conversations
from nanochat.train.chat_stage import train_on_conversations
from nanochat.train.vocabulary import fit_vocabulary, load_tokenizer


def run(context: StageContext) -> StageResult:
    """Train from the base model's weights and optimizer state; validate, export."""
    spec = context.spec
    tokenizer = load_tokenizer(context)
    preset = fit_vocabulary(resolve(spec, world_size=context.topology.world_size), tokenizer)
    return train_on_conversations(
        context,
        tokenizer,
        mid_conversations(context.dataset_dir, seed=spec.seed, spec=spec),
        preset=preset,
        schedule=mid_schedule(preset),
        start_from="base_train",
        masked=False,
    )

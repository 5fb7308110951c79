"""Stage `chat_sft`: supervised fine-tuning; only the assistant's tokens are learnt.

Knows nothing of packing or of the loop.
"""

from __future__ import annotations

from nanochat.optim import sft_schedule
from nanochat.run.context import StageContext, StageResult
from nanochat.shape import resolve
from nanochat.tasks.mixture import sft_conversations
from nanochat.train.chat_stage import train_on_conversations
from nanochat.train.vocabulary import fit_vocabulary, load_tokenizer


def run(context: StageContext) -> StageResult:
    """Train from the midtrained model where midtraining ran, else from the base model; validate, export."""
    spec = context.spec
    tokenizer = load_tokenizer(context)
    preset = fit_vocabulary(resolve(spec, world_size=context.topology.world_size), tokenizer)
    return train_on_conversations(
        context,
        tokenizer,
        sft_conversations(context.dataset_dir, seed=spec.seed, spec=spec),
        preset=preset,
        schedule=sft_schedule(preset),
        start_from="mid_train" if "mid_train" in context.inputs else "base_train",
        masked=True,
    )

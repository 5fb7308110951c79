"""What midtraining and fine-tuning share: rendered, packed conversations on top of an earlier model.

Knows nothing of which conversations there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nanochat.chat import render, render_prompt
from nanochat.data.chat_packing import ChatBatches, Rendered
from nanochat.data.loader import StepBatch
from nanochat.errors import DataError
from nanochat.optim import Schedule
from nanochat.run.context import StageContext, StageResult
from nanochat.settings import Topology
from nanochat.shape import Preset
from nanochat.tasks import read
from nanochat.tasks.problem import Conversation
from nanochat.tokenizer import Tokenizer
from nanochat.train.session import Plan, Prompt, train_stage

QUESTIONS = ("Who are you?", "What is 37 + 58?", "How do you spell bread?", "What is the capital of France?")
HOLD_OUT = 50  # one conversation in so many is kept for validation where the dataset has no test files


def train_on_conversations(
    context: StageContext,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    *,
    preset: Preset,
    schedule: Schedule,
    start_from: str,
    masked: bool,
) -> StageResult:
    """Train on packed conversations; `masked`: on the assistant's tokens alone.

    Raises:
        DataError: not one conversation has a supervised token within the context.
    """
    seq_len = preset.shape.seq_len
    held_out = list(held_out_conversations(context))
    if not held_out:
        held_out = list(conversations[::HOLD_OUT])
        conversations = [chat for index, chat in enumerate(conversations) if index % HOLD_OUT]
    rendered = Rendered(_rendered(tokenizer, conversations, seq_len), seq_len=seq_len, masked=masked)

    def batches(position: dict[str, Any] | None) -> ChatBatches:
        return ChatBatches(
            rendered,
            seq_len=seq_len,
            rows_per_step=preset.rows_per_step(),
            topology=context.topology,
            seed=context.spec.seed,
            position=position,
        )

    plan = Plan(
        preset=replace(preset, eval_every=min(preset.eval_every, -(-schedule.steps // 3))),
        schedule=schedule,
        batches=batches,
        validation=validation_rows(tokenizer, held_out, preset, context.topology, masked=masked),
        start_from=start_from,
        prompts=[
            Prompt(text, render_prompt(tokenizer, [{"role": "user", "content": text}])) for text in QUESTIONS
        ],
        stop=frozenset({tokenizer.bos, tokenizer.special("assistant_end")}),
    )
    result = train_stage(context, tokenizer, plan)
    result.metrics |= {
        "conversations": len(rendered.lengths),
        "truncated": rendered.truncated,
        "dropped": rendered.dropped,
    }
    return result


def held_out_conversations(context: StageContext) -> Iterator[Conversation]:
    """Yield the conversations of the dataset's chat test files, which no stage trains on."""
    for path in sorted((context.dataset_dir / "chat").glob("*-test.jsonl")):
        for _, row in read.rows(path):
            if "messages" in row:
                yield row


def validation_rows(
    tokenizer: Tokenizer,
    held_out: Sequence[Conversation],
    preset: Preset,
    topology: Topology,
    *,
    masked: bool,
) -> StepBatch:
    """Return this rank's part of the first validation rows, at most one pass over what is held out.

    Raises:
        DataError: nothing is held out, or nothing of it can be scored.
    """
    if not held_out:
        raise DataError("there are no conversations to train on or to validate with")
    seq_len, world = preset.shape.seq_len, topology.world_size
    rendered = Rendered(_rendered(tokenizer, held_out, seq_len), seq_len=seq_len, masked=masked)
    tokens = min(preset.eval_tokens, int(rendered.lengths.sum()))
    rows = max(1, tokens // seq_len // world) * world
    return next(ChatBatches(rendered, seq_len=seq_len, rows_per_step=rows, topology=topology))


def _rendered(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], seq_len: int
) -> Iterator[tuple[list[int], list[int]]]:
    max_tokens = seq_len + 2  # one more than a row holds, so that truncation is seen and counted
    for chat in conversations:
        yield render(tokenizer, chat, max_tokens=max_tokens)

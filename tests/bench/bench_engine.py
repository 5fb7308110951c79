"""Continuous batching against one request after another, and that against `transformers` generate.

All three sides run the same classic weights in bf16 on one thread, in one process, in turn. A time is CPU
time of the process, which never waits here, so that other load does not count; it is the minimum over the
rounds, of each request where they go one after another. Random weights: speed does not depend on them.
Run: `python -m tests.bench.bench_engine`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import NanoChatConfig, NanoChatForCausalLM

from nanochat.engine.engine import Engine
from nanochat.engine.request import SamplingParams
from nanochat.gpt import GPT
from nanochat.hf import export_classic
from nanochat.shape import Shape
from tests.bench.row import Row

CHATS = 8
NEW_TOKENS = 96
SHAPE = Shape.from_depth(4, arch="classic", vocab_size=4096, seq_len=256)
BATCH_BOUND = 3.0
SERIAL_BOUND = 1.0
COMMAND = "python -m tests.bench.bench_engine"


class NoText:
    """The engine's tokenizer where text does not matter: every id is one letter."""

    def __init__(self) -> None:
        self.specials = {"bos": 0}

    def token_bytes(self) -> list[bytes]:
        return [b"x"] * SHAPE.vocab_size

    def encode(self, text: str) -> list[int]:
        return [1] * len(text)


def build() -> GPT:
    """Return the model with every matrix filled: fresh ones have zeros that some kernels skip."""
    model = GPT(SHAPE, dtype=torch.bfloat16)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.05, generator=generator)
    return model


def peer(model: GPT) -> NanoChatForCausalLM:
    """Return the same weights in `transformers`."""
    state, config = export_classic(model)
    other = NanoChatForCausalLM(NanoChatConfig(**config))
    other.load_state_dict(state)
    return other.to(torch.bfloat16).eval()


def prompts() -> list[list[int]]:
    """Return eight chats' prompts of 16 to 58 tokens."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(1, SHAPE.vocab_size, (16 + 6 * n,), generator=generator).tolist() for n in range(CHATS)
    ]


def best_s(sides: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return each side's fastest run in CPU seconds; the sides take turns."""
    best = [float("inf")] * len(sides)
    for _ in range(rounds):
        for n, side in enumerate(sides):
            begin = time.process_time()
            side()
            best[n] = min(best[n], time.process_time() - begin)
    return best


def measure(rounds: int = 7) -> tuple[float, float, float]:
    """Return generated tokens per CPU second in total: eight at once, one after another, `transformers`."""
    torch.set_num_threads(1)
    model = build()
    other = peer(model)
    asked = prompts()
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    engine = Engine(model.for_inference(), NoText(), pack=True)

    def complete(chosen: list[list[int]]) -> None:
        engine.generate(chosen, params)

    @torch.inference_mode()
    def transformers(prompt: list[int]) -> None:
        ids = torch.tensor([prompt])
        made = other.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
        assert made.size(1) == len(prompt) + NEW_TOKENS

    sides = [partial(complete, asked)]
    sides += [partial(complete, [prompt]) for prompt in asked]
    sides += [partial(transformers, prompt) for prompt in asked]
    best = best_s(sides, rounds)
    total = CHATS * NEW_TOKENS
    return total / best[0], total / sum(best[1 : 1 + CHATS]), total / sum(best[1 + CHATS :])


def rows(rounds: int = 7) -> list[Row]:
    """Return the two rows of the bar table."""
    batched, serial, other = measure(rounds)
    setting = f"classic, 4 layers x 256, V 4,096, bf16, one thread; {NEW_TOKENS} greedy tokens each"
    return [
        Row(
            name="8 concurrent chats, total tokens/s",
            figure=round(batched / serial, 2),
            unit="x",
            bound=BATCH_BOUND,
            better="higher",
            peer="the same requests one after another",
            peer_figure=round(serial),
            ratio=round(batched / serial, 2),
            command=COMMAND,
            notes=f"{batched:,.0f} against {serial:,.0f} tokens/s; {setting}",
        ),
        Row(
            name="one chat after another, tokens/s",
            figure=round(serial / other, 2),
            unit="x",
            bound=SERIAL_BOUND,
            better="higher",
            peer="transformers generate, same weights",
            peer_figure=round(other),
            ratio=round(serial / other, 2),
            command=COMMAND,
            notes=f"{serial:,.0f} against {other:,.0f} tokens/s; {setting}",
        ),
    ]


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row.to_json()))

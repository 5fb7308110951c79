"""Vary one number of the `tiny` preset at a time and print validation bits per byte after the same tokens.

    python -m tests.bench.sweep --tokens 1200000 lr_scale=0.5,1,2 total_batch_tokens=2048,4096,8192

Reads the dataset and tokenizer of a finished run (`--run`, default `tiny`); writes nothing. The figures
behind the preset are in SWEEP.md.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from nanochat.data.loader import Batches
from nanochat.data.tokens import tokens_folder
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, OptimHyper, base_schedule
from nanochat.settings import Topology, home
from nanochat.shape import PRESETS, Preset
from nanochat.tokenizer import Tokenizer
from nanochat.train.runtime import loss_function, runtime
from nanochat.train.stages.base_train import validation_rows

ALWAYS_COMPILE = 1e18


def validation_bpb(preset: Preset, tokens: Path, tokenizer: Tokenizer, seed: int = 42) -> float:
    """Train `preset.base_steps` steps and return bits per byte on the validation rows."""
    with runtime(
        dtype="auto", deterministic=False, seed=seed, topology=Topology(), cache=home().cache
    ) as place:
        model = GPT(preset.shape, dtype=place.dtype)
        model.init_weights(seed)
        optimizer = MuonAdamW(model, OptimHyper.for_preset(preset, muon_bf16=place.dtype == torch.bfloat16))
        loss_fn = loss_function(model, place, flops=ALWAYS_COMPILE)
        schedule = base_schedule(preset)
        rows = preset.device_batch_size
        data = Batches(
            tokens,
            split="train",
            seq_len=preset.shape.seq_len,
            rows_per_step=preset.rows_per_step(),
            topology=Topology(),
            seed=seed,
        )
        for step, batch in zip(range(preset.base_steps), data, strict=False):
            inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
            for first in range(0, len(inputs), rows):
                part = loss_fn(inputs[first : first + rows], targets[first : first + rows]).sum()
                (part / targets.numel()).backward()  # type: ignore[no-untyped-call]
            hyper = schedule.at(step)
            optimizer.step(lr_mult=hyper.lr_mult, muon_momentum=hyper.muon_momentum, muon_wd=hyper.muon_wd)
            optimizer.zero_grad()
        lengths = torch.tensor([len(data) for data in tokenizer.token_bytes()])
        held_out = validation_rows(tokens, preset, Topology())
        nats = bytes_seen = 0.0
        with torch.no_grad():
            for first in range(0, len(held_out.inputs) // rows * rows, rows):
                targets = torch.from_numpy(held_out.targets[first : first + rows])
                loss_BT = loss_fn(torch.from_numpy(held_out.inputs[first : first + rows]), targets)
                size_BT = lengths[targets.clamp(min=0)] * (targets >= 0)
                nats += loss_BT[size_BT > 0].sum().item()
                bytes_seen += size_BT.sum().item()
        return nats / (math.log(2) * bytes_seen)


def variants(base: Preset, settings: list[str], tokens: int) -> list[tuple[str, Preset]]:
    """Return the preset as it is, then each `field=value` of the settings, all with the same tokens."""
    found = [("as it is", base)]
    for setting in settings:
        name, _, values = setting.partition("=")
        for value in values.split(","):
            number = int(value) if isinstance(getattr(base, name), int) else float(value)
            found.append((f"{name}={value}", replace(base, **{name: number})))
    return [
        (label, replace(preset, base_steps=max(1, tokens // preset.total_batch_tokens)))
        for label, preset in found
    ]


def main() -> None:
    """Print one Markdown row a variant."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sweep", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE,...")
    parser.add_argument("--run", default="tiny")
    parser.add_argument("--tokens", type=int, default=1_200_000)
    arguments = parser.parse_args()
    where = home()
    tokenizer = Tokenizer.load(where.stage(arguments.run, "tok_train") / "tokenizer.json")
    tokens = tokens_folder(where.dataset("packages-cpu"), tokenizer.hash)
    print("| variant | steps | val bpb | s |\n|---|---|---|---|")
    for label, preset in variants(PRESETS["tiny"], arguments.settings, arguments.tokens):
        torch._dynamo.reset()
        began = time.monotonic()
        bpb = validation_bpb(preset, tokens, tokenizer)
        print(f"| {label} | {preset.base_steps} | {bpb:.4f} | {time.monotonic() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()

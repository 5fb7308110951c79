"""Bits per byte of a saved base model over the raw UTF-8 bytes of whole held-out splits, from files alone.

Imports the tokenizer and the model, nothing else of ours, and reads no record of a run. Documents longer
than the context are read in windows that advance by half a context; every byte counts once.
Run: `python tests/bench/bpb.py --home ~/.cache/nanochat --run tiny --dataset packages-cpu`
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from nanochat.gpt import GPT  # noqa: E402
from nanochat.shape import Shape  # noqa: E402
from nanochat.tokenizer import Tokenizer  # noqa: E402
from tests.bench.row import Row  # noqa: E402  (this file is also run by its path)

BOUNDS = {"wiki": (1.87, 1.80), "chitchat": (1.71, 1.65), "bible_basic": (1.33, 1.28)}
"""Source -> (must, aim)."""
MIN_BYTES = 200_000  # a smaller split says little
ROWS = 32


@dataclass(frozen=True, slots=True)
class Figure:
    """One source: our bits per byte, and xz's of the same bytes."""

    source: str
    utf8_bytes: int
    bits_per_byte: float
    xz: float


def load(model: Path) -> tuple[GPT, Tokenizer]:
    """Read an exported model in fp32."""
    shape = Shape.from_json(json.loads((model / "config.json").read_text(encoding="utf-8")))
    gpt = GPT(shape)
    gpt.load_state_dict(load_file(model / "model.safetensors"))
    return gpt.eval(), Tokenizer.load(model / "tokenizer.json")


def documents(path: Path) -> list[str]:
    """Return the texts of a parquet file."""
    texts: list[str] = pq.read_table(path, columns=["text"]).column("text").to_pylist()
    return texts


def pieces(ids: list[int], context: int) -> list[tuple[list[int], int]]:
    """Return (tokens, number of leading targets that an earlier piece scored); targets are tokens[1:]."""
    made, start, scored = [], 0, 1
    while scored < len(ids):
        end = min(start + context + 1, len(ids))
        made.append((ids[start:end], scored - start - 1))
        scored, start = end, start + context // 2
    return made


def nats(model: GPT, rows: list[tuple[list[int], int]]) -> float:
    """Return the negative log likelihood of all targets, in fp32 logits and fp64 sums."""
    total = 0.0
    rows = sorted(rows, key=lambda row: -len(row[0]))
    for first in range(0, len(rows), ROWS):
        batch = rows[first : first + ROWS]
        width = len(batch[0][0])
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        counted = torch.zeros(len(batch), width - 1, dtype=torch.bool)
        for row, (tokens, skip) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            counted[row, skip : len(tokens) - 1] = True
        with torch.inference_mode():
            logits = model(ids[:, :-1])
            chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        total -= float(chosen[counted].double().sum())
    return total


def measure(model: Path, held_out: Path) -> list[Figure]:
    """Score every held-out source."""
    gpt, tokenizer = load(model)
    figures = []
    for path in sorted(held_out.glob("*.parquet")):
        texts = documents(path)
        data = "".join(texts).encode()
        rows = []
        for ids in tokenizer.encode_batch(texts):
            rows += pieces([tokenizer.bos, *ids], gpt.shape.seq_len)
        figures.append(
            Figure(
                source=path.stem,
                utf8_bytes=len(data),
                bits_per_byte=nats(gpt, rows) / (math.log(2) * len(data)),
                xz=8 * len(lzma.compress(data, preset=6)) / len(data),
            )
        )
    return figures


def base_model(home: Path, run: str) -> Path:
    """Return the newest exported base model of a run."""
    found = sorted((home / "models" / run).glob("base_train-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    if not found:
        raise SystemExit(f"error: run `{run}` has no base model in `{home / 'models'}`")
    return found[-1]


def rows(home: Path, run: str, dataset: str) -> list[Row]:
    """Return one bar a source."""
    figures = measure(base_model(home, run), home / "datasets" / dataset / "heldout")
    made = []
    for figure in figures:
        must, aim = BOUNDS.get(figure.source, (figure.xz, figure.xz))
        made.append(
            Row(
                name=f"bits per byte, {figure.source}",
                figure=round(figure.bits_per_byte, 4),
                unit=f"bits per byte of {figure.utf8_bytes:,} held-out bytes",
                bound=must,
                better="lower",
                peer="xz -6 of the same bytes",
                peer_figure=round(figure.xz, 4),
                ratio=round(figure.bits_per_byte / figure.xz, 3),
                command="python tests/bench/bpb.py",
                notes=f"aim {aim}" + ("" if figure.utf8_bytes >= MIN_BYTES else "; split is below 200 kB"),
            )
        )
    return made


def main() -> None:
    """Print one line a source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache" / "nanochat")
    parser.add_argument("--run", default="tiny")
    parser.add_argument("--dataset", default="packages-cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for figure in measure(base_model(args.home, args.run), args.home / "datasets" / args.dataset / "heldout"):
        print(
            f"{figure.source:14s} {figure.bits_per_byte:.4f} bits per byte   xz -6 {figure.xz:.4f}"
            f"   {figure.utf8_bytes:,} bytes",
            flush=True,
        )


if __name__ == "__main__":
    main()

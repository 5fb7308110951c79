"""A model small enough to train in a test, rows to train it on, and checkpoints in memory."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nanochat.data.loader import StepBatch
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, OptimHyper, Schedule
from nanochat.settings import Topology
from nanochat.shape import Shape
from nanochat.train.loop import Job, Progress
from nanochat.train.pace import Pace
from nanochat.train.runtime import Runtime, loss_function
from nanochat.train.saver import Saver

T, ROWS = 16, 8


def small_shape(arch: str = "modern") -> Shape:
    return Shape(arch=arch, depth=2, width=64, heads=1, kv_heads=1, head_dim=64, vocab_size=64, seq_len=T)


def cpu_runtime(topology: Topology | None = None) -> Runtime:
    device = SimpleNamespace(kind="cpu", torch=torch.device("cpu"), dtype=torch.float32, name="test")
    device.peak_flops, device.compile_ok, device.why = None, False, "a test"
    return Runtime(device=device, dtype=torch.float32, topology=topology or Topology())


class CountingRows:
    """Row r counts upwards from a number made of r, so a model learns it; the position is the row."""

    def __init__(self, position: dict[str, Any] | None = None, *, rows: int = ROWS) -> None:
        self.row = position["row"] if position else 0
        self.rows = rows

    def __iter__(self):
        return self

    def __next__(self) -> StepBatch:
        digests = [hashlib.sha256(str(self.row + i).encode()).digest() for i in range(self.rows)]
        first = np.array([digest[0] % 64 for digest in digests])[:, None]
        ids = ((first + np.arange(T + 1)) % 64).astype(np.int64)
        self.row += self.rows
        return StepBatch(
            inputs=ids[:, :-1].copy(),
            targets=ids[:, 1:].copy(),
            supervised=self.rows * T,
            position={"row": self.row},
        )


class MemoryStore:
    """Checkpoints as deep copies."""

    def __init__(self) -> None:
        self.saved: dict[int, tuple[dict, dict, dict]] = {}

    def save(self, step, *, model, optim, state, topology=None) -> int:
        copies = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in (model, optim)]
        self.saved[step] = (copies[0], copies[1], json.loads(json.dumps(state)))
        return 1


class Events:
    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def __call__(self, name: str, **fields: Any) -> None:
        self.all.append({"event": name} | fields)

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.all if event["event"] == name]


def make_job(
    *,
    steps: int = 20,
    arch: str = "modern",
    micro_rows: int = ROWS,
    store: MemoryStore | None = None,
    position: dict[str, Any] | None = None,
    batches: Any = None,
    emit: Any = None,
    **changes: Any,
) -> Job:
    """Return a job on fresh weights of seed 1."""
    shape = small_shape(arch)
    model = GPT(shape)
    model.init_weights(1)
    values: dict[str, Any] = {
        "name": "base_train",
        "steps": steps,
        "model": model,
        "loss_fn": loss_function(model, cpu_runtime(), flops=0),
        "optimizer": MuonAdamW(model, OptimHyper.for_shape(shape, lr_scale=0.3, muon_bf16=False)),
        "batches": batches or CountingRows(position),
        "micro_rows": micro_rows,
        "schedule": Schedule(
            steps=steps, warmup=2, warmdown=steps // 2, final=0.0, momentum_warmup=5, weight_decay=0.1
        ),
        "saver": Saver(
            store or MemoryStore(),
            every_steps=changes.pop("every_steps", None),
            every_s=1e9,
            topology=Topology(),
            clock=lambda: 0.0,
            emit=emit or (lambda name, **fields: None),
        ),
        "pace": Pace(ROWS * T, shape.flops_per_token()),
        "eval_every": 1000,
    }
    return Job(**(values | changes))


def restored(store: MemoryStore, step: int, **changes: Any) -> tuple[Job, Progress]:
    """Return a job and progress that continue at a saved step."""
    model, optim, state = store.saved[step]
    progress = Progress.from_json(state)
    job = make_job(position=progress.position, **changes)
    job.model.load_state_dict(model)
    job.optimizer.load_state_tensors(optim)
    return job, progress

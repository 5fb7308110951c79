"""The one training loop: pretraining, midtraining and fine-tuning differ only in what they put in.

Knows nothing of stages, presets or files. Every rank runs it in step: what one
rank alone can see (the clock, a signal, a loss) is summed over all before any acts.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from nanochat.data.loader import StepBatch, StepBatches
from nanochat.errors import DivergedError
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, Schedule, StepHyper
from nanochat.run.signals import StopFlag
from nanochat.train.pace import Pace
from nanochat.train.runtime import FrozenGarbage, LossFn, Runtime
from nanochat.train.saver import Saver, Snapshot

LOSS_SMOOTHING = 0.9
Emit = Callable[..., None]


@dataclass(slots=True)
class Progress:
    """All of a run's state beside weights and optimizer: saved as JSON, continued at any rank count."""

    step: int = 0
    """Optimizer steps done."""
    position: dict[str, Any] | None = None
    """Where the data continues."""
    smooth_loss: float | None = None
    tokens: int = 0
    train_s: float = 0.0
    """Seconds in steps, without evaluation and saving."""
    val_bpb: float | None = None
    val_loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        """Return what `to_json` gave; other fields of the state are ignored."""
        return cls(**{name: value[name] for name in cls.__slots__ if name in value})


@dataclass(kw_only=True)
class Job:
    """What a stage gives the loop."""

    name: str
    """For messages."""
    steps: int
    model: GPT
    loss_fn: LossFn
    optimizer: MuonAdamW
    batches: StepBatches
    """Continues at `progress.position`."""
    micro_rows: int
    """Rows that the device holds at once; divides the rows of a step."""
    schedule: Schedule
    saver: Saver
    pace: Pace
    eval_every: int
    evaluate: Callable[[Progress], None] = lambda progress: None
    """Called every `eval_every` steps and after the last one."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Constant fields of a checkpoint's state."""


def train(
    job: Job,
    progress: Progress,
    runtime: Runtime,
    *,
    emit: Emit,
    stop: StopFlag,
    clock: Callable[[], float] = time.perf_counter,
) -> Progress:
    """Run the steps that are left and save the last one; returns `progress`, advanced.

    Raises:
        DivergedError: the loss is not finite; the step is not taken.
        Interrupted: a signal arrived on some rank; the state is saved.
        StorageError: a checkpoint that must not be lost could not be written.
    """
    with FrozenGarbage() as garbage:
        while progress.step < job.steps:
            began = clock()
            batch = next(job.batches)
            hyper = job.schedule.at(progress.step)
            loss = _backward(job, batch, runtime)
            due = runtime.is_main and job.saver.due(progress.step + 1)
            signum = stop.signum
            ended = signum is not None and signum != signal.SIGINT
            total, interrupts, ends, save = runtime.sum(loss, signum == signal.SIGINT, ended, due)
            loss = total / runtime.topology.world_size
            _check_finite(job, progress.step, loss, hyper)
            job.optimizer.step(
                lr_mult=hyper.lr_mult, muon_momentum=hyper.muon_momentum, muon_wd=hyper.muon_wd
            )
            job.optimizer.zero_grad()
            runtime.synchronize()
            _advance(job, progress, batch, loss, seconds=clock() - began)
            _report(job, progress, loss, hyper, emit)
            garbage.freeze()
            last = progress.step == job.steps
            if (ends or interrupts) and not last:
                job.saver.final(snapshot(job, progress))
                stop.set(signal.SIGTERM if ends else signal.SIGINT)
                stop.raise_if_set(f"{job.name}: step {progress.step} of {job.steps} is saved")
            if last or progress.step % job.eval_every == 0:
                job.evaluate(progress)
            if save and not last:
                job.saver.periodic(snapshot(job, progress))
        if job.saver.saved != job.steps:
            job.saver.final(snapshot(job, progress))
    return progress


def _backward(job: Job, batch: StepBatch, runtime: Runtime) -> float:
    """Accumulate gradients; returns this rank's part of the loss: their mean over ranks is the step's loss.

    Each target weighs the same, whatever its micro-batch or rank: losses are summed and
    divided by the step's number of targets, not averaged micro-batch by micro-batch.
    """
    scale = runtime.topology.world_size / batch.supervised
    total = torch.zeros((), device=runtime.device.torch)
    for first in range(0, len(batch.inputs), job.micro_rows):
        ids_BT = runtime.to_device(batch.inputs[first : first + job.micro_rows])
        targets_BT = runtime.to_device(batch.targets[first : first + job.micro_rows])
        loss = job.loss_fn(ids_BT, targets_BT).sum() * scale
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return float(total)


def _check_finite(job: Job, step: int, loss: float, hyper: StepHyper) -> None:
    if math.isfinite(loss):
        return
    saved = job.saver.saved
    raise DivergedError(
        f"{job.name}: the loss is {loss} at step {step} with learning rate multiplier {hyper.lr_mult:.4g}",
        hint=(f"the last checkpoint is step {saved}; " if saved is not None else "")
        + "check the data, use --dtype fp32, or lower the preset's lr_scale",
    )


def _advance(job: Job, progress: Progress, batch: StepBatch, loss: float, *, seconds: float) -> None:
    progress.step += 1
    progress.position = batch.position
    before = progress.smooth_loss
    progress.smooth_loss = loss if before is None else LOSS_SMOOTHING * before + (1 - LOSS_SMOOTHING) * loss
    progress.tokens += job.pace.tokens_per_step
    progress.train_s += seconds
    job.pace.add(seconds)


def _report(job: Job, progress: Progress, loss: float, hyper: StepHyper, emit: Emit) -> None:
    pace = job.pace
    emit(
        "step",
        step=progress.step,
        steps=job.steps,
        unit="step",
        loss=round(loss, 5),
        lr=round(hyper.lr_mult, 6),
        tok_per_s=_rounded(pace.tok_per_s, 1),
        dt_s=_rounded(pace.step_s, 5),
        mfu=_rounded(pace.mfu, 4),
        eta_s=_rounded(pace.eta_s(job.steps - progress.step), 1),
        tokens=progress.tokens,
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def snapshot(job: Job, progress: Progress) -> Snapshot:
    """Return what a checkpoint of this moment holds.

    Raises:
        DivergedError: a weight is not finite; it would be the newest valid checkpoint.
    """
    weights = job.model.state_dict()
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DivergedError(
                f"{job.name}: `{name}` is not finite after step {progress.step}; it is not saved"
            )
    return Snapshot(
        step=progress.step,
        model=weights,
        optim=job.optimizer.state_tensors(),
        state=progress.to_json() | job.facts,
    )

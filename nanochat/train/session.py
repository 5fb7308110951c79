"""From a stage's plan to its exported model: build, restore, train, save, export.

What base, mid and SFT share around the loop. Knows nothing of their data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nanochat.checkpoint.commit import Checkpoint, CheckpointStore
from nanochat.checkpoint.models import export_model
from nanochat.data.loader import Prefetch, StepBatch, StepBatches
from nanochat.errors import DataError, RunLockedError
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, OptimHyper, Schedule
from nanochat.run.context import StageContext, StageResult
from nanochat.shape import Preset
from nanochat.tokenizer import Tokenizer
from nanochat.train.loop import Job, Progress, train
from nanochat.train.pace import Pace
from nanochat.train.runtime import Runtime, compiles, loss_function, runtime
from nanochat.train.samples import greedy
from nanochat.train.saver import Saver
from nanochat.train.validation import Validation, byte_lengths
from nanochat.train.vocabulary import tokenizer_path

SAMPLE_EVERY = 5  # evaluations; samples come after the last one too


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a sample continues."""

    text: str
    """For people."""
    ids: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a training stage decides."""

    preset: Preset
    schedule: Schedule
    batches: Callable[[dict[str, Any] | None], StepBatches]
    """Make the data from a saved position on; None: from the start."""
    validation: StepBatch
    """This rank's validation rows."""
    start_from: str | None = None
    """Stage whose last checkpoint gives weights and optimizer state; None: fresh weights."""
    prompts: Sequence[Prompt] = ()
    stop: frozenset[int] = frozenset()
    """Ids that end a sample."""


def train_stage(context: StageContext, tokenizer: Tokenizer, plan: Plan) -> StageResult:
    """Train from the last checkpoint, or from the start, to the end; export the model.

    Raises:
        DataError: a checkpoint to start from is missing, or none of its copies is whole.
        DivergedError: the loss is not finite.
        Interrupted: a signal arrived; the state is saved.
        StorageError: a checkpoint or the model could not be written.
    """
    spec = context.spec
    with runtime(
        dtype=spec.dtype,
        deterministic=spec.deterministic,
        seed=spec.seed,
        topology=context.topology,
        cache=context.home.cache,
    ) as place:
        session = _Session(context, tokenizer, plan, place)
        progress = session.restore()
        session.train(progress)
        return session.finish(progress)


class _Session:
    """One attempt at a training stage: model, optimizer, checkpoints."""

    def __init__(self, context: StageContext, tokenizer: Tokenizer, plan: Plan, place: Runtime) -> None:
        self.context, self.tokenizer, self.plan, self.place = context, tokenizer, plan, place
        self.stage = context.config.stage
        shape = plan.preset.shape
        half = place.dtype == torch.bfloat16
        self.model = GPT(
            shape,
            dtype=place.dtype,
            table_dtype=torch.bfloat16 if half and place.device.kind == "cuda" else torch.float32,
            device=place.device.torch,
        )
        self.flops = shape.flops_per_token() * plan.preset.total_batch_tokens * plan.schedule.steps
        hyper = OptimHyper.for_preset(
            plan.preset, muon_bf16=half, compiled=place.device.kind == "cuda" and compiles(place, self.flops)
        )
        self.optimizer = MuonAdamW(self.model, hyper)
        self.store = CheckpointStore(context.dir)
        self.saver = Saver(
            self.store,
            every_steps=context.spec.checkpoint_every,
            every_s=60.0 * context.spec.checkpoint_minutes,
            topology=context.topology,
            clock=time.monotonic,
            emit=context.emit,
        )
        self.pace = Pace(plan.preset.total_batch_tokens, shape.flops_per_token(), place.peak_flops())
        self.inputs = {name: record.hash for name, record in context.inputs.items()}

    def restore(self) -> Progress:
        """Load this stage's newest checkpoint, else that of the stage before, else fresh weights."""
        own = self.store.latest()
        if own is not None:
            state = own.state
            if state.get("inputs") != self.inputs:
                raise RunLockedError(
                    f"stage `{self.stage}` has checkpoints that were made from other inputs",
                    hint=f"delete `{self.context.dir}` to start it again",
                )
            self._load(own)
            self.saver.saved = own.step
            return Progress.from_json(state)
        if self.plan.start_from is None:
            self.model.init_weights(self.context.spec.seed)
            return Progress()
        folder = self.context.home.stage(self.context.spec.run, self.plan.start_from)
        before = CheckpointStore(folder).latest()
        if before is None:
            raise DataError(
                f"stage `{self.stage}` starts from `{self.plan.start_from}`, which has no whole checkpoint",
                hint=f"delete `{folder}` and run `nanochat run {self.plan.start_from}` again",
            )
        self._load(before)
        return Progress()

    def _load(self, checkpoint: Checkpoint) -> None:
        device = str(self.place.device.torch)
        try:
            self.model.load_state_dict(checkpoint.load_model(device=device))
        except RuntimeError as error:
            raise DataError(f"checkpoint `{checkpoint.path}` is of another model: {error}") from None
        self.optimizer.load_state_tensors(checkpoint.load_optim(device=device))

    def train(self, progress: Progress) -> None:
        """Run the steps that are left."""
        plan, place = self.plan, self.place
        loss_fn = loss_function(self.model, place, flops=self.flops)
        validation = Validation(
            plan.validation, byte_lengths(self.tokenizer.token_bytes()), rows=plan.preset.device_batch_size
        )

        def evaluate(progress: Progress) -> None:
            score = validation.score(loss_fn, place)
            progress.val_bpb, progress.val_loss = score.bits_per_byte, score.loss
            common = {"step": progress.step, "n": score.tokens}
            self.context.emit(
                "eval", name="val_bpb", value=round(score.bits_per_byte, 5), unit="bpb", **common
            )
            self.context.emit("eval", name="val_loss", value=round(score.loss, 5), unit="nats", **common)
            evaluations = progress.step // plan.preset.eval_every
            if progress.step == plan.schedule.steps or evaluations % SAMPLE_EVERY == 0:
                self._samples(progress.step)

        with Prefetch(plan.batches(progress.position)) as batches:
            job = Job(
                name=self.stage,
                steps=plan.schedule.steps,
                model=self.model,
                loss_fn=loss_fn,
                optimizer=self.optimizer,
                batches=batches,
                micro_rows=plan.preset.device_batch_size,
                schedule=plan.schedule,
                saver=self.saver,
                pace=self.pace,
                eval_every=plan.preset.eval_every,
                evaluate=evaluate,
                facts={"inputs": self.inputs, "world_size": place.topology.world_size},
            )
            train(job, progress, place, emit=self.context.emit, stop=self.context.stop)

    def _samples(self, step: int) -> None:
        if not self.place.is_main:
            return
        prompts = self.plan.prompts
        answers = greedy(self.model, [prompt.ids for prompt in prompts], stop=self.plan.stop)
        for prompt, answer in zip(prompts, answers, strict=True):
            self.context.emit("sample", step=step, prompt=prompt.text, text=self.tokenizer.decode(answer))

    def finish(self, progress: Progress) -> StageResult:
        """Export the model on rank 0; returns the outputs and figures."""
        plan, context = self.plan, self.context
        outputs = []
        if self.place.is_main:
            outputs.append(
                export_model(
                    context.home,
                    context.spec.run,
                    self.stage,
                    progress.step,
                    model_state=None,
                    shape_json=plan.preset.shape.to_json(),
                    tokenizer_path=tokenizer_path(context),
                )
            )
        counts = plan.preset.shape.parameter_counts()
        metrics = {
            "steps": progress.step,
            "tokens": progress.tokens,
            "epoch": (progress.position or {}).get("epoch", 0),
            "loss": progress.smooth_loss,
            "val_bpb": progress.val_bpb,
            "val_loss": progress.val_loss,
            "train_s": round(progress.train_s, 3),
            "tok_per_s": progress.tokens / progress.train_s if progress.train_s else None,
            "mfu": self.pace.mfu,
            "parameters": counts["total"],
            "flops_per_token": plan.preset.shape.flops_per_token(),
            "device": self.place.device.name,
            "dtype": str(self.place.dtype).removeprefix("torch."),
            "world_size": self.place.topology.world_size,
        }
        return StageResult(outputs=outputs, metrics=metrics)

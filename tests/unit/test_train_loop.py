"""The one loop: exact resume, honest accumulation, and a clean end whatever happens."""

from __future__ import annotations

import gc
import signal

import numpy as np
import pytest
import torch
from fakes_train import ROWS, CountingRows, Events, MemoryStore, T, cpu_runtime, make_job, restored

from nanochat.data.loader import StepBatch
from nanochat.errors import DivergedError, Interrupted, StorageError
from nanochat.run.signals import StopFlag
from nanochat.train.loop import Progress, train


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    """A full collection, which each run does once, walks all tests' objects: 0.3 s."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def run(job, progress=None, *, emit=None, stop=None):
    events = emit or Events()
    return train(job, progress or Progress(), cpu_runtime(), emit=events, stop=stop or StopFlag())


def weights(job):
    return {name: tensor.clone() for name, tensor in job.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_training_lowers_the_loss(arch):
    events = Events()
    run(make_job(steps=25, arch=arch), emit=events)
    losses = [event["loss"] for event in events.of("step")]
    assert losses[0] == pytest.approx(np.log(64), rel=0.01)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_twenty_steps_equal_ten_and_ten_more_bit_for_bit(arch):
    whole = make_job(arch=arch)
    run(whole)
    store = MemoryStore()
    first = make_job(arch=arch, store=store, every_steps=10)
    run(first)
    second, progress = restored(store, 10, arch=arch)
    done = run(second, progress)
    assert same(weights(whole), weights(second))
    assert done.step == 20
    assert done.tokens == 20 * ROWS * T


def test_micro_batches_change_nothing_but_rounding():
    runs = []
    for micro_rows in (ROWS, 2, 1):
        events, job = Events(), make_job(steps=8, micro_rows=micro_rows)
        run(job, emit=events)
        runs.append(([event["loss"] for event in events.of("step")], weights(job)))
    for losses, found in runs[1:]:
        assert losses == pytest.approx(runs[0][0], abs=2e-4)
        assert torch.allclose(found["lm_head.weight"], runs[0][1]["lm_head.weight"], atol=2e-3)


class Uneven(CountingRows):
    """Micro-batches with very different numbers of targets, as fine-tuning has."""

    def __next__(self) -> StepBatch:
        batch = super().__next__()
        targets = batch.targets.copy()
        targets[1:, 2:] = -1
        return StepBatch(batch.inputs, targets, int((targets >= 0).sum()), batch.position)


def test_every_target_weighs_the_same_whatever_its_micro_batch():
    losses = []
    for micro_rows in (ROWS, 1):
        events = Events()
        run(make_job(steps=1, batches=Uneven(), micro_rows=micro_rows), emit=events)
        losses.append(events.of("step")[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_masked_targets_have_no_gradient():
    """A mask that got lost has trained others' chat models on their users' words for a month."""

    class Masked(CountingRows):
        def __next__(self) -> StepBatch:
            batch = super().__next__()
            targets = np.where(np.arange(T) % 2 == 0, batch.targets, -1)
            wrong = np.where(np.arange(T) % 2 == 0, batch.targets, (batch.targets + 7) % 64)
            self.wrong = wrong
            return StepBatch(batch.inputs, targets, int((targets >= 0).sum()), batch.position)

    job = make_job(steps=1, batches=Masked())
    batch = next(Masked())
    loss_BT = job.loss_fn(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets))
    assert (loss_BT[:, 1::2] == 0).all()
    assert (loss_BT[:, ::2] > 0).all()
    loss_BT[:, 1::2].sum().backward()
    assert all(p.grad is None or not p.grad.abs().any() for p in job.model.parameters())


class Poisoned(CountingRows):
    def __init__(self, job_model, at: int) -> None:
        super().__init__()
        self.model, self.at, self.step = job_model, at, 0

    def __next__(self) -> StepBatch:
        self.step += 1
        if self.step == self.at:
            with torch.no_grad():
                self.model().lm_head.weight[0, 0] = float("nan")
        return super().__next__()


def test_a_loss_that_is_not_finite_names_step_and_learning_rate_and_takes_no_step():
    box = {}
    job = make_job(batches=Poisoned(lambda: box["model"], at=4), every_steps=2)
    box["model"] = job.model
    with pytest.raises(DivergedError, match=r"base_train: the loss is nan at step 3 with .* 1") as error:
        run(job)
    assert error.value.exit_code == 70
    assert "the last checkpoint is step 2" in error.value.hint
    assert torch.isfinite(job.model.blocks[0].mlp.up.weight).all()


def test_weights_that_are_not_finite_are_never_saved():
    store = MemoryStore()
    job = make_job(steps=3, store=store)
    step = job.optimizer.step

    def poison(**values):
        step(**values)
        with torch.no_grad():
            job.model.wte.weight[0, 0] = float("inf")

    job.optimizer.step = poison
    with pytest.raises(DivergedError):
        run(job)
    assert not store.saved


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_says_so(signum, code):
    store, stop, events = MemoryStore(), StopFlag(), Events()

    def emit(name, **fields):
        events(name, **fields)
        if name == "step" and fields["step"] == 6:
            stop.set(signum)

    with pytest.raises(Interrupted, match="step 7 of 20 is saved") as error:
        run(make_job(store=store), emit=emit, stop=stop)
    assert error.value.exit_code == code
    assert list(store.saved) == [7]
    second, progress = restored(store, 7)
    run(second, progress)
    whole = make_job()
    run(whole)
    assert same(weights(whole), weights(second))


def test_a_signal_during_the_last_step_lets_the_stage_finish():
    stop, store = StopFlag(), MemoryStore()
    job = make_job(steps=3, store=store)
    step = job.optimizer.step
    job.optimizer.step = lambda **values: (
        step(**values),
        stop.set(signal.SIGTERM) if job.optimizer.steps_done == 3 else None,
    )
    assert run(job, stop=stop).step == 3
    assert list(store.saved) == [3]


def test_evaluation_comes_at_its_steps_and_after_the_last_one():
    seen = []
    job = make_job(steps=7, eval_every=3, evaluate=lambda progress: seen.append(progress.step))
    run(job)
    assert seen == [3, 6, 7]


def test_checkpoints_hold_where_everything_stands():
    store = MemoryStore()
    run(make_job(steps=6, store=store, every_steps=2, facts={"world_size": 1}))
    assert list(store.saved) == [2, 4, 6]
    model, optim, state = store.saved[4]
    assert state["step"] == 4
    assert state["position"] == {"row": 4 * ROWS}
    assert state["world_size"] == 1
    assert set(model) == set(make_job().model.state_dict())
    assert int(optim["step"]) == 4


def test_the_last_save_failing_ends_the_stage_with_a_storage_error():
    class Full(MemoryStore):
        def save(self, step, **values):
            raise StorageError("cannot write `x`: No space left on device")

    with pytest.raises(StorageError):
        run(make_job(steps=3, store=Full(), every_steps=1))


def test_a_finished_run_has_nothing_left_to_do():
    store = MemoryStore()
    run(make_job(steps=4, store=store))
    job, progress = restored(store, 4, steps=4)
    job.saver.saved = 4
    before, events = weights(job), Events()
    run(job, progress, emit=events)
    assert same(before, weights(job))
    assert events.all == []


def test_step_events_carry_what_listeners_need():
    events = Events()
    run(make_job(steps=5), emit=events)
    last = events.of("step")[-1]
    assert (last["step"], last["steps"], last["unit"], last["tokens"]) == (5, 5, "step", 5 * ROWS * T)
    assert last["eta_s"] == 0
    assert last["tok_per_s"] == pytest.approx(ROWS * T / last["dt_s"], rel=0.01)
    assert last["mfu"] is None


def test_the_garbage_collector_is_frozen_during_training_and_itself_again_after():
    seen = []
    run(make_job(steps=3, eval_every=2, evaluate=lambda progress: seen.append(gc.isenabled())))
    assert seen == [False, False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0

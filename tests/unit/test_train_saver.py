"""When a checkpoint is due, and what a failed save costs."""

from __future__ import annotations

import pytest

from nanochat.errors import StorageError
from nanochat.settings import Topology
from nanochat.train.saver import MAX_MISSES, Saver, Snapshot


class FakeStore:
    def __init__(self, *, failures: int = 0) -> None:
        self.failures = failures
        self.steps: list[int] = []

    def save(self, step, *, model, optim, state, topology=None):
        if self.failures:
            self.failures -= 1
            raise StorageError("cannot write `x`: No space left on device", hint="free space")
        self.steps.append(step)
        return 100


class Rig:
    def __init__(self, *, failures=0, every_steps=None, every_s=60.0, rank=0):
        self.now = 0.0
        self.events: list[dict] = []
        self.store = FakeStore(failures=failures)
        self.saver = Saver(
            self.store,
            every_steps=every_steps,
            every_s=every_s,
            topology=Topology(rank=rank),
            clock=lambda: self.now,
            emit=lambda name, **fields: self.events.append({"event": name} | fields),
        )


def state(step):
    return Snapshot(step=step, model={}, optim={}, state={"step": step})


def test_saves_are_due_by_step_and_by_time():
    rig = Rig(every_steps=10, every_s=60.0)
    assert [step for step in range(1, 31) if rig.saver.due(step)] == [10, 20, 30]
    rig.now = 61.0
    assert rig.saver.due(11)
    rig.saver.periodic(state(11))
    assert not rig.saver.due(12)
    assert rig.store.steps == [11]
    assert rig.events == [{"event": "checkpoint", "step": 11, "bytes": 100, "dt_s": 0.0}]
    assert rig.saver.saved == 11


def test_a_failed_save_is_tried_again_after_a_pause_that_doubles():
    rig = Rig(failures=3, every_steps=1)
    waits = []
    for step in range(1, 5):
        asked = rig.now
        while not rig.saver.due(step):
            rig.now += 1.0
        waits.append(rig.now - asked)
        rig.saver.periodic(state(step))
    assert waits == [0.0, 10.0, 20.0, 40.0]
    assert rig.store.steps == [4]
    assert [event.get("misses") for event in rig.events] == [1, 2, 3, None]


def test_the_fifth_failure_in_a_row_ends_the_run():
    rig = Rig(failures=MAX_MISSES)
    for step in range(1, MAX_MISSES):
        rig.saver.periodic(state(step))
    with pytest.raises(StorageError, match="step 5 failed, the 5th time in a row: cannot write"):
        rig.saver.periodic(state(MAX_MISSES))


def test_a_success_forgives_earlier_failures():
    rig = Rig(failures=MAX_MISSES - 1)
    for step in range(1, MAX_MISSES + 1):
        rig.saver.periodic(state(step))
    rig.store.failures = MAX_MISSES - 1
    for step in range(10, 10 + MAX_MISSES):
        rig.saver.periodic(state(step))
    assert rig.store.steps == [5, 14]


def test_the_last_save_of_a_stage_is_not_allowed_to_fail():
    rig = Rig(failures=1)
    with pytest.raises(StorageError, match="No space left") as error:
        rig.saver.final(state(9))
    assert error.value.exit_code == 201


def test_a_failure_is_said_once_on_rank_0(capsys):
    for rank in (0, 1):
        Rig(failures=1, rank=rank).saver.periodic(state(7))
    assert capsys.readouterr().err.count("checkpoint of step 7 failed (1 of 5), training goes on") == 1

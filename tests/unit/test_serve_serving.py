"""Admission, readiness and liveness, on a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nanochat.errors import RequestError
from nanochat.serve.serving import Serving


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine():
    return SimpleNamespace(ticks=0, busy=False)


@pytest.fixture
def serving(engine, clock):
    made = Serving(engine, capacity=4, slots=2, clock=clock, stuck_s=10)
    made.warm = True
    return made


def test_a_full_queue_is_429_with_a_time_to_come_back(serving):
    serving.admit(3)
    with pytest.raises(RequestError) as refused:
        serving.admit(2)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert 1 <= refused.value.retry_after_s <= 60
    serving.admit(1)
    serving.release(3, 1.0)
    serving.admit(3)


@pytest.mark.parametrize(("warm", "draining"), [(False, False), (True, True)])
def test_nothing_is_admitted_before_the_warm_up_or_while_draining(serving, warm, draining):
    serving.warm, serving.draining = warm, draining
    assert not serving.ready
    with pytest.raises(RequestError) as refused:
        serving.admit(1)
    assert refused.value.status == 503
    assert refused.value.retry_after_s is not None


def test_an_idle_engine_is_healthy_for_ever(serving, clock):
    for _ in range(3):
        clock.now += 1000
        assert serving.stuck_for() == 0.0


def test_work_without_steps_is_unhealthy_after_the_limit(serving, engine, clock):
    clock.now += 1000  # a long idle time before the request must not count
    serving.admit(1)
    engine.busy = True
    clock.now += 9
    assert serving.stuck_for() == 0.0
    clock.now += 2
    assert serving.stuck_for() == pytest.approx(11)
    engine.ticks += 1
    assert serving.stuck_for() == 0.0
    clock.now += 9
    assert serving.stuck_for() == 0.0


def test_the_drain_is_told_when_the_last_request_ends(serving):
    told = []
    serving.on_idle = lambda: told.append(True)
    serving.admit(1)
    serving.admit(2)
    serving.release(1, 0.1)
    assert not told
    serving.release(2, 0.1)
    assert told

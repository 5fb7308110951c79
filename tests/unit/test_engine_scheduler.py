"""The scheduler alone: no torch, no tokens' meaning, a step function that counts."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.engine.request import Request, Sampled, SamplingParams
from nanochat.engine.scheduler import Scheduler
from nanochat.errors import ConfigError


class SlotPool:
    def __init__(self, slots):
        self.free = list(range(slots))
        self.asked = []

    def acquire(self, tokens):
        self.asked.append(tokens)
        return self.free.pop() if self.free else None

    def release(self, slot):
        assert slot not in self.free
        self.free.append(slot)


def job(prompt, max_new, number=0):
    return Request(
        id=number,
        prompt_tokens=len(prompt),
        params=SamplingParams(),
        sink=None,
        tokens=list(prompt),
        limit=len(prompt) + max_new,
        uniform=lambda: 0.0,
    )


def harness(*, slots=4, max_running=4, max_step_tokens=24, prefill_chunk=8, on_step=lambda works: None):
    """A scheduler over a step function that answers last token + 1, and what it was asked to do."""
    seen = SimpleNamespace(steps=[], ended=[], pool=SlotPool(slots))

    def step_batch(works):
        on_step(works)
        seen.steps.append([(w.request.id, w.start, w.count) for w in works])
        return [Sampled(w.request.tokens[-1] + 1) if w.draws else None for w in works]

    def accept(request, sampled):
        request.tokens.append(sampled.token)
        if len(request.tokens) >= request.limit:
            request.finish_reason = "length"

    def end(request, reason):
        request.finish_reason = reason
        seen.ended.append((request.id, reason))

    seen.scheduler = Scheduler(
        step_batch,
        seen.pool,
        accept=accept,
        end=end,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        prefill_chunk=prefill_chunk,
    )
    return seen


def run_to_end(scheduler, limit=1000):
    for _ in range(limit):
        if not scheduler.step():
            return
    raise AssertionError("the scheduler did not become idle")


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("max_running", [1, 3, 8])
def test_output_does_not_depend_on_how_many_requests_share_a_step(slots, max_running):
    h = harness(slots=slots, max_running=max_running)
    jobs = [job([k * 10] * (k + 1), max_new=3 + k % 2, number=k) for k in range(5)]
    for j in jobs:
        h.scheduler.submit(j)
    run_to_end(h.scheduler)
    assert [j.tokens[j.prompt_tokens :] for j in jobs] == [
        list(range(k * 10 + 1, k * 10 + 1 + 3 + k % 2)) for k in range(5)
    ]
    assert sorted(h.pool.free) == list(range(slots))
    assert not h.scheduler.busy


def test_a_request_joins_and_leaves_while_others_run():
    h = harness()
    long, short = job([1], max_new=6, number=1), job([50], max_new=2, number=2)
    h.scheduler.submit(long)
    h.scheduler.step()
    h.scheduler.submit(short)
    run_to_end(h.scheduler)
    assert [[who for who, _, _ in step] for step in h.steps] == [[1], [1, 2], [1, 2], [1], [1], [1]]


def test_a_request_that_leaves_makes_room_in_the_same_step_order():
    h = harness(slots=1)
    first, second = job([1], max_new=1, number=1), job([2], max_new=1, number=2)
    h.scheduler.submit(first)
    h.scheduler.submit(second)
    assert h.scheduler.step()
    assert (first.finish_reason, second.slot) == ("length", -1)
    assert h.scheduler.step()
    assert second.finish_reason == "length"
    assert not h.scheduler.step()


def test_admission_asks_for_the_whole_length_of_a_request():
    h = harness()
    h.scheduler.submit(job([1, 2, 3], max_new=5))
    h.scheduler.step()
    assert h.pool.asked == [8]


def test_a_long_prompt_is_computed_in_chunks_beside_decoding_rows():
    h = harness(max_step_tokens=12, prefill_chunk=8)
    h.scheduler.submit(job([1], max_new=9, number=1))
    h.scheduler.step()
    h.scheduler.submit(job([0] * 20, max_new=1, number=2))
    run_to_end(h.scheduler)
    assert h.steps[1:4] == [[(1, 1, 1), (2, 0, 8)], [(1, 2, 1), (2, 8, 8)], [(1, 3, 1), (2, 16, 4)]]
    assert all((1, n, 1) in step for n, step in enumerate(h.steps))  # one token in every step: no stall


def test_a_chunk_that_does_not_fit_the_budget_waits_and_smaller_ones_pass():
    h = harness(max_step_tokens=12, prefill_chunk=8, max_running=4)
    for number, size in ((1, 8), (2, 8), (3, 4)):
        h.scheduler.submit(job([0] * size, max_new=2, number=number))
    h.scheduler.step()
    h.scheduler.step()
    assert h.steps == [[(1, 0, 8), (3, 0, 4)], [(1, 8, 1), (3, 4, 1), (2, 0, 8)]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=7))
def test_chunk_bounds_depend_on_the_request_alone_and_no_step_exceeds_the_budget(shapes):
    h = harness(slots=3, max_running=3, max_step_tokens=11, prefill_chunk=8)
    jobs = [job([0] * size, max_new=new, number=k) for k, (size, new, _) in enumerate(shapes)]
    for j, (_, _, steps_before) in zip(jobs, shapes, strict=True):
        for _ in range(steps_before):
            h.scheduler.step()
        h.scheduler.submit(j)
    run_to_end(h.scheduler)
    assert all(sum(count for _, _, count in step) <= 11 for step in h.steps)
    for j in jobs:
        mine = [(start, count) for step in h.steps for who, start, count in step if who == j.id]
        chunks = [(s, min(8, j.prompt_tokens - s)) for s in range(0, j.prompt_tokens, 8)]
        assert mine == chunks + [(n, 1) for n in range(j.prompt_tokens, j.limit - 1)]
    assert sorted(h.pool.free) == [0, 1, 2]


def test_tokens_that_a_tool_forces_are_computed_in_one_step():
    h = harness()
    j = job([1, 2], max_new=20)
    h.scheduler.submit(j)
    h.scheduler.step()
    j.tokens += [7, 8, 9]  # what `accept` does after a tool's answer
    h.scheduler.step()
    assert h.steps[1] == [(0, 2, 4)]


def test_cancelling_frees_a_running_slot_and_a_place_in_the_queue_at_the_next_step():
    h = harness(slots=1)
    running, queued, other = (job([1], max_new=50, number=k) for k in range(3))
    for j in (running, queued, other):
        h.scheduler.submit(j)
    h.scheduler.step()
    running.cancelled = queued.cancelled = True
    h.scheduler.step()
    assert h.ended == [(0, "cancelled"), (1, "cancelled")]
    assert h.scheduler.running == [other]
    assert not h.scheduler.waiting


def test_a_request_cancelled_while_its_step_is_computed_gets_no_token():
    j = job([1], max_new=50)
    h = harness(on_step=lambda works: setattr(j, "cancelled", True))
    h.scheduler.submit(j)
    h.scheduler.step()
    assert j.tokens == [1]
    assert not h.scheduler.step()
    assert h.ended == [(0, "cancelled")]


def test_ticks_advance_while_work_waits_and_when_idle():
    h = harness(slots=1)
    h.scheduler.submit(job([1], max_new=3))
    h.scheduler.submit(job([1], max_new=3))
    for n in range(1, 6):
        h.scheduler.step()
        assert h.scheduler.ticks == n
    run_to_end(h.scheduler)
    before = h.scheduler.ticks
    assert not h.scheduler.step()
    assert h.scheduler.ticks == before + 1


def test_abort_ends_running_and_waiting_requests_and_frees_their_slots():
    h = harness(slots=1)
    for k in range(3):
        h.scheduler.submit(job([1], max_new=5, number=k))
    h.scheduler.step()
    h.scheduler.abort("error")
    assert h.ended == [(0, "error"), (1, "error"), (2, "error")]
    assert not h.scheduler.busy
    assert h.pool.free == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_running": 0}, "max_running is 0"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"max_running": 8, "max_step_tokens": 10, "prefill_chunk": 8}, "max_step_tokens is 10"),
    ],
)
def test_limits_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        harness(**options)


def test_the_scheduler_needs_no_torch():
    code = "import nanochat.engine.scheduler, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=".").returncode == 0

"""Speed is that of the whole step, and the compiling steps do not spoil it."""

from __future__ import annotations

import pytest

from nanochat.train.pace import Pace


def test_the_first_steps_count_only_until_later_ones_exist():
    pace = Pace(1000, flops_per_token=6)
    assert (pace.tok_per_s, pace.eta_s(5), pace.mfu) == (None, None, None)
    pace.add(30.0)
    assert pace.eta_s(10) == 300.0
    pace.add(2.0)
    pace.add(0.5)
    pace.add(0.5)
    assert pace.step_s == 0.5
    assert pace.eta_s(10) == 5.0


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_tokens_per_second_count_every_micro_batch_of_a_step(micro_batches):
    """A step of four micro-batches of 256 tokens has 1,024 tokens, however it is cut."""
    pace = Pace(256 * 4, flops_per_token=6)
    for _ in range(5):
        pace.add(0.25)
    assert pace.tok_per_s == 4096


def test_mfu_is_known_only_where_the_peak_is():
    pace = Pace(1000, flops_per_token=2_000_000, peak_flops=1e10)
    pace.add(1.0)
    assert pace.mfu == pytest.approx(0.2)
    pace.peak_flops = None
    assert pace.mfu is None


def test_a_single_slow_step_does_not_move_the_estimate():
    pace = Pace(1000, flops_per_token=6)
    for seconds in [1.0] * 20 + [60.0]:
        pace.add(seconds)
    assert pace.eta_s(3) == 3.0

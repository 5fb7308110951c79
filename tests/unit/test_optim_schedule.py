"""Schedules hit their exact values."""

import itertools
import math
from dataclasses import replace

import pytest

from nanochat.optim import (
    base_schedule,
    lr_multiplier,
    mid_schedule,
    muon_momentum,
    muon_weight_decay,
    sft_schedule,
)
from nanochat.shape import PRESETS

SPEEDRUN = PRESETS["speedrun"]  # 5,568 steps; warmdown 3,619


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 1 / 40),
        (19, 0.5),
        (39, 1.0),
        (40, 1.0),
        (1949, 1.0),  # 5568 - 3619
        (1950, 1 - 0.95 / 3619),
        (5567, 1 / 3619 + (1 - 1 / 3619) * 0.05),
    ],
)
def test_the_learning_rate_of_the_recipe(step, value):
    assert base_schedule(SPEEDRUN).at(step).lr_mult == pytest.approx(value, rel=1e-12)


def test_the_learning_rate_never_rises_in_the_warmdown():
    schedule = base_schedule(SPEEDRUN)
    values = [schedule.at(step).lr_mult for step in range(40, schedule.steps)]
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert min(values) > 0.05


@pytest.mark.parametrize(
    ("step", "value"), [(0, 0.85), (200, 0.91), (400, 0.97), (1949, 0.97), (5567, 0.97 - 0.07 * 3618 / 3619)]
)
def test_the_momentum_of_the_recipe(step, value):
    assert base_schedule(SPEEDRUN).at(step).muon_momentum == pytest.approx(value, rel=1e-12)


def test_the_momentum_warmup_wins_over_the_warmdown():
    assert muon_momentum(90, 100, warmup=400, warmdown=65) == pytest.approx(0.85 + 0.12 * 90 / 400)


@pytest.mark.parametrize(
    ("step", "value"), [(0, 0.2), (50, 0.1), (100, 0.0), (25, 0.1 * (1 + math.sqrt(0.5)))]
)
def test_the_weight_decay_is_half_a_cosine(step, value):
    assert muon_weight_decay(step, 100, base=0.2) == pytest.approx(value, abs=1e-15)


def test_midtraining_keeps_the_rate_and_falls_to_zero_over_the_last_fifth():
    schedule = mid_schedule(replace(SPEEDRUN, mid_steps=100))
    assert [schedule.at(i).lr_mult for i in (0, 79, 80)] == [1.0, 1.0, 1.0]
    assert schedule.at(90).lr_mult == pytest.approx(0.5)
    assert schedule.at(99).lr_mult == pytest.approx(0.05)
    assert schedule.at(50).muon_wd == 0


def test_fine_tuning_has_no_decay_and_falls_to_zero_over_the_last_half():
    schedule = sft_schedule(replace(SPEEDRUN, sft_steps=1000))
    assert schedule.at(0).lr_mult == schedule.at(500).lr_mult == 0.8
    assert schedule.at(750).lr_mult == pytest.approx(0.4)
    assert [schedule.at(i).muon_momentum for i in (0, 150, 300, 999)] == pytest.approx(
        [0.85, 0.9, 0.95, 0.95]
    )
    assert schedule.at(123).muon_wd == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("make", [base_schedule, mid_schedule, sft_schedule])
@pytest.mark.parametrize("preset", ["smoke", "tiny", "speedrun", "classic-d20"])
def test_the_shortest_runs_have_finite_positive_rates(steps, make, preset):
    schedule = make(replace(PRESETS[preset], base_steps=steps, mid_steps=steps, sft_steps=steps))
    for step in range(steps):
        at = schedule.at(step)
        assert 0 < at.lr_mult <= 1
        assert 0.8 < at.muon_momentum < 1


def test_classic_has_no_warmup_and_falls_to_zero_over_the_last_fifth():
    schedule = base_schedule(PRESETS["classic-d20"])
    assert schedule.at(0).lr_mult == 1.0
    assert schedule.at(21_399).lr_mult == pytest.approx(1 / 4280)
    assert schedule.at(300).muon_momentum == pytest.approx(0.95)
    assert schedule.at(21_399).muon_momentum == pytest.approx(0.95)
    assert schedule.at(0).muon_wd == 0


def test_no_warmdown_stays_flat():
    assert lr_multiplier(9, 10, warmup=0, warmdown=0, final=0.0) == 1.0

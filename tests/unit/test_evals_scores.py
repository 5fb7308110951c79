"""Intervals by their definition, ChatCORE against published columns, and what a subset may be called."""

from __future__ import annotations

import pytest

from nanochat.evals.scores import CHAT_CORE, Z95, Score, centred, centred_mean, chat_core, wilson

SFT = {"arc_easy": 0.3876, "arc_challenge": 0.2807, "mmlu": 0.3151, "gsm8k": 0.0455, "humaneval": 0.0854}
MID = {"arc_easy": 0.3561, "arc_challenge": 0.2875, "mmlu": 0.3111, "gsm8k": 0.0250, "humaneval": 0.0671}


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (5, 10), (25, 100), (1, 3), (999, 1000)])
def test_a_wilson_bound_lies_just_z_standard_errors_from_what_was_seen(correct, total):
    low, high = wilson(correct, total)
    seen = correct / total
    assert 0 <= low <= seen <= high <= 1
    for bound in (low, high):  # the definition: (seen - bound)^2 = z^2 bound (1 - bound) / n
        assert (seen - bound) ** 2 == pytest.approx(Z95**2 * bound * (1 - bound) / total, abs=1e-12)


def test_nothing_seen_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("column", "value"), [(SFT, 0.0884), (MID, 0.0730)])
def test_chatcore_equals_the_published_columns(column, value):
    assert chat_core(column) == pytest.approx(value, abs=5e-5)


def test_chance_is_zero_and_perfect_is_one():
    assert centred(0.25, 0.25) == 0.0
    assert centred(1.0, 0.25) == 1.0


def test_a_subset_is_never_called_chatcore():
    whole = [Score(task, 50, 100, chance) for task, chance in CHAT_CORE.items()]
    assert centred_mean(whole)[0] == "chatcore"
    assert centred_mean(whole[:4])[0] == "centred_mean(arc_challenge,arc_easy,gsm8k,mmlu)"
    assert centred_mean([*whole[:3], Score("gsm8k_264", 1, 66, 0.0), whole[4]])[0].startswith("centred_mean(")
    assert centred_mean([*whole, Score("spelling", 1, 2, 0.0)])[0] != "chatcore"
    assert centred_mean(whole[:1]) is None
    assert chat_core({"arc_easy": 0.5}) is None


def test_an_event_carries_n_chance_and_bounds():
    fields = Score("arc_easy", 30, 100, 0.25).fields()
    assert fields["value"] == 0.3
    assert (fields["n"], fields["chance"], fields["unit"]) == (100, 0.25, "accuracy")
    assert fields["low"] < 0.3 < fields["high"]
    assert Score("empty", 0, 0, 0.0).accuracy == 0.0

"""The three measured steps that a plan multiplies."""

from __future__ import annotations

import itertools
import json

import pytest

from nanochat.shape import preset
from nanochat.train.measure import Asked, main, measure


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # put back after the test: measuring sets it


def test_a_step_is_its_micro_batches_and_one_update():
    ticks = itertools.count()
    figures = measure(preset("smoke"), dtype="fp32", clock=lambda: float(next(ticks)))
    assert (figures["micro_batch_s"], figures["optimizer_s"]) == (1.0, 1.0)
    assert figures["step_s"] == preset("smoke").accumulation() + 1.0
    assert figures["tok_per_s"] == preset("smoke").total_batch_tokens / figures["step_s"]
    assert figures["dtype"] == "float32"
    assert not figures["compiled"]


def test_the_command_prints_one_json_object(capsys, tmp_path):
    assert main(["--preset", "smoke", "--dtype", "fp32", "--cache", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["tok_per_s"] > 0
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "tinny"], "did you mean `tiny`?"),
        (["--preset", "smoke", "--device-batch-size", "3"], "use --device-batch-size"),
    ],
)
def test_what_does_not_exist_or_divide_is_refused(capsys, tmp_path, arguments, said):
    assert main([*arguments, "--cache", str(tmp_path)]) == 64
    assert said in capsys.readouterr().err


def test_asked_holds_what_a_preset_needs():
    assert Asked("smoke") == Asked("smoke", None, None, None)

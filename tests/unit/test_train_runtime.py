"""When training compiles, what it says when it cannot, and that torch's switches are put back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes_train import cpu_runtime, small_shape

from nanochat.gpt import GPT
from nanochat.settings import Topology
from nanochat.train.runtime import COMPILE_FROM_CPU_FLOPS, Runtime, compiles, loss_function, runtime

LONG, SHORT = 10 * COMPILE_FROM_CPU_FLOPS, COMPILE_FROM_CPU_FLOPS / 10


def machine(kind="cpu", *, compile_ok=True, deterministic=False) -> Runtime:
    place = cpu_runtime()
    place.device.kind, place.device.compile_ok = kind, compile_ok
    place.device.why = None if compile_ok else "no C++ compiler on PATH"
    return replace(place, dtype=torch.bfloat16, deterministic=deterministic)


@pytest.mark.parametrize(
    ("place", "flops", "wanted"),
    [
        (machine(), LONG, True),
        (machine(), SHORT, False),
        (machine(compile_ok=False), LONG, False),
        (machine(deterministic=True), LONG, False),
        (machine("cuda"), SHORT, True),
        (machine("mps", compile_ok=False), LONG, False),
    ],
    ids=["long", "too short to pay", "no compiler", "deterministic", "gpu", "mps"],
)
def test_training_compiles_where_it_can_and_pays(place, flops, wanted):
    assert compiles(place, flops) is wanted


@pytest.mark.parametrize(
    ("place", "lines"),
    [
        (machine(compile_ok=False), 1),
        (machine("mps", compile_ok=False), 0),
        (replace(machine(compile_ok=False), topology=Topology(rank=1, world_size=2)), 0),
    ],
    ids=["cpu", "mps never compiles", "other rank"],
)
def test_a_missing_compiler_is_one_line_and_training_goes_on(capsys, place, lines):
    model = GPT(small_shape())
    model.init_weights(1)
    loss_fn = loss_function(model, place, flops=LONG)
    err = capsys.readouterr().err
    assert err.count("\n") == lines
    assert ("eager bfloat16" in err and "no C++ compiler on PATH" in err) == bool(lines)
    ids = torch.zeros((1, 4), dtype=torch.int64)
    assert loss_fn(ids, ids).shape == (1, 4)


@pytest.mark.parametrize(("dtype", "wanted"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_arithmetic_is_the_one_asked_for(dtype, wanted):
    with runtime(dtype=dtype, deterministic=False, seed=1, topology=Topology()) as place:
        assert place.dtype == wanted


def test_determinism_is_switched_on_for_the_stage_alone():
    with runtime(dtype="fp32", deterministic=True, seed=1, topology=Topology()) as place:
        assert place.deterministic
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_one_rank_sums_alone_and_copies_rows_unchanged():
    place = cpu_runtime()
    assert place.sum(1.5, True) == [1.5, 1.0]
    rows = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert torch.equal(place.to_device(rows), torch.arange(6).view(2, 3))

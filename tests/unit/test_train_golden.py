"""The first losses of both architectures, fixed: a change of recipe, init or data shows here.

Compared to 1e-4 and not bitwise: matrix libraries sum in another order on another CPU.
`python tests/unit/test_train_golden.py` writes the files anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fakes_train import Events, cpu_runtime, make_job

from nanochat.run.signals import StopFlag
from nanochat.train.loop import Progress, train

GOLDEN = Path(__file__).parents[1] / "golden"


def losses(arch: str) -> list[float]:
    events = Events()
    train(make_job(steps=12, arch=arch), Progress(), cpu_runtime(), emit=events, stop=StopFlag())
    return [event["loss"] for event in events.of("step")]


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_the_first_losses_are_the_golden_ones(arch):
    golden = [float(line) for line in (GOLDEN / f"loss_{arch}.txt").read_text().split()]
    assert losses(arch) == pytest.approx(golden, abs=1e-4)


if __name__ == "__main__":
    for name in ("modern", "classic"):
        (GOLDEN / f"loss_{name}.txt").write_text("".join(f"{loss:.5f}\n" for loss in losses(name)))
    sys.exit(0)

"""Two ranks over gloo equal one rank; their state loads at any number of ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, OptimHyper
from nanochat.shape import Shape

SHAPE = Shape.from_depth(3, vocab_size=100, seq_len=32)  # odd numbers of matrices: padding
STEPS = ((0.5, 0.85, 0.3), (1.0, 0.9, 0.2), (0.3, 0.95, 0.0))
RANKS = 2


def gradient(parameter, step, rank, place):
    """A full-rank gradient: those of a real batch have null directions, whose rounding Muon amplifies."""
    generator = torch.Generator().manual_seed(1000 * step + 100 * rank + place)
    return torch.randn(parameter.shape, generator=generator)


def train(steps, *, rank=None, world_size=1, resume=None):
    """Take steps with this rank's gradients, or alone with the mean over two ranks."""
    model = GPT(SHAPE)
    model.init_weights(7)
    if resume is not None:
        model.load_state_dict(load_file(resume / "model.safetensors"))
    optimizer = MuonAdamW(model, OptimHyper.for_shape(SHAPE, lr_scale=0.1, muon_bf16=False))
    assert optimizer.world_size == world_size
    if resume is not None:
        shards = [load_file(path) for path in sorted(resume.glob("optim-*.safetensors"))]
        merged = {name: tensor for shard in shards for name, tensor in shard.items()}
        assert len(merged) == sum(map(len, shards)), "shards overlap"
        optimizer.load_state_tensors(merged)
    ranks = range(RANKS) if rank is None else (rank,)
    for step in steps:
        for place, parameter in enumerate(model.parameters()):
            parameter.grad = sum(gradient(parameter, step, r, place) for r in ranks) / len(ranks)
        lr_mult, momentum, decay = STEPS[step]
        optimizer.step(lr_mult=lr_mult, muon_momentum=momentum, muon_wd=decay)
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, model, optimizer) -> None:
    folder.mkdir(exist_ok=True)
    if optimizer.rank == 0:
        save_file(model.state_dict(), folder / "model.safetensors")
    save_file(optimizer.state_tensors(), folder / f"optim-{optimizer.rank}.safetensors")


def main() -> None:
    """Run as one rank: train the given steps, from a saved state or from scratch, and save."""
    meet, resume, out, steps, rank, world_size = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meet}", rank=int(rank), world_size=int(world_size)
    )
    start = Path(resume) if resume != "-" else None
    numbers = [int(step) for step in steps.split(",")]
    save(Path(out), *train(numbers, rank=int(rank), world_size=int(world_size), resume=start))
    torch.distributed.destroy_process_group()


def run_two_ranks(meet: Path, resume: Path | None, out: Path, steps: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(meet), str(resume or "-"), str(out), steps]
    ranks = [
        subprocess.Popen([*command, str(rank), "2"], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=55)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(folder / "meet", None, folder / "two", "0,1")
    return folder / "two"


def assert_equal_models(tensors, model) -> None:
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(
            tensors[name], tensor, atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_two_ranks_equal_one_rank(saved_by_two):
    model, _ = train([0, 1])
    assert_equal_models(load_file(saved_by_two / "model.safetensors"), model)


def test_each_rank_holds_its_share_of_the_state(saved_by_two):
    _, alone = train([])
    whole = sum(tensor.numel() for tensor in alone.state_tensors().values())
    for rank in range(2):
        shard = load_file(saved_by_two / f"optim-{rank}.safetensors")
        assert sum(tensor.numel() for tensor in shard.values()) < 0.65 * whole


def test_one_rank_goes_on_from_what_two_saved(saved_by_two):
    resumed, _ = train([2], resume=saved_by_two)
    straight, _ = train([0, 1, 2])
    assert_equal_models(resumed.state_dict(), straight)


def test_two_ranks_go_on_from_what_one_saved(tmp_path):
    save(tmp_path / "one", *train([0, 1]))
    run_two_ranks(tmp_path / "meet", tmp_path / "one", tmp_path / "end", "2")
    straight, _ = train([0, 1, 2])
    assert_equal_models(load_file(tmp_path / "end" / "model.safetensors"), straight)


if __name__ == "__main__":
    main()

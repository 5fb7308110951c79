"""Training stages as real processes: killed, continued, on two ranks, on damaged or too little data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_run import FakeHome, end

from nanochat import shape
from nanochat.data.loader import Batches
from nanochat.files import write_json
from nanochat.run.config import RunConfig, StageConfig
from nanochat.run.events import read_events
from nanochat.settings import Home

ROOT = Path(__file__).parents[2]
RUN = "exact"
pytestmark = pytest.mark.timeout(180)  # ten processes that import torch, on a machine that may be busy


class Machine:
    """A home folder and the launcher."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)

    def command(self, stage: str, **settings) -> list[str]:
        values = {"preset": "smoke", "source": "generated", "dtype": "fp32", "deterministic": True}
        spec = RunConfig(run=RUN, **(values | settings))
        path = self.home.stage(RUN, stage) / "config.json"
        write_json(path, StageConfig(stage=stage, spec=spec).model_dump(mode="json"))
        return [sys.executable, "-m", "nanochat.run.launch", "--config", str(path)]

    def start(self, stage: str, *, env: dict[str, str] | None = None, **settings) -> subprocess.Popen[str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **(env or {})}
        command = self.command(stage, **settings)
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def run(self, stage: str, **settings) -> tuple[int, str]:
        process = self.start(stage, **settings)
        _, stderr = process.communicate()
        return process.returncode, stderr

    def done(self, stage: str, **settings) -> None:
        code, stderr = self.run(stage, **settings)
        assert code == 0, stderr

    def weights(self, stage: str, step: int) -> bytes:
        return (self.home.models(RUN) / f"{stage}-{step}" / "model.safetensors").read_bytes()

    def record(self, stage: str) -> dict:
        return json.loads((self.home.stage(RUN, stage) / "record.json").read_text())

    def checkpoint(self, stage: str, step: int) -> dict:
        folder = self.home.stage(RUN, stage) / "checkpoints" / f"step-{step:08d}"
        return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("manifest", "state")}

    def events(self, stage: str, *names: str) -> list[dict]:
        return list(read_events(self.home.stage(RUN, stage) / "events.jsonl", *names))

    def copy(self, root: Path) -> Machine:
        shutil.copytree(self.home.root, root)
        return Machine(root)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("tokenized"))
    for stage in ("data", "tok_train", "tokenize"):
        machine.done(stage)
    return machine


STEPS, CHAT_STEPS = 40, 10
TOLERANCE = 5e-4  # nats: fp32 sums in another order (measured 1e-5, 2026-11)


@pytest.fixture(scope="module")
def whole(tokenized, tmp_path_factory) -> Machine:
    """A run that nothing interrupted."""
    machine = tokenized.copy(tmp_path_factory.mktemp("whole") / "home")
    machine.done("base_train", steps=STEPS)
    return machine


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_and_continued_ends_with_the_same_bytes(
    tokenized, whole, tmp_path, signum, code
):
    machine = tokenized.copy(tmp_path / "home")
    process = machine.start("base_train", steps=STEPS, checkpoint_every=4)
    wait_for(process, "checkpoint stage=base_train step=4")
    process.send_signal(signum)
    process.communicate()
    assert process.returncode == code
    assert not (machine.home.stage(RUN, "base_train") / "record.json").exists()

    machine.done("base_train", steps=STEPS, checkpoint_every=4)

    assert machine.weights("base_train", STEPS) == whole.weights("base_train", STEPS)
    steps = [event["step"] for event in machine.events("base_train", "step")]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    if signum != signal.SIGKILL:  # a stop that is asked for repeats nothing
        assert steps == list(range(1, STEPS + 1))
    losses = {event["step"]: event["loss"] for event in machine.events("base_train", "step")}
    assert losses == {event["step"]: event["loss"] for event in whole.events("base_train", "step")}


def two_nodes(machine: Machine, stage: str, **settings) -> list[subprocess.Popen[str]]:
    """Start a stage as a job of two nodes with one rank each."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1"}
    common |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    return [machine.start(stage, env=common | {"PET_NODE_RANK": str(node)}, **settings) for node in range(2)]


def test_one_rank_then_two_nodes_then_one_rank_train_as_one_run(tokenized, whole, tmp_path):
    machine = tokenized.copy(tmp_path / "home")
    settings = {"steps": STEPS, "checkpoint_every": 4}
    process = machine.start("base_train", **settings)
    wait_for(process, "checkpoint stage=base_train step=4")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    first = check_stopped(machine, ranks=1)

    nodes = two_nodes(machine, "base_train", **settings)
    wait_for(nodes[0], "checkpoint stage=base_train")
    nodes[1].send_signal(signal.SIGTERM)
    said = [node.communicate()[1] for node in nodes]
    assert [node.returncode for node in nodes] == [143, 143], said
    second = check_stopped(machine, ranks=2)
    assert second > first
    for text in said:
        assert f"stopped by SIGTERM: base_train: step {second} of {STEPS} is saved" in text

    machine.done("base_train", **settings)
    check_same_run(machine, whole)


def check_stopped(machine: Machine, *, ranks: int) -> int:
    """The newest checkpoint is that of the last step, and continues where that step's rows end."""
    at = machine.events("base_train", "step")[-1]["step"]
    assert at < STEPS
    saved = machine.checkpoint("base_train", at)
    assert saved["manifest"]["world_size"] == ranks
    assert saved["state"]["position"] == positions(machine, at)[-1]
    return at


def positions(machine: Machine, steps: int) -> list[dict]:
    """Where the data of each step ends, when nothing interrupts: from the loader alone."""
    (folder,) = machine.home.dataset("generated").glob("tokens-*")
    preset = shape.preset("smoke")
    batches = Batches(
        folder, split="train", seq_len=preset.shape.seq_len, rows_per_step=preset.rows_per_step(), seed=42
    )
    return [next(batches).position for _ in range(steps)]


def check_same_run(machine: Machine, whole: Machine) -> None:
    """Each step was taken once, on the same rows, with the same loss up to the order of sums."""
    losses = [(event["step"], event["loss"]) for event in machine.events("base_train", "step")]
    alone = [(event["step"], event["loss"]) for event in whole.events("base_train", "step")]
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in alone], abs=TOLERANCE)
    ends = [m.checkpoint("base_train", STEPS)["state"] for m in (machine, whole)]
    assert ends[0]["position"] == ends[1]["position"] == positions(machine, STEPS)[-1]
    assert ends[0]["tokens"] == ends[1]["tokens"]
    bpb = [m.record("base_train")["metrics"]["val_bpb"] for m in (machine, whole)]
    assert bpb[0] == pytest.approx(bpb[1], abs=TOLERANCE)


def test_midtraining_and_fine_tuning_continue_from_the_stage_before(whole, tmp_path):
    machine = whole.copy(tmp_path / "home")
    machine.done("mid_train", steps=CHAT_STEPS)
    machine.done("chat_sft", steps=CHAT_STEPS)
    for stage in ("mid_train", "chat_sft"):
        first, *_, last = machine.events(stage, "step")
        assert last["loss"] < first["loss"]
        assert machine.record(stage)["metrics"]["val_loss"] > 0
        assert machine.events(stage, "sample")
        assert machine.weights(stage, CHAT_STEPS)
    assert machine.record("chat_sft")["inputs"].keys() == {"data", "mid_train"}
    model, optim, state = "model.safetensors", "optim-rank00000-of-00001.safetensors", "state.json"
    folder = machine.home.stage(RUN, "chat_sft") / "checkpoints" / f"step-{CHAT_STEPS:08d}"
    assert {path.name for path in folder.iterdir()} == {model, optim, state, "manifest.json"}


def test_fine_tuning_starts_from_the_base_model_where_midtraining_never_ran(whole, tmp_path):
    machine = whole.copy(tmp_path / "home")
    machine.done("chat_sft", steps=CHAT_STEPS)
    assert machine.record("chat_sft")["inputs"].keys() == {"data", "base_train"}


WORTH_COMPILING = """
import importlib.util
from nanochat.train import runtime

runtime.COMPILE_FROM_CPU_FLOPS = 0.0  # a model of a few seconds counts as one of an hour
spec = importlib.util.spec_from_file_location("product", {source!r})
product = importlib.util.module_from_spec(spec)
spec.loader.exec_module(product)
run = product.run
"""


def test_without_a_compiler_training_says_so_once_and_goes_on_eager(tokenized, tmp_path):
    source = ROOT / "nanochat" / "train" / "stages" / "base_train.py"
    fake = FakeHome(tmp_path, base_train=WORTH_COMPILING.format(source=str(source)))
    shutil.copytree(tokenized.home.root, fake.home.root)
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    git = shutil.which("git")
    if git is not None:  # the record names the code's revision
        (bin_dir / "git").symlink_to(git)
    config = fake.config("base_train", run=RUN, steps=3)
    code, _, err = end(fake.launch(config, env={"PATH": str(bin_dir)}), 150)
    assert code == 0, err
    warnings = [line for line in err.splitlines() if "warning" in line.lower()]
    assert len(warnings) == 1, err
    assert warnings[0].startswith("warning: training runs eager")
    assert "no C++ compiler on PATH: install " in warnings[0]
    assert [event["step"] for event in read_events(config.parent / "events.jsonl", "step")] == [1, 2, 3]
    assert not list(fake.home.cache.glob("inductor/**/*.cpp")), "nothing was compiled"


def flip_a_token(machine: Machine) -> str:
    path = next(machine.home.dataset("generated").glob("tokens-*/shard_00000.u16"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    return path.name


@pytest.mark.parametrize(
    ("prepare", "settings", "code", "said"),
    [
        (flip_a_token, {}, 65, "shard_00000.u16"),
        (None, {"steps": 1_000_000}, 64, "--allow-epochs"),
        (None, {"device_batch_size": 3}, 64, "use --device-batch-size 2 or 4"),
    ],
    ids=["damaged tokens", "too little data", "device batch"],
)
def test_what_cannot_work_is_refused_before_training(tokenized, tmp_path, prepare, settings, code, said):
    machine = tokenized.copy(tmp_path / "home")
    if prepare:
        prepare(machine)
    found, stderr = machine.run("base_train", **settings)
    assert found == code, stderr
    assert said in stderr
    assert not machine.events("base_train", "step")

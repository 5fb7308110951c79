"""`nanochat speedrun` and `run` as processes, on stages made for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes_run import ROOT, FakeHome, end, wait_for_line

from nanochat.files import read_json
from nanochat.run.events import read_events
from nanochat.run.stage import STAGES

STEPS = """
def run(context):
    context.raise_if_stopped()
    for step in range(1, 3001):
        context.emit("step", step=step, steps=3000, unit="step")
        context.raise_if_stopped(f"step {step} is saved")
        time.sleep(0.02)
"""

TERMINAL = """
def chat(home, *, run, prompt, **options):
    print(f"I am {run}. You asked: {prompt}")
"""

NAMES = [stage.name for stage in STAGES]


@pytest.fixture
def fake(tmp_path):
    fake = FakeHome(tmp_path)
    fake.module("nanochat.serve.terminal", TERMINAL)
    return fake


@pytest.mark.timeout(120)
def test_a_speedrun_runs_all_stages_once_and_ends_with_answer_and_next_commands(fake):
    code, out, err = fake.cli("speedrun", "--preset", "smoke")
    assert code == 0, err
    assert "I am smoke. You asked: Who are you?" in out
    assert " chat --run smoke" in out
    assert " serve --run smoke" in out
    assert "report.html" in out
    assert [name for name in NAMES if (fake.home.stage("smoke", name) / "record.json").exists()] == NAMES
    assert read_json(fake.home.run("smoke") / "spec.json")["preset"] == "smoke"

    code, out, err = fake.cli("speedrun", "--preset", "smoke", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [stage["stage"] for stage in result["stages"]] == NAMES
    assert {stage["status"] for stage in result["stages"]} == {"skipped"}
    assert result["answer"] == "I am smoke. You asked: Who are you?"


def test_a_failing_stage_ends_the_run_with_its_code_and_the_next_time_it_goes_on_there(fake):
    fake.stage("tok_train", 'def run(context):\n    raise DataError("shard_00001 is damaged")\n')
    code, out, err = fake.cli("speedrun", "--preset", "smoke", "--until", "tok_eval", "--json")
    assert code == 65
    assert "error: shard_00001 is damaged" in err
    assert [(s["stage"], s["status"]) for s in json.loads(out)["stages"]] == [
        ("data", "done"),
        ("tok_train", "failed"),
    ]
    fake.stage("tok_train", "def run(context):\n    return StageResult()\n")
    code, out, _ = fake.cli("speedrun", "--preset", "smoke", "--until", "tok_eval", "--json")
    assert code == 0
    assert [s["status"] for s in json.loads(out)["stages"]] == ["skipped", "done", "done"]


def test_another_option_is_refused_before_anything_is_written(fake):
    assert fake.cli("speedrun", "--preset", "smoke", "--until", "data")[0] == 0
    before = (fake.home.run("smoke") / "spec.json").read_bytes()
    code, _, err = fake.cli("speedrun", "--preset", "smoke", "--source", "packages/cpu")
    assert code == 66
    assert '`source` was "generated", now "packages/cpu"' in err
    assert (fake.home.run("smoke") / "spec.json").read_bytes() == before


def test_a_second_speedrun_of_a_run_is_refused_and_changes_nothing(fake):
    fake.stage("data", STEPS)
    first = fake.start("nanochat_platform.cli", "speedrun", "--preset", "smoke")
    wait_for_line(first, "step=1/")
    before = (fake.home.run("smoke") / "spec.json").read_bytes()
    code, _, err = fake.cli("speedrun", "--preset", "smoke", "--seed", "7")
    assert code == 66
    assert "in use by process" in err
    assert (fake.home.run("smoke") / "spec.json").read_bytes() == before
    first.send_signal(signal.SIGTERM)
    assert end(first)[0] == 143


def test_ctrl_c_reaches_the_stage_exactly_once_although_a_terminal_signals_the_whole_group(fake):
    fake.stage("data", STEPS)
    process = fake.start("nanochat_platform.cli", "run", "data", "--run", "r", start_new_session=True)
    wait_for_line(process, "step=1/")
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = end(process)
    assert code == 130, err
    assert "is saved" in err
    assert err.count("error:") == 1
    assert "Traceback" not in err


def test_a_stage_whose_rank_was_killed_is_started_again(fake):
    fake.stage(
        "data",
        """
def run(context):
    mark = context.dir / "first"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return StageResult()
""",
    )
    code, _, err = fake.cli("run", "data", "--run", "r", "--preset", "smoke")
    assert code == 0, err
    assert "died by SIGKILL" in err
    assert "restart 1 of 2" in err
    events = fake.home.stage("r", "data") / "events.jsonl"
    assert [e["status"] for e in read_events(events, "stage")] == ["start", "failed", "resume", "done"]


def test_a_crash_loop_ends(fake):
    fake.stage("data", "def run(context):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    code, _, err = fake.cli("run", "data", "--run", "r", "--preset", "smoke")
    assert code == 137
    assert err.count("error:") == 3


def test_a_stage_that_gets_further_each_time_is_not_given_up(fake):
    fake.stage(
        "data",
        """
def run(context):
    folder = context.dir / "checkpoints"
    step = len(list(folder.glob("*"))) + 1
    if step > 4:
        return StageResult()
    (folder / f"step-{step:08d}").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    code, _, err = fake.cli("run", "data", "--run", "r", "--preset", "smoke")
    assert code == 0, err
    assert err.count("restart 1 of 2") == 4


def test_run_takes_the_settings_of_the_run_it_continues(fake):
    assert fake.cli("run", "data", "--run", "r", "--preset", "smoke", "--seed", "7")[0] == 0
    assert fake.cli("run", "tok_train", "--run", "r")[0] == 0
    config = read_json(fake.home.stage("r", "tok_train") / "config.json")
    assert (config["spec"]["preset"], config["spec"]["seed"]) == ("smoke", 7)


def test_a_stage_without_its_inputs_says_which_command_makes_them(fake):
    code, _, err = fake.cli("run", "base_train", "--run", "r", "--preset", "smoke")
    assert code == 64
    assert "nanochat run tok_train --run r" in err


def test_help_imports_neither_torch_nor_pydantic_nor_rich():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nanochat_platform.cli", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "pydantic", "rich", "numpy", "httpx", "fastapi", "pyarrow"}


def test_a_command_line_that_dies_leaves_nothing_running(fake):
    fake.stage("data", STEPS)
    process = fake.start("nanochat_platform.cli", "run", "data", "--run", "r", "--preset", "smoke")
    wait_for_line(process, "step=1/")
    process.kill()
    end(process)  # returns only when every holder of its stderr is gone
    deadline = time.monotonic() + 5
    fake.stage("data", "def run(context):\n    return StageResult()\n")
    assert fake.cli("run", "data", "--run", "r")[0] == 0
    assert time.monotonic() < deadline
    assert Path(fake.home.stage("r", "data") / "record.json").exists()

"""`nanochat pipeline run --local` as processes: the compiled file, its steps, and the records they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_run import ROOT, FakeHome, end, wait_for_line

from nanochat.run.record import Record
from nanochat.run.stage import STAGES

FILE = ROOT / "manifests" / "pipelines" / "speedrun.yaml"
NAMES = [stage.name for stage in STAGES]
REPORT = """
def run(context):
    outputs = [context.dir / "report.md", context.dir / "report.html"]
    for path in outputs:
        path.write_text(path.suffix + " of " + ",".join(sorted(context.inputs)))
    return StageResult(outputs, {"scores": [{"name": "arc_easy", "value": 0.5, "unit": "accuracy"}]})
"""
STEPS = """
def run(context):
    context.raise_if_stopped()
    for step in range(1, 3001):
        context.emit("step", step=step, steps=3000, unit="step")
        context.raise_if_stopped(f"step {step} is saved")
        time.sleep(0.02)
"""
TERMINAL = "def chat(home, *, run, prompt, **options):\n    print(run)\n"
REAL = ("data", "tok_train", "tokenize", "base_train")


def fakes(folder: Path, **options) -> FakeHome:
    fake = FakeHome(folder, report=REPORT, **options)
    fake.module("nanochat.serve.terminal", TERMINAL)
    return fake


@pytest.fixture
def fake(tmp_path):
    return fakes(tmp_path)


def pipeline(fake: FakeHome, *arguments: str, **options):
    return fake.cli("pipeline", "run", "--local", "-f", str(FILE), *arguments, **options)


def hashes(fake: FakeHome, run: str = "smoke") -> dict[str, str]:
    found = {name: Record.load(fake.home.stage(run, name)) for name in NAMES}
    return {name: record.hash for name, record in found.items() if record is not None}


@pytest.mark.timeout(240)
def test_its_records_equal_those_of_a_speedrun(tmp_path):
    """Data, tokenizer, tokens and weights are the real ones; the other stages write what they read."""
    arguments = {"preset": "smoke", "steps": "2", "max-problems": "2"}
    one, two = (fakes(tmp_path / name, real=REAL) for name in ("speedrun", "pipeline"))
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    code, _, err = end(one.start("nanochat_platform.cli", "speedrun", "--deterministic", *flags), 110)
    assert code == 0, err
    given = [f"{name.replace('-', '_')}={value}" for name, value in arguments.items()]
    code, out, err = end(
        two.start(
            "nanochat_platform.cli",
            *("pipeline", "run", "--local", "-f", str(FILE), "--json", "deterministic=true"),
            *given,
        ),
        110,
    )
    assert code == 0, err
    assert list(hashes(two)) == NAMES
    assert hashes(two) == hashes(one)
    steps = {step["step"]: step for step in json.loads(out)["steps"]}
    metadata = steps["base-train"]["artifacts"]["metrics"]["metadata"]
    assert metadata["steps"] == 2
    assert metadata["loss"] > 0
    card = json.loads(Path(steps["base-train"]["artifacts"]["model"]["uri"]).read_text())
    assert any(name.endswith("model.safetensors") for name in card["files"])
    for name, file in card["files"].items():
        assert (two.home.root / name).stat().st_size == file["bytes"]


@pytest.mark.timeout(120)
def test_steps_leave_artifacts_and_the_second_time_take_no_work(fake):
    code, out, err = pipeline(fake, "preset=smoke", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [step["state"] for step in result["steps"]] == ["SUCCEEDED"] * len(NAMES)
    report = result["steps"][-1]["artifacts"]
    assert Path(report["report"]["uri"]).read_text().startswith(".md of base_eval,")
    assert Path(report["page"]["uri"]).read_text().startswith(".html of ")
    assert report["metrics"]["metadata"]["arc_easy"] == 0.5
    first = hashes(fake)

    code, out, err = pipeline(fake, "preset=smoke", "--json")
    assert code == 0, err
    assert err.count("is finished") == len(NAMES)
    assert hashes(fake) == first


def test_a_failing_stage_ends_the_pipeline_with_its_exit_code(fake):
    fake.stage("tok_train", 'def run(context):\n    raise DataError("shard_00001 is damaged")\n')
    code, out, err = pipeline(fake, "preset=smoke", "--json")
    assert code == 65
    assert "error: shard_00001 is damaged" in err
    assert [(s["step"], s["state"]) for s in json.loads(out)["steps"]] == [
        ("data", "SUCCEEDED"),
        ("tok-train", "FAILED"),
    ]


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_reaches_the_stage_once_and_ends_everything(fake, signum, expected):
    fake.stage("data", STEPS)
    process = fake.start(
        "nanochat_platform.cli",
        *("pipeline", "run", "--local", "-f", str(FILE), "preset=smoke"),
        start_new_session=True,
    )
    wait_for_line(process, "step=1/")
    os.killpg(process.pid, signum)  # as a terminal does: the whole foreground group
    code, _, err = end(process)
    assert code == expected, err
    assert "is saved" in err
    assert err.count("error:") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["preset=smoke"], "needs --local"),
        (["--local", "-f", "none.yaml"], "`none.yaml` does not exist"),
        (["--local", "-f", str(FILE), "pre=smoke"], "did you mean `preset`?"),
        (["--local", "-f", str(FILE), "preset=smok"], "did you mean `smoke`?"),
        (["--local", "-f", str(FILE), "preset=smoke", "nodes=0"], "`nodes` is 0"),
    ],
)
def test_a_usage_error_is_64_and_names_the_fix(fake, arguments, words):
    code, _, err = fake.cli("pipeline", "run", *arguments)
    assert code == 64, err
    assert words in err
    assert "Traceback" not in err


def test_without_the_sdk_compiling_says_how_to_get_it(fake, tmp_path):
    fake.module("kfp", "raise ImportError('no kfp')")
    code, _, err = fake.cli("pipeline", "compile", "-o", str(tmp_path / "x.yaml"))
    assert code == 69
    assert "nanochat-platform[pipeline]" in err


def test_the_compile_command_writes_the_checked_in_file(tmp_path):
    command = [sys.executable, "-m", "nanochat_platform.cli", "pipeline", "compile", "-o", "x.yaml"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
        "PYTHONHASHSEED": "1",
    }
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.yaml").read_bytes() == FILE.read_bytes()
    assert "kfp run create" in done.stderr

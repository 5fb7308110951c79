"""Real pods train: every stage of the smoke run, two nodes, a killed worker, three kinds of job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nanochat.run.stage import STAGES
from tests.cluster.harness.figures import figure
from tests.cluster.harness.host import rung, say
from tests.cluster.speedrun import TWO_NODES, Place, Speedrun, spec

pytestmark = pytest.mark.cluster


def test_a_stage_runs_as_a_plain_job_without_any_operator(training: Place) -> None:
    with rung("plain indexed Job"):
        result = training.submit("--kind", "job", "--run", "plain", "--stage", "data")
    assert [stage["status"] for stage in result["stages"]] == ["done"]
    assert result["stages"][0]["record"] == training.record("plain", "data").hash
    job = training.cluster.get("job", "plain-data-1", "-n", training.namespace)
    assert job["status"]["succeeded"] == 1


def test_every_stage_of_the_smoke_run_runs_as_a_pytorchjob(
    speedrun: Speedrun,
) -> None:
    place, stages = speedrun.place, speedrun.stages
    assert list(stages) == [stage.name for stage in STAGES]
    assert stages["base_train"]["attempt"] == 2
    assert len(place.events("smoke", "base_train", "restart")) == 1
    for name, stage in stages.items():
        record = place.record("smoke", name)
        assert (stage["status"], stage["record"]) == ("done", record.hash)
        assert name == "base_train" or stage["attempt"] == 1
        say(f"stage {name}: {stage['wall_s']:.1f} s, of it {stage['work_s']:.1f} s of work")
        if name != "base_train":  # its worker was killed
            figure("platform overhead of a stage", stage["wall_s"] - stage["work_s"])
    steps = [event["step"] for event in place.events("smoke", "base_train", "step")]
    assert max(steps) == 120
    assert (place.home.run("smoke") / "report" / "report.html").exists()
    assert list(place.home.models("smoke").glob("chat_sft-*/model.safetensors"))
    assert (
        place.cluster.items("pods", "-n", place.namespace, "--field-selector", "status.phase=Running") == []
    )


def test_submitted_again_every_stage_is_kept(speedrun: Speedrun) -> None:
    result = speedrun.place.submit(*TWO_NODES)
    assert {stage["status"] for stage in result["stages"]} == {"kept"}


def test_a_stage_runs_as_a_trainjob(training: Place, trainer: None) -> None:
    with rung("TrainJob"):
        result = training.submit("--kind", "trainjob", "--run", "trainjob", "--stage", "data")
    assert result["stages"][0]["record"] == training.record("trainjob", "data").hash


def test_two_nodes_of_a_plain_job_find_each_other(training: Place, tmp_path: Path) -> None:
    stages = ["data", "tok_train", "tokenize", "base_train"]
    fields = {"kind": "job", "nodes": 2, "run": "pair", "stages": stages}
    overrides = {"device_batch_size": 4, "steps": 12}
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(spec(training.namespace, training.image, overrides=overrides, **fields)))
    with rung("indexed Job of two nodes"):
        result = json.loads(training.run("submit", "--spec", str(path), "--json"))
    assert [stage["stage"] for stage in result["stages"]] == stages
    assert [event["step"] for event in training.events("pair", "base_train", "step")][-1] == 12

"""`nanochat plan --spec`: what a run will create in a cluster, before anything is sent."""

from __future__ import annotations

import json

import pytest
from nanochat_platform.cli.app import run

SPEC = """
preset: speedrun
image: example.org/train:1
namespace: team
hardware: 8xh100
nodes: 2
"""


def test_a_clusters_plan_lists_objects_and_the_quota_of_the_widest_moment(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(SPEC)
    assert run(["plan", "--spec", str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [o["name"] for o in plan["objects"]][:2] == ["speedrun-data-1", "speedrun-tok-train-1"]
    assert (plan["ranks"], plan["quota"]["nvidia.com/gpu"], plan["quota"]["pods"]) == (16, "16", "2")


def test_options_go_over_the_spec(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(SPEC)
    assert run(["plan", "--spec", str(path), "--run", "mine", "--depth", "12", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["run"], plan["depth"]) == ("mine", 12)


def test_the_hardware_of_an_option_goes_over_the_specs(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(SPEC.replace("8xh100", "cpu"))
    assert run(["plan", "--spec", str(path), "--hardware", "8xh100", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["ranks"], plan["quota"]["nvidia.com/gpu"]) == (16, "16")
    assert run(["plan", "--spec", str(path), "--hardware", "4xh100"]) == 64
    assert "hint: `hardware: 8xh100` with `gpus: 4`" in capsys.readouterr().err


def test_the_lease_of_a_pipelines_run_is_counted_on_demand(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(SPEC)
    assert run(["plan", "--spec", str(path), "--lease", "--json"]) == 0
    objects = json.loads(capsys.readouterr().out)["objects"]
    assert [o["kind"] for o in objects[:2]] == ["Lease", "PyTorchJob"]
    assert run(["plan", "--lease"]) == 64
    assert "hint: name the run's --spec FILE" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "submit", "doctor"])
def test_a_spec_without_its_option_is_told_of_it(command, capsys):
    assert run([command, "run.yaml"]) == 64
    assert "hint: did you mean `--spec run.yaml`?" in capsys.readouterr().err
    assert run([command, "other"]) == 64
    assert f"hint: see `nanochat {command} --help`" in capsys.readouterr().err


def test_a_misspelt_field_of_a_spec_is_named(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(SPEC + "priority_clas: high\n")
    assert run(["plan", "--spec", str(path)]) == 64
    assert "did you mean `priority_class`?" in capsys.readouterr().err

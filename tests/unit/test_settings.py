"""Folders and the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanochat import settings
from nanochat.errors import ConfigError
from nanochat.settings import Elastic, Home, Topology


def test_the_home_folder_is_the_variable_or_a_cache_folder():
    assert settings.home({"NANOCHAT_HOME": "/mnt/pvc"}).root == Path("/mnt/pvc")
    assert settings.home({}).root == Path.home() / ".cache" / "nanochat"
    assert settings.home({"NANOCHAT_HOME": "here"}).root.is_absolute()


def test_the_layout_is_the_contract():
    home = Home(Path("/h"))
    assert home.dataset("packages-cpu") == Path("/h/datasets/packages-cpu")
    assert home.stage("tiny", "base_train") == Path("/h/runs/tiny/base_train")
    assert home.models("tiny") == Path("/h/models/tiny")
    assert home.cache == Path("/h/cache")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "a b", "-a", "a-", "x" * 64, "a..b", "é"])
def test_names_that_are_no_folder_or_label_are_refused(name):
    with pytest.raises(ConfigError, match="not a valid name"):
        Home(Path("/h")).run(name)


def test_ranks_come_from_torchrun_or_are_one():
    assert settings.topology({}) == Topology(0, 0, 1)
    assert settings.topology({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}) == Topology(3, 1, 4)
    with pytest.raises(ConfigError, match="RANK is `three`"):
        settings.topology({"RANK": "three"})


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Elastic(local_ranks=2)),
        ({"PET_NPROC_PER_NODE": "8"}, Elastic(local_ranks=8)),
        ({"PET_NPROC_PER_NODE": "auto"}, Elastic(local_ranks=None)),
        ({"PET_NNODES": "1", "PET_RDZV_ENDPOINT": "m:1"}, Elastic(local_ranks=2)),
        (
            {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "1234"},
            Elastic(2, 1, 2, "m", 1234),
        ),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0", "MASTER_ADDR": "m"}, Elastic(2, 0, 2, "m", 29400)),
        ({"PET_NNODES": "1:4", "PET_NODE_RANK": "3", "PET_RDZV_ENDPOINT": "m:1"}, Elastic(4, 3, 2, "m", 1)),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_RDZV_ENDPOINT": "m"}, Elastic(2, 1, 2, "m", 29400)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Elastic(local_ranks=2)),
    ],
)
def test_pet_variables_of_an_operator_decide_over_nproc(env, expected):
    assert settings.elastic(2, env) == expected


TWO = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "m"}


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"PET_NNODES": "two"}, "PET_NNODES is `two`, not an integer"),
        ({"PET_NNODES": "0"}, "PET_NNODES is 0; it should be at least 1"),
        ({"PET_NPROC_PER_NODE": "0"}, "PET_NPROC_PER_NODE is 0"),
        (TWO | {"PET_NODE_RANK": "2"}, "PET_NODE_RANK is 2; it should be 0 to 1"),
        (TWO | {"PET_NODE_RANK": ""}, "PET_NODE_RANK is not set, but PET_NNODES is 2"),
        (TWO | {"PET_MASTER_ADDR": ""}, "PET_MASTER_ADDR is not set, but PET_NNODES is 2"),
        (TWO | {"PET_MASTER_PORT": "70000"}, "PET_MASTER_PORT is 70000; it should be 1 to 65535"),
    ],
)
def test_pet_variables_that_cannot_be_are_named(env, words):
    with pytest.raises(ConfigError, match=words):
        settings.elastic(1, env)


def test_a_user_without_a_home_folder_is_told_which_variable_to_set(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(ConfigError) as caught:
        settings.home({})
    assert caught.value.hint == "set NANOCHAT_HOME"
    assert settings.home({"NANOCHAT_HOME": "/data"}).root == Path("/data")


def test_a_pod_is_given_its_configuration_or_none():
    assert settings.stage_config({"NANOCHAT_CONFIG": "{}"}) == "{}"
    assert settings.stage_config({"NANOCHAT_CONFIG": ""}) is None
    assert settings.stage_config({}) is None


def test_variables_for_an_import_leave_no_trace_and_yield_to_the_user_s(monkeypatch):
    monkeypatch.setenv("USERS_OWN", "1")
    monkeypatch.delenv("OURS", raising=False)
    with settings.quiet_import(USERS_OWN="2", OURS="3"):
        assert (os.environ["USERS_OWN"], os.environ["OURS"]) == ("1", "3")
    assert os.environ["USERS_OWN"] == "1"
    assert "OURS" not in os.environ


def test_torchrun_is_noticed_by_its_run_id():
    assert settings.under_torchrun({"TORCHELASTIC_RUN_ID": "x"})
    assert not settings.under_torchrun({"PET_NNODES": "2"})


def test_the_termination_log_is_used_only_where_it_exists(tmp_path):
    assert settings.termination_log({"NANOCHAT_TERMINATION_LOG": str(tmp_path / "no")}) is None
    (tmp_path / "log").touch()
    assert settings.termination_log({"NANOCHAT_TERMINATION_LOG": str(tmp_path / "log")}) == tmp_path / "log"

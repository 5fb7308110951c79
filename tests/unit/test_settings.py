"""Folders and the environment."""

from __future__ import annotations

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
        (
            {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "1234"},
            Elastic(2, 1, 2, "static", "m:1234", "nanochat"),
        ),
        (
            {"PET_NNODES": "1:4", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "m:1", "PET_RDZV_ID": "j"},
            Elastic(4, 0, 2, "c10d", "m:1", "j"),
        ),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Elastic(local_ranks=2)),
    ],
)
def test_pet_variables_of_an_operator_decide_over_nproc(env, expected):
    assert settings.elastic(2, env) == expected


def test_a_pet_variable_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="PET_NNODES is `two`"):
        settings.elastic(1, {"PET_NNODES": "two"})


def test_torchrun_is_noticed_by_its_run_id():
    assert settings.under_torchrun({"TORCHELASTIC_RUN_ID": "x"})
    assert not settings.under_torchrun({"PET_NNODES": "2"})


def test_the_termination_log_is_used_only_where_it_exists(tmp_path):
    assert settings.termination_log({"NANOCHAT_TERMINATION_LOG": str(tmp_path / "no")}) is None
    (tmp_path / "log").touch()
    assert settings.termination_log({"NANOCHAT_TERMINATION_LOG": str(tmp_path / "log")}) == tmp_path / "log"

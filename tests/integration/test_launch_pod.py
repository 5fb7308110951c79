"""The launcher as a pod runs it: configuration from the environment, last words, a bare user."""

from __future__ import annotations

import json

import pytest
from fakes_run import FakeHome, end

from nanochat.files import read_json
from nanochat.run.reason import parse_last_words
from nanochat.run.record import Record
from nanochat.run.setup import load_config


def test_last_words_name_the_record_or_that_there_was_nothing_to_do(tmp_path):
    fake = FakeHome(tmp_path)
    config = fake.config()
    assert end(fake.launch(config))[0] == 0
    record = Record.load(config.parent)
    said = parse_last_words(fake.reason.read_text())
    assert (said.stage, said.run, said.exit_code, said.status) == ("data", "r", 0, "done")
    assert (said.record, said.config, said.wall_s) == (record.hash, record.config_hash, record.wall_s)
    assert said.metrics == {"answer": 42}
    assert end(fake.launch(config))[0] == 0
    assert parse_last_words(fake.reason.read_text()) == said.model_copy(update={"status": "skip"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "no/runs/r/data/config.json"], "does not exist"),
        (["--config", "no/runs/r/data/config.json", "--grace-s", "soon"], "invalid float value: 'soon'"),
        ([], "the following arguments are required: --config"),
        (["--config", "c.json", "--hangs", "3"], "unrecognized arguments: --hangs 3"),
    ],
)
def test_a_command_line_that_cannot_be_is_64_in_one_sentence(tmp_path, arguments, words):
    fake = FakeHome(tmp_path)
    code, out, err = end(fake.start("nanochat.run.launch", *arguments))
    assert (code, out) == (64, "")
    assert "Traceback" not in err
    said = parse_last_words(fake.reason.read_text())
    assert (said.exit_code, said.status) == (64, "failed")
    assert words in said.message
    assert f"error: {said.message}" in err


@pytest.fixture
def pod(tmp_path):
    """A home without any file of the run, and the variable that a pod of stage `data` is given."""
    fake = FakeHome(tmp_path)
    config = fake.config(seed=7)
    given = config.read_text()
    config.unlink()
    config.parent.rmdir()
    return fake, config, given


def test_a_configuration_from_the_environment_is_written_where_the_file_belongs(pod):
    fake, config, given = pod
    code, _, err = end(fake.launch(config, env={"NANOCHAT_CONFIG": given}))
    assert code == 0, err
    assert read_json(config) == json.loads(given)
    assert read_json(config.parent.parent / "spec.json") == json.loads(given)["spec"]
    assert Record.load(config.parent).config_hash == load_config(config).hash
    assert end(fake.launch(config))[0] == 0, "and from now on the file is enough"


def test_a_configuration_from_the_environment_does_not_replace_another_one(pod):
    fake, config, given = pod
    assert end(fake.launch(config, env={"NANOCHAT_CONFIG": given}))[0] == 0
    before = config.read_bytes()
    changed = given.replace("generated", "packages/cpu")
    code, _, err = end(fake.launch(config, env={"NANOCHAT_CONFIG": changed}))
    assert code == 66
    assert '`source` was "generated", now "packages/cpu"' in err
    assert config.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda given: given[:-5], "NANOCHAT_CONFIG is not valid JSON"),
        (lambda given: "[]", "NANOCHAT_CONFIG is not a JSON object"),
        (lambda given: given.replace("seed", "sead"), "NANOCHAT_CONFIG: unknown field `spec.sead`"),
        (
            lambda given: given.replace('"data"', '"tok_train"'),
            "is stage `tok_train` of run `r`, but --config",
        ),
    ],
)
def test_a_configuration_from_the_environment_that_cannot_be_is_named(pod, change, words):
    fake, config, given = pod
    code, _, err = end(fake.launch(config, env={"NANOCHAT_CONFIG": change(given)}))
    assert code == 64
    assert words in err
    assert words in parse_last_words(fake.reason.read_text()).message
    assert not config.parent.exists()


def test_a_read_only_home_folder_and_a_user_without_a_name_are_enough(pod, tmp_path):
    fake, config, given = pod
    nowhere = {"NANOCHAT_CONFIG": given, "HOME": "/proc/nowhere", "USER": "", "LOGNAME": ""}
    code, _, err = end(fake.launch(config, env=nowhere))
    assert code == 0, err

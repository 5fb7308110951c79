"""Records: what makes a stage finished, the same, or different."""

from __future__ import annotations

import pytest

from nanochat.errors import ConfigError, DataError, RunLockedError
from nanochat.files import write_json
from nanochat.run.config import RunConfig, StageConfig, parse
from nanochat.run.events import EventLog
from nanochat.run.record import Record, code_revision, find_inputs, hash_outputs, missing_output
from nanochat.run.setup import judge, load_config, stage_folder
from nanochat.run.stage import stage
from nanochat.settings import Home


def config(name, **values):
    spec = RunConfig(**{"run": "r", "preset": "smoke", "source": "generated", **values})
    return StageConfig(stage=name, spec=spec)


def finish(home, asked, *, text="out", inputs=None):
    """Leave the record and one output of a stage."""
    folder = home.stage(asked.spec.run, asked.stage)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "out.txt").write_text(text)
    record = Record(
        stage=asked.stage,
        config=asked.spec.relevant(stage(asked.stage)),
        config_hash=asked.hash,
        inputs={name: found.hash for name, found in (inputs or {}).items()},
        outputs=hash_outputs([folder / "out.txt"], home),
    )
    record.save(folder)
    return record


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def verdict(home, asked):
    folder = home.stage(asked.spec.run, asked.stage)
    inputs = find_inputs(stage(asked.stage), home.run(asked.spec.run))
    return judge(stage(asked.stage), asked, folder, home, inputs)


def test_a_stage_without_a_record_runs(home):
    assert verdict(home, config("data")).action == "run"


def test_the_same_question_again_is_a_no_op(home):
    finish(home, config("data"))
    assert verdict(home, config("data")).action == "skip"


def test_a_setting_that_the_stage_does_not_use_keeps_its_record(home):
    finish(home, config("data"))
    assert verdict(home, config("data", seed=7, dtype="fp32")).action == "skip"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("data", {"source": "packages/cpu"}, '`source` was "generated", now "packages/cpu"'),
        ("tok_train", {"preset": "tiny"}, '`preset` was "smoke", now "tiny"'),
    ],
)
def test_another_question_is_refused_and_the_field_is_named(home, name, change, words):
    inputs = {}
    if name != "data":
        inputs = {"data": finish(home, config("data"))}
    finish(home, config(name), inputs=inputs)
    with pytest.raises(RunLockedError) as caught:
        verdict(home, config(name, **change))
    assert words in caught.value.message
    assert "--run" in (caught.value.hint or "")


@pytest.mark.parametrize("damage", ["missing", "longer"])
def test_a_damaged_output_is_made_again_with_a_notice(home, damage):
    finish(home, config("data"))
    path = home.stage("r", "data") / "out.txt"
    path.unlink() if damage == "missing" else path.write_text("longer than it was")
    found = verdict(home, config("data"))
    assert found.action == "run"
    assert "out.txt" in (found.notice or "")


def test_training_on_a_changed_input_is_refused_and_evaluation_is_made_again(home):
    data = finish(home, config("data"))
    tok = finish(home, config("tok_train"), inputs={"data": data})
    tokenize = finish(home, config("tokenize"), inputs={"data": data, "tok_train": tok})
    base = finish(home, config("base_train"), inputs={"tok_train": tok, "tokenize": tokenize})
    finish(home, config("base_eval"), inputs={"data": data, "base_train": base})
    assert verdict(home, config("base_eval")).action == "skip"

    finish(home, config("data"), text="other text")
    with pytest.raises(RunLockedError, match="input `data` changed"):
        verdict(home, config("tok_train"))
    again = verdict(home, config("base_eval"))
    assert again.action == "run"
    assert "`data` changed" in (again.notice or "")


def test_checkpoints_of_other_settings_are_not_continued(home):
    for name in ("data", "tok_train", "tokenize"):
        finish(home, config(name))
    folder = home.stage("r", "base_train")
    asked = config("base_train")
    with EventLog(folder / "events.jsonl") as log:
        log.emit("run", settings=asked.spec.relevant(stage("base_train")))
    assert verdict(home, config("base_train", seed=7)).action == "run"
    (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert verdict(home, asked).action == "run"
    with pytest.raises(RunLockedError, match="`seed` was 42, now 7"):
        verdict(home, config("base_train", seed=7))


def test_a_missing_input_names_the_command_that_makes_it(home):
    with pytest.raises(ConfigError, match="reads `data`") as caught:
        find_inputs(stage("tok_train"), home.run("r"))
    assert "nanochat run data --run r" in (caught.value.hint or "")


def test_of_alternatives_the_first_that_exists_is_read_and_optional_ones_may_be_missing(home):
    finish(home, config("data"))
    finish(home, config("base_train"))
    assert sorted(find_inputs(stage("chat_sft"), home.run("r"))) == ["base_train", "data"]
    finish(home, config("mid_train"))
    assert sorted(find_inputs(stage("chat_sft"), home.run("r"))) == ["data", "mid_train"]
    finish(home, config("tok_train"))
    finish(home, config("tokenize"))
    found = find_inputs(stage("report"), home.run("r"))
    assert "mid_train" in found
    assert "chat_eval" not in found


def test_the_hash_of_a_record_ignores_time_and_machine(home):
    record = finish(home, config("data"))
    other = record.model_copy(update={"wall_s": 99.0, "hardware": {"cores": 64}, "metrics": {"x": 1}})
    assert other.hash == record.hash
    assert finish(home, config("data"), text="x").hash != record.hash


def test_outputs_are_files_below_home_and_folders_count_as_their_files(home):
    folder = home.root / "models" / "m"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "deep" / "b").write_text("bb")
    outputs = hash_outputs([folder], home)
    assert {name: output.bytes for name, output in outputs.items()} == {"models/m/a": 1, "models/m/deep/b": 2}
    with pytest.raises(DataError, match="none"):
        hash_outputs([folder / "none"], home)


def test_an_output_is_found_by_its_name(home):
    record = finish(home, config("data"))
    assert record.output(home, "out.txt") == home.stage("r", "data") / "out.txt"
    assert missing_output(record, home) is None
    with pytest.raises(DataError, match=r"lists no `x\.txt`"):
        record.output(home, "x.txt")


def test_a_damaged_record_is_named(home):
    folder = home.stage("r", "data")
    write_json(folder / "record.json", {"stage": "data", "wall": 1})
    with pytest.raises(DataError, match=r"record\.json"):
        Record.load(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"presett": "smoke"}, "unknown field `presett`"),
        ({"depth": 0}, "`depth` is 0"),
        ({"dtype": "int4"}, "`dtype` is 'int4'"),
        ({"seed": -1}, "`seed` is -1"),
        ({"checkpoint_minutes": 0}, "`checkpoint_minutes` is 0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(values, words):
    with pytest.raises(ConfigError) as caught:
        parse(RunConfig, {"run": "r", "preset": "smoke", "source": "generated", **values}, what="spec")
    assert words in caught.value.message


def test_an_unknown_field_offers_the_nearest():
    with pytest.raises(ConfigError) as caught:
        parse(RunConfig, {"run": "r", "preset": "smoke", "source": "x", "max_problem": 1}, what="spec")
    assert caught.value.hint == "did you mean `max_problems`?"


def test_a_config_file_that_is_missing_or_no_object_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        load_config(tmp_path / "config.json")


def test_a_config_in_a_home_uses_that_home_and_elsewhere_the_environment_s(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "env"))
    inside = tmp_path / "pvc" / "runs" / "r" / "data" / "config.json"
    assert stage_folder(inside, config("data"))[0].root == tmp_path / "pvc"
    assert (
        stage_folder(tmp_path / "config.json", config("data"))[1] == tmp_path / "env" / "runs" / "r" / "data"
    )


def test_the_revision_of_a_clone_is_its_commit_and_elsewhere_a_version(tmp_path):
    assert len(code_revision().split("-")[0]) >= 12 or code_revision() == "unknown"
    assert code_revision(tmp_path)

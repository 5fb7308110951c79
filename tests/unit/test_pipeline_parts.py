"""Reading a compiled pipeline, its parameters, and what a step makes of a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from nanochat_platform.pipeline import kill, outputs, step
from nanochat_platform.pipeline.ir import Pipeline, resolve
from nanochat_platform.pipeline.parameters import Parameters

from nanochat.errors import ConfigError, DataError, Interrupted
from nanochat.files import write_json
from nanochat.run.record import Output, Record
from nanochat.settings import Home

GOLDEN = Path(__file__).parents[2] / "manifests" / "pipelines" / "speedrun.yaml"


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load(GOLDEN)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def changed(tmp_path, change):
    """Return the path of the compiled file after `change(spec, platform)`."""
    documents = list(yaml.safe_load_all(GOLDEN.read_text()))
    change(*documents)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def test_arguments_are_json_where_that_is_meant(pipeline):
    values = pipeline.arguments(
        ["preset=tiny", "depth=4", "deterministic=True", "checkpoint_minutes=1", "run=7", 'env={"A": "b"}']
    )
    assert (values["preset"], values["depth"], values["deterministic"]) == ("tiny", 4, True)
    assert (values["checkpoint_minutes"], values["run"], values["env"]) == (1.0, "7", {"A": "b"})
    assert values["seed"] == 42
    assert isinstance(values["seed"], int)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("dept=3", ("no parameter `dept`", "did you mean `depth`?")),
        ("depth=three", ("`depth` is 'three'", "a whole number")),
        ("depth=2.5", ("`depth` is 2.5", "a whole number")),
        ("depth=true", ("`depth` is True", "a whole number")),
        ("deterministic=1", ("`deterministic` is 1", "true or false")),
        ("env=[]", ("`env` is []", "a JSON object")),
        ("depth", ("`depth` is no parameter", "NAME=VALUE")),
    ],
)
def test_a_wrong_argument_names_itself_and_the_fix(pipeline, argument, words):
    with pytest.raises(ConfigError) as caught:
        pipeline.arguments([argument])
    assert all(word in caught.value.render() for word in words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, _: s["root"]["dag"]["tasks"]["data"].update(triggerPolicy={}), "`triggerPolicy`"),
        (lambda s, _: s["root"]["dag"]["tasks"]["data"].update(dependentTasks=["report"]), "depends on"),
        (lambda s, _: s["components"]["comp-data"].pop("executorLabel"), "not a container"),
        (lambda s, _: s.pop("deploymentSpec"), "'deploymentSpec'"),
        (lambda s, _: s["root"]["inputDefinitions"]["parameters"]["run"].pop("defaultValue"), "needs"),
    ],
)
def test_what_has_no_meaning_here_is_refused(tmp_path, change, words):
    with pytest.raises(ConfigError) as caught:
        Pipeline.load(changed(tmp_path, change)).values({})
    assert words in caught.value.render()


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "root: {}"])
def test_another_file_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        Pipeline.load(path)
    with pytest.raises(ConfigError, match="does not exist"):
        Pipeline.load(tmp_path / "none.yaml")


def test_a_step_is_started_with_all_that_it_takes(pipeline):
    train = next(step for step in pipeline.steps if step.name == "base-train")
    values = pipeline.values({"preset": "smoke", "depth": 3})
    produced = {key: {"name": key[1], "uri": f"minio://b/{key[0]}"} for key in train.artifacts.values()}
    given = train.executor_input(
        values, produced, uri=lambda task, name: f"minio://b/{task}/{name}", output_file="/o.json"
    )
    argv = train.argv(given)
    assert argv[:5] == ["python", "-m", "nanochat_platform.pipeline.step", "--stage", "base_train"]
    assert json.loads(argv[-1]) == given
    assert given["inputs"]["parameterValues"] == values
    assert given["inputs"]["artifacts"]["tokenize"]["artifacts"] == [
        {"name": "tokens", "uri": "minio://b/tokenize"}
    ]
    assert given["outputs"]["artifacts"]["model"]["artifacts"][0]["uri"] == "minio://b/base-train/model"
    assert resolve(train.image, given) == values["submit_image"]


def test_a_placeholder_that_is_not_known_is_refused():
    given = {"inputs": {"parameterValues": {"a": 1}}}
    assert resolve("x-{{$.inputs.parameters['a']}}", given) == "x-1"
    with pytest.raises(ConfigError, match="placeholder"):
        resolve("{{$.outputs.parameters['b'].output_file}}", given)


@pytest.mark.parametrize(
    ("given", "spec", "flags"),
    [
        ({}, {"preset": "speedrun", "run": "speedrun", "hardware": "8xh100"}, "--run speedrun"),
        ({"preset": "tiny", "run": "mine"}, {"run": "mine", "hardware": "cpu"}, "--run mine --preset tiny"),
        ({"preset": "tiny", "hardware": "1xh100"}, {"hardware": "1xh100"}, ""),
        ({"namespace": "train"}, {"namespace": "train"}, ""),
        (
            {"cpu": "4", "rdma": "none", "queue": "q"},
            {"resources": {"cpu": "4", "rdma": "none"}, "queue": "q"},
            "",
        ),
        ({"deterministic": True, "allow_epochs": True}, {}, "--deterministic --allow-epochs"),
        ({"nproc": 2, "source": "generated"}, {"nproc": 2, "source": "generated"}, "--nproc 2"),
    ],
)
def test_parameters_become_a_spec_and_flags(given, spec, flags):
    parameters = Parameters.of(given)
    found = parameters.run_spec("here")
    assert {name: found[name] for name in spec} == spec
    assert set(flags.split()) <= set(parameters.flags())


def test_what_is_not_given_is_neither_in_the_spec_nor_in_the_flags():
    found = Parameters.of({}).run_spec("here")
    assert found["namespace"] == "here"
    assert not {"gpus", "nproc", "queue", "source", "budget_usd", "resources"} & set(found)
    assert not {"depth", "steps", "max_problems"} & set(found["overrides"])
    assert not {"--depth", "--source", "--nproc", "--identity"} & set(Parameters.of({}).flags())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"inputs": 1}'])
def test_an_input_that_is_none_is_a_usage_error(text):
    with pytest.raises(ConfigError, match="not the ExecutorInput"):
        step.read_input(text)


def test_numbers_of_the_backend_are_floats_and_still_count():
    text = json.dumps({"inputs": {"parameterValues": {"depth": 4.0, "preset": "tiny"}}})
    _, parameters = step.read_input(text)
    assert parameters.depth == 4
    assert isinstance(parameters.depth, int)


def test_a_misspelt_parameter_leaves_its_cause_where_kubernetes_looks(tmp_path, monkeypatch, capsys):
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setenv("NANOCHAT_TERMINATION_LOG", str(log))
    text = json.dumps({"inputs": {"parameterValues": {"dept": 4}}})
    assert step.main(["--stage", "data", "--executor-input", text]) == 64
    words = json.loads(log.read_text())
    assert words["status"] == "failed"
    assert words["exit_code"] == 64
    assert "`dept`" in words["message"]
    assert words["hint"] == "did you mean `depth`?"
    assert "did you mean `depth`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("minio://mlpipeline/v2/x", "/minio/mlpipeline/v2/x"),
        ("s3://b/x", "/s3/b/x"),
        ("gs://b/x", "/gcs/b/x"),
        ("/place/x", "/place/x"),
    ],
)
def test_a_uri_is_the_folder_that_the_backend_uploads(uri, path):
    assert outputs.local_path(uri) == Path(path)


def test_a_uri_that_no_backend_uploads_is_refused():
    with pytest.raises(DataError, match="oci://x"):
        outputs.local_path("oci://x")


def record(home, stage="chat_eval", **metrics):
    """Leave the record of a finished stage with one output."""
    folder = home.stage("smoke", stage)
    folder.mkdir(parents=True)
    files = {}
    for name in ("report.md", "report.html") if stage == "report" else ("out.json",):
        (folder / name).write_text(name)
        files[f"runs/smoke/{stage}/{name}"] = Output(sha256="0" * 64, bytes=len(name))
    made = Record(stage=stage, config={}, config_hash="c", outputs=files, metrics=metrics, wall_s=2.5)
    made.save(folder)
    return made


def test_figures_are_all_finite_numbers_by_name(home):
    made = record(
        home,
        loss=0.5,
        device="cpu",
        ok=True,
        mfu=None,
        large=1e300,
        bytes={"a": 3},
        scores=[{"name": "arc_easy", "value": 0.25, "unit": "accuracy"}, {"name": "x"}],
        compression=[{"text": "facts", "bytes_per_token": {"ours": 3.1}, "utf8_bytes": 10}],
    )
    assert outputs.figures(made) == {
        "wall_s": 2.5,
        "attempts": 1.0,
        "loss": 0.5,
        "large": 1e300,
        "bytes/a": 3,
        "arc_easy": 0.25,
        "bytes_per_token/facts/ours": 3.1,
    }


def asked(folder, *names):
    """Return an ExecutorInput that wants these artifacts."""
    given = {name: {"artifacts": [{"name": name, "uri": str(folder / name)}]} for name in names}
    return {"outputs": {"artifacts": given, "outputFile": str(folder / "out" / "metadata.json")}}


def test_every_output_is_written_and_told(tmp_path, home):
    made = record(home, "base_train", loss=0.5)
    outputs.write_outputs(asked(tmp_path, "metrics", "model"), home, made, run="smoke", claim="c")
    told = json.loads((tmp_path / "out" / "metadata.json").read_text())["artifacts"]
    assert told["metrics"]["artifacts"][0]["metadata"] == {"wall_s": 2.5, "attempts": 1.0, "loss": 0.5}
    model = told["model"]["artifacts"][0]
    assert model["uri"] == str(tmp_path / "model")
    assert model["metadata"]["record"] == made.hash
    assert model["metadata"]["path"] == str(home.root / "runs/smoke/base_train")
    card = json.loads((tmp_path / "model").read_text())
    assert card["files"] == {"runs/smoke/base_train/out.json": {"bytes": 8, "sha256": "0" * 64}}
    assert (card["claim"], card["run"], card["stage"]) == ("c", "smoke", "base_train")
    assert not (tmp_path / "metrics").exists()


def test_the_report_is_copied_and_scores_become_a_table(tmp_path, home):
    made = record(home, "report")
    outputs.write_outputs(asked(tmp_path, "metrics", "report", "page"), home, made, run="smoke", claim="c")
    assert (tmp_path / "report").read_text() == "report.md"
    assert (tmp_path / "page").read_text() == "report.html"
    made = record(
        home, scores=[{"name": "arc_easy", "value": 0.25, "unit": "accuracy", "n": 9, "chance": 0.25}]
    )
    outputs.write_outputs(asked(tmp_path, "metrics", "scores"), home, made, run="smoke", claim="c")
    assert "| ARC-Easy | 25.0% |   9 |  25.0% |" in (tmp_path / "scores").read_text()


def test_a_record_is_waited_for_because_a_network_volume_is_late(home):
    now = [0.0]

    def wait(seconds):
        now[0] += seconds
        if now[0] == 3.0:
            record(home, "data")

    folder = home.stage("smoke", "data")
    found = outputs.wait_for_record(home, folder, patience_s=10, clock=lambda: now[0], wait=wait)
    assert (found.stage, now[0]) == ("data", 3.0)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "record.json").unlink(), "has no record"),
        (lambda folder: (folder / "out.json").unlink(), "is missing"),
        (lambda folder: None, "of another result"),
    ],
)
def test_a_record_that_does_not_come_is_an_error_with_the_likely_reason(home, spoil, words):
    made = record(home, "data")
    folder = home.stage("smoke", "data")
    spoil(folder)
    expected = "f" * 64 if words == "of another result" else made.hash
    now = [0.0]

    def wait(seconds):
        now[0] += seconds

    with pytest.raises(DataError) as caught:
        outputs.wait_for_record(home, folder, expected, patience_s=5, clock=lambda: now[0], wait=wait)
    assert words in caught.value.message
    assert "claim" in caught.value.hint
    assert now[0] == 5.0


def test_the_result_of_submit_is_that_of_its_last_stage():
    assert step.result_of('{"stages": [{"record": "a"}, {"record": "b"}]}') == {"record": "b"}
    assert [step.result_of(text) for text in ("", "{}", '{"stages": []}', '{"stages": [1]}')] == [{}] * 4


def test_the_cause_of_a_failure_is_the_childs_last_error(monkeypatch, tmp_path, capsys):
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("NANOCHAT_TERMINATION_LOG", str(log))
    told = []
    assert step.fail(Interrupted(15, "stopped"), stage="data", run="r", tell=told.append) == 143
    assert told == ["stopped"]
    assert json.loads(log.read_text())["run"] == "r"
    assert "error: stopped" in capsys.readouterr().err


def test_the_kill_command_without_a_step_only_passes_the_signal_on(monkeypatch, tmp_path):
    passed = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(kill, "pass_on", passed.append)
    assert kill.main(["15"]) == 0
    assert kill.main([]) == 0
    write_json(tmp_path / "nanochat-step.json", {"half": 1})
    assert kill.main(["9"]) == 0
    assert passed == [15, 15, 9]

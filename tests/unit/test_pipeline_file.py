"""The compiled pipeline: the checked-in file, its strict schema, and what its steps are."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from nanochat_platform.cli.app import run
from nanochat_platform.kube.names import HOME, UID
from nanochat_platform.pipeline import artifacts
from nanochat_platform.pipeline.compile import compile_pipeline
from nanochat_platform.pipeline.ir import Pipeline
from nanochat_platform.pipeline.parameters import Parameters
from nanochat_platform.spec import RunSpec

from nanochat.errors import ConfigError
from nanochat.run.stage import STAGES

pytestmark = pytest.mark.rung_a

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "manifests" / "pipelines" / "speedrun.yaml"
NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def documents():
    spec, platform = yaml.safe_load_all(GOLDEN.read_text())
    return spec, platform


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load(GOLDEN)


def refusal(part, values):
    """Return what the SDK's closed schema says against one part of the file; unknown fields count."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
    from kfp.pipeline_spec import pipeline_spec_pb2 as pb

    messages = {
        "pipeline": pb.PipelineSpec,
        "platform": pb.PlatformSpec,
        "component": pb.ComponentSpec,
        "task": pb.PipelineTaskSpec,
        "deployment": pb.PipelineDeploymentConfig,
        "container": pb.PipelineDeploymentConfig.ExecutorSpec,
        "pod": kubernetes.KubernetesExecutorConfig,
    }
    try:
        json_format.ParseDict(values, messages[part]())
    except json_format.ParseError as error:
        return str(error)
    return None


def pods(documents):
    """Return the platform specs of all steps."""
    return documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def keys(value, path=()):
    """Yield the path of every key that the schema decides: not the names in maps."""
    named = path[-1:] in (("parameters",), ("artifacts",), ("labels",), ("annotations",))
    for name, below in value.items() if isinstance(value, dict) else enumerate(value):
        here = (*path, name)
        if isinstance(value, dict) and not named:
            yield here
        if isinstance(below, dict | list):
            yield from keys(below, here)


def test_the_checked_in_file_is_what_the_compiler_writes(tmp_path):
    compile_pipeline(tmp_path / "speedrun.yaml")
    assert (tmp_path / "speedrun.yaml").read_bytes() == GOLDEN.read_bytes(), (
        "run `nanochat pipeline compile -o manifests/pipelines/speedrun.yaml`"
    )


def test_the_file_fits_the_closed_schema(documents):
    spec, platform = documents
    assert refusal("pipeline", spec) is None
    assert refusal("deployment", spec["deploymentSpec"]) is None
    assert refusal("platform", platform) is None
    assert [refusal("pod", pod) for pod in pods(documents).values()] == [None] * len(STAGES)


def test_every_key_with_one_letter_dropped_is_refused(documents):
    """One step stands for all: they differ in names alone."""
    spec = documents[0]
    parts = {
        "component": spec["components"]["comp-report"],
        "task": spec["root"]["dag"]["tasks"]["report"],
        "container": spec["deploymentSpec"]["executors"]["exec-report"],
        "pod": pods(documents)["exec-report"],
    }
    tried = 0
    for part, values in parts.items():
        for *above, key in keys(values):
            mutant = copy.deepcopy(values)
            where = mutant
            for name in above:
                where = where[name]
            where[key[1:]] = where.pop(key)
            assert refusal(part, mutant), (part, *above, key)
            tried += 1
    assert tried > 100


def test_there_is_one_step_a_stage_in_their_order_each_after_the_one_before(pipeline):
    assert [step.args[1] for step in pipeline.steps] == NAMES
    assert [step.name for step in pipeline.steps] == [name.replace("_", "-") for name in NAMES]
    for before, step in zip(pipeline.steps, pipeline.steps[1:], strict=False):
        assert before.name in step.after


def test_every_step_runs_the_step_module_on_the_submit_image_with_the_whole_executor_input(pipeline):
    for step in pipeline.steps:
        assert step.command == ("python", "-m", "nanochat_platform.pipeline.step")
        first = step is pipeline.steps[0]
        assert step.args[2:] == ("--executor-input", "{{$}}", *(["--no-volume"] if first else []))
        assert step.image == "{{$.inputs.parameters['submit_image']}}"
        assert set(step.parameters.items()) == {(name, name) for name in Parameters.model_fields}


def test_no_step_is_cached_retried_or_given_a_gpu(documents, pipeline):
    assert not any(step.cached for step in pipeline.steps)
    text = GOLDEN.read_text()
    assert "retryPolicy" not in text
    assert "accelerator" not in text
    for step in pipeline.steps:
        assert step.resources["resourceCpuRequest"] == "50m"
        assert step.resources["resourceMemoryRequest"] == "128Mi"


def test_every_step_but_the_first_mounts_the_claim(pipeline):
    """Which pod mounts a new volume first can decide whose it is: that has to be one that trains."""
    first, *others = pipeline.steps
    assert "pvcMount" not in first.platform
    for step in others:
        (mount,) = step.platform["pvcMount"]
        assert mount["mountPath"] == HOME == step.env["NANOCHAT_HOME"]
        assert mount["pvcNameParameter"] == {"componentInputParameter": "claim"}


def test_every_steps_pod_has_a_numeric_user_and_says_how_it_is_stopped(pipeline):
    for step, name in zip(pipeline.steps, NAMES, strict=True):
        assert step.platform["securityContext"] == {
            "runAsUser": str(UID),
            "runAsGroup": str(UID),
            "runAsNonRoot": True,
        }
        metadata = step.platform["podMetadata"]
        assert metadata["labels"]["nanochat.dev/stage"] == name
        command = json.loads(metadata["annotations"]["workflows.argoproj.io/kill-cmd-main"])
        assert command[:3] == ["python", "-m", "nanochat_platform.pipeline.kill"]
        assert [part % 15 if "%d" in part else part for part in command][3] == "15"


def test_artifacts_follow_the_stage_table(pipeline):
    by_stage = dict(zip(NAMES, pipeline.steps, strict=True))
    for stage in STAGES:
        step = by_stage[stage.name]
        assert {name: kind["schemaTitle"] for name, kind in step.outputs.items()} == {
            artifact.name: artifact.schema for artifact in artifacts.outputs(stage)
        }
        assert set(step.artifacts) == {source.name for source, _ in artifacts.inputs(stage)}
        for source, (producer, output) in step.artifacts.items():
            assert producer == by_stage[source].name
            assert output == next(s for s in STAGES if s.name == source).writes[0]
    assert set(by_stage["report"].outputs) == {"metrics", "report", "page"}
    assert by_stage["chat_sft"].artifacts["mid_train"] == ("mid-train", "model")


def test_every_parameter_is_described_and_its_default_is_that_of_the_model(documents, pipeline):
    given = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert all(kind["description"] for kind in given.values())
    assert Parameters.of(pipeline.values({})) == Parameters()


@pytest.mark.parametrize("given", [{}, {"preset": "tiny"}, {"preset": "smoke", "depth": 3, "steps": 4}])
def test_the_parameters_make_a_valid_spec(pipeline, given):
    document = Parameters.of(pipeline.values(given)).run_spec("kubeflow")
    spec = RunSpec.model_validate(document)
    assert spec.namespace == "kubeflow"
    assert spec.hardware == ("cpu" if given else "8xh100")
    assert spec.config().preset == given.get("preset", "speedrun")
    assert spec.config().depth == given.get("depth")


def test_images_and_claim_can_be_baked_in(tmp_path):
    file = tmp_path / "p.yaml"
    image = "r/train@sha256:" + "1" * 64
    compile_pipeline(file, image=image, submit_image="r/submit:2", claim="other")
    values = Pipeline.load(file).values({})
    assert (values["image"], values["submit_image"], values["claim"]) == (
        image,
        "r/submit:2",
        "other",
    )


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"image": "A B"}, "--image is 'A B': it is no image reference", "registry.example.com"),
        ({"submit_image": ""}, "--submit-image is '': it is no image reference", "registry.example.com"),
        ({"claim": "My_Claim"}, "--claim is 'My_Claim': it is no name", "lower-case"),
    ],
)
def test_a_default_that_no_run_could_have_is_refused(tmp_path, given, message, hint):
    with pytest.raises(ConfigError) as caught:
        compile_pipeline(tmp_path / "p.yaml", **given)
    assert message == caught.value.message
    assert hint in caught.value.hint
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.parametrize(
    ("output", "message", "hint"),
    [
        ("folder", "`, which is a folder", "folder/speedrun.yaml`"),
        ("file/x.yaml", "file` is no folder", "in a new one"),
        ("file/new/x.yaml", "file` is no folder", "in a new one"),
    ],
)
def test_a_path_that_cannot_be_a_file_is_named(tmp_path, capsys, output, message, hint):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    assert run(["pipeline", "compile", "-o", str(tmp_path / output)]) == 64
    told = capsys.readouterr().err
    assert told.startswith(f"error: --output is `{tmp_path / output}`")
    assert message in told
    assert hint in told
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("module", ["cli.app", "pipeline.step", "pipeline.kill", "pipeline.interpret"])
def test_the_sdk_is_imported_by_the_compiler_alone(module):
    heavy = "any(name in sys.modules for name in ('kfp', 'torch', 'kubernetes'))"
    code = f"import sys, nanochat_platform.{module}; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

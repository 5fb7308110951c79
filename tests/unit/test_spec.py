"""The spec of a run on a cluster: from YAML and flags, and every way to get it wrong."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from nanochat_platform.spec import FLAGS, Overrides, RunSpec

from nanochat.errors import ConfigError
from nanochat.run.config import RunConfig, StageConfig
from nanochat.run.stage import STAGES
from nanochat.shape import preset

DIGEST = "registry.example.com/nanochat/train@sha256:" + "0" * 64
LEAST = {"preset": "speedrun", "image": DIGEST, "namespace": "team", "hardware": "8xh100"}
EVERYTHING = {
    **LEAST,
    "run": "friday",
    "source": "fineweb-edu",
    "overrides": {
        "depth": 26,
        "device_batch_size": 8,
        "steps": 100,
        "checkpoint_every": 50,
        "checkpoint_minutes": 5.5,
        "max_problems": 10,
        "seed": 7,
        "deterministic": True,
        "dtype": "bf16",
        "allow_epochs": True,
        "identity": "/data/identity.jsonl",
    },
    "stages": ["base_train", "data"],
    "volume": {"claim": "lake", "size": "2Ti", "storage_class": "nfs", "access_mode": "ReadWriteMany"},
    "nodes": 4,
    "gpus": 8,
    "kind": "trainjob",
    "queue": "gpus",
    "priority_class": "nanochat-training",
    "deadline_minutes": 240,
    "budget_usd": 1000,
    "max_attempts": 3,
    "grace_s": 120,
    "resources": {"cpu": "90", "memory": "1Ti", "shm": "64Gi", "rdma": "rdma/ib"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "node_selector": {"pool": "gpu"},
    "image_pull_secrets": ["registry"],
    "env": {"NCCL_DEBUG": "INFO"},
}


@pytest.fixture
def write(tmp_path):
    def write(values: object) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


def test_four_lines_are_a_spec(write):
    spec = RunSpec.load(write(LEAST))
    assert (spec.run_name, spec.nodes, spec.gpus_per_node, spec.ranks_per_node) == ("speedrun", 1, 8, 8)
    assert spec.stage_names() == tuple(stage.name for stage in STAGES)
    assert spec.config() == RunConfig(
        run="speedrun", preset="speedrun", source=preset("speedrun").source, nproc=8
    )


def test_every_field_arrives_and_survives_a_round_trip(write):
    spec = RunSpec.load(write(EVERYTHING))
    dumped = spec.model_dump(mode="json", exclude_defaults=True)
    assert RunSpec.model_validate(json.loads(json.dumps(dumped))) == spec
    assert spec.model_fields_set == {*RunSpec.model_fields} - {"nproc"}
    assert spec.stage_names() == ("data", "base_train")  # in the order they run in
    config = spec.config()
    given = {
        name: str(value) if name == "identity" else value for name, value in EVERYTHING["overrides"].items()
    }
    assert {name: config.model_dump(mode="json")[name] for name in given} == given


def test_a_stage_gets_the_settings_of_the_run():
    spec = RunSpec.model_validate(EVERYTHING)
    assert spec.stage_config("mid_train") == StageConfig(stage="mid_train", spec=spec.config())
    with pytest.raises(ConfigError, match="unknown stage `mid_trian`") as caught:
        spec.stage_config("mid_trian")
    assert "mid_train" in caught.value.hint


def test_overrides_are_fields_of_the_run_configuration():
    assert set(Overrides.model_fields) == set(RunConfig.model_fields) - {"run", "preset", "source", "nproc"}


def test_flags_go_over_the_file_and_reach_every_field(write):
    spec = RunSpec.load(
        write(LEAST), {"nodes": 2, "depth": 26, "claim": "lake", "memory": "1Ti", "queue": None}
    )
    assert (spec.nodes, spec.overrides.depth, spec.volume.claim) == (2, 26, "lake")
    assert spec.resources.memory == "1Ti"
    assert spec.queue is None
    flags = {name: RunSpec.model_validate(EVERYTHING) for name in FLAGS}
    values = {}
    for name, path in FLAGS.items():
        value = flags[name]
        for part in path:
            value = getattr(value, part)
        values[name] = value
    assert RunSpec.load(None, values) == RunSpec.model_validate(EVERYTHING)


def test_flags_alone_are_a_spec():
    assert RunSpec.load(None, LEAST) == RunSpec.model_validate(LEAST)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"hardwear": "8xh100", "hardware": None}, "unknown field `hardwear`", "`hardware`"),
        ({"overrides": {"detph": 20}}, "unknown field `overrides.detph`", "`depth`"),
        ({"volume": {"clam": "x"}}, "unknown field `volume.clam`", "`claim`"),
        ({"claim": "x"}, "unknown field `claim`", "`volume: {claim: ...}`"),
        ({"image": "REGISTRY/train"}, "it is no image reference", "registry.example.com"),
        ({"image": "ghcr.io/Org/train:1"}, "it is no image reference", "registry.example.com"),
        ({"namespace": "Nano_Chat"}, "it is no name", "lower-case"),
        ({"resources": {"gpu": "1"}}, "unknown field `resources.gpu`", "`cpu`"),
        ({"tolerations": [{"kee": "x"}]}, "unknown field `tolerations.0.kee`", "`key`"),
        ({"hardware": "8xh200"}, "`hardware` is '8xh200'", "`8xh100`"),
        ({"kind": "pytorchjobs"}, "`kind` is 'pytorchjobs'", "`pytorchjob`"),
        ({"volume": {"access_mode": "RWX"}}, "`volume.access_mode` is 'RWX'", "ReadWriteMany"),
        ({"image": None}, "`image` is not given", "--image"),
        ({"image": "Registry/train"}, "`image` is 'Registry/train'", None),
        ({"image": "train@sha256:123"}, "`image` is", None),
        ({"namespace": "Team_A"}, "`namespace` is 'Team_A'", None),
        ({"preset": "speedrnu"}, "unknown preset `speedrnu`", "speedrun"),
        ({"source": "climbmx"}, "unknown source `climbmx`", "climbmix"),
        ({"stages": ["base_trian"]}, "unknown stage `base_trian`", "base_train"),
        ({"stages": []}, "stages is empty", "all stages"),
        ({"run": "My Run"}, "run `My Run`", "1 to 63"),
        ({"run": "r" * 64}, "is not a valid name", "1 to 63"),
        ({"nodes": 0}, "`nodes` is 0", "give a whole number, 1 or more"),
        ({"nodes": "two"}, "`nodes` is 'two'", "give a whole number"),
        ({"deadline_minutes": 0}, "`deadline_minutes` is 0", "give a number above 0"),
        ({"budget_usd": -1}, "`budget_usd` is -1", None),
        ({"gpus": 16}, "gpus is 16", "more nodes"),
        ({"nproc": 4}, "nproc is 4", "set gpus"),
        ({"hardware": "cpu", "gpus": 1}, "gpus is 1, but hardware `cpu`", "1xh100"),
        (
            {"nodes": 2, "volume": {"access_mode": "ReadWriteOnce"}},
            "2 nodes share the volume `nanochat-data`",
            "ReadWriteMany",
        ),
        (
            {"overrides": {"identity": "/home/me/id.jsonl"}},
            "which the pods cannot read",
            "/data/identity.jsonl",
        ),
        ({"overrides": {"identity": "/data/../etc/passwd"}}, "which the pods cannot read", "/data"),
        ({"overrides": {"depth": 0}}, "`overrides.depth` is 0", None),
        ({"resources": {"memory": "lots"}}, "`resources.memory` is 'lots'", None),
        ({"env": {"PET_NNODES": "3"}}, "env `PET_NNODES` is set by the platform", "remove it"),
        ({"env": {"NANOCHAT_HOME": "/"}}, "env `NANOCHAT_HOME` is set by the platform", "remove it"),
        ({"env": {"WORLD_SIZE": "3"}}, "env `WORLD_SIZE` is set", "remove it"),
        ({"env": {"A-B": "3"}}, "env `A-B` is not a name", None),
        ({"env": {"A": 3}}, "`env.A` is 3", "write it in quotes"),
        ({"env": {"A": True}}, "`env.A` is True", "write it in quotes"),
        ({"env": {"A": None}}, "`env.A` has no value", "remove the line"),
        ({"node_selector": {"a": 1}}, "`node_selector.a` is 1", "write it in quotes"),
        ({"resources": {"memory": 1.5}}, "`resources.memory` is 1.5: it is no quantity", "`16Gi`"),
        ({"resources": {"cpu": True}}, "`resources.cpu` is True: it is no quantity", "`500m`"),
        ({"resources": {"cpu": -1}}, "`resources.cpu` is '-1': it is no quantity", "`500m`"),
        ({"stages": "base_train"}, "`stages` is 'base_train'", "write a list: `stages: [base_train]`"),
        ({"hardware": "4xh100"}, "`hardware` is '4xh100'", "`hardware: 8xh100` with `gpus: 4`"),
        ({"hardware": "1xa100"}, "`hardware` is '1xa100'", "`hardware: 8xa100` with `gpus: 1`"),
        ({"hardware": "4xl4"}, "`hardware` is '4xl4'", "`"),
        ({"node_selector": {"a b": "x"}}, "node_selector `a b: x` is not a label", None),
        ({"image_pull_secrets": ["Mine"]}, "`image_pull_secrets.0` is 'Mine'", None),
    ],
)
def test_a_wrong_value_is_named_with_its_fix(write, changes, message, hint):
    values = {name: value for name, value in (LEAST | changes).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        RunSpec.load(write(values))
    assert message in caught.value.message
    assert caught.value.exit_code == 64
    if hint is not None:
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("image:", "write it after `image:`, or give `--image`"),
        ("hardware:", "write it after `hardware:`, or give `--hardware`; one of: `1xh100`"),
        ("kind:", "write one, or remove the line"),
        ("volume: {claim: }", "write one, or remove the line"),
    ],
)
def test_a_line_without_its_value_is_named(write, line, hint):
    name = line.split(":")[0]
    text = yaml.safe_dump({key: value for key, value in LEAST.items() if key != name})
    with pytest.raises(ConfigError, match=r"`\S+` has no value") as caught:
        RunSpec.load(write(f"{text}{line}\n"))
    assert caught.value.hint.startswith(hint)


def test_numbers_of_yaml_are_quantities(write):
    text = yaml.safe_dump(LEAST | {"resources": {"cpu": 8, "memory": 1073741824}, "volume": {"size": 5}})
    spec = RunSpec.load(write(text))
    assert (spec.resources.cpu, spec.resources.memory, spec.volume.size) == ("8", "1073741824", "5")
    assert RunSpec.load(write(text), {"cpu": 0.5}).resources.cpu == "0.5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: a\npreset: b\n", "line 2: `preset` is given twice"),
        ("volume:\n  claim: a\n  claim: b\n", "line 3: `claim` is given twice"),
        ("tolerations:\n- key: a\n  key: b\n", "line 3: `key` is given twice"),
        ("preset: [a\n", "line 2: not YAML"),
        ("- preset\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("preset: a\n---\npreset: b\n", "line 2: not YAML"),
        ("preset: \x00", "is not YAML"),
    ],
)
def test_a_file_that_says_nothing_clear_is_refused_by_its_line(write, text, message):
    with pytest.raises(ConfigError) as caught:
        RunSpec.load(write(text))
    assert message in caught.value.message


def test_a_missing_file_and_a_binary_one_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none.yaml"):
        RunSpec.load(tmp_path / "none.yaml")
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        RunSpec.load(tmp_path / "run.yaml")


def test_without_yaml_the_extra_is_named(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = write("preset: a")
    with pytest.raises(ConfigError, match="needs PyYAML") as caught:
        RunSpec.load(path)
    assert "[kubernetes]" in caught.value.hint


def test_a_wrong_flag_is_called_by_its_option(write):
    with pytest.raises(ConfigError, match="--device-batch-size is 0"):
        RunSpec.load(write(LEAST), {"device_batch_size": 0})


@pytest.mark.parametrize("name", sorted(set(RunSpec.model_fields) | {"overrides.depth", "volume.claim"}))
def test_every_field_with_one_letter_dropped_is_refused(write, name):
    *parents, last = name.split(".")
    wrong = last[:1] + last[2:]
    values = dict(LEAST) | {wrong: 1} if not parents else LEAST | {parents[0]: {wrong: 1}}
    with pytest.raises(ConfigError, match="unknown field"):
        RunSpec.load(write(values))


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({}, 8),
        ({"gpus": 4}, 4),
        ({"hardware": "1xh100"}, 1),
        ({"hardware": "cpu"}, 1),
        ({"hardware": "cpu", "nproc": 2}, 2),
        ({"nproc": 8}, 8),
    ],
)
def test_there_is_one_rank_a_gpu_and_on_a_cpu_what_is_asked(changes, ranks):
    spec = RunSpec.model_validate(LEAST | changes)
    assert spec.ranks_per_node == ranks
    assert spec.config().nproc == ranks

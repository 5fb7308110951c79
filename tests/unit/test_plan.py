"""Plans: what a run needs, takes and costs; refusals that name the fix."""

import os
import subprocess
import sys

import pytest
from nanochat_platform import hardware, plan
from nanochat_platform.plan import DataFacts, describe, make_plan

from nanochat.errors import ConfigError
from nanochat.files import write_json
from nanochat.run.config import RunConfig
from nanochat.run.stage import STAGES
from nanochat.settings import Home
from nanochat.shape import PRESETS, preset

GIB = 2**30


def spec(name="speedrun", **changes) -> RunConfig:
    return RunConfig(**({"run": name, "preset": name, "source": preset(name).source} | changes))


def test_the_speedrun_on_eight_h100_is_planned_as_published():
    got = make_plan(spec(), hardware.find("8xh100"))
    base = next(stage for stage in got.stages if stage.stage == "base_train")
    assert (base.steps, base.tokens) == (5568, 5568 * 2**20)
    assert (got.ranks, got.device_batch_size, got.accumulation) == (8, 16, 4)
    assert got.parameters["total"] == 1_384_122_122
    assert got.tok_per_s == pytest.approx(8 * 103_500, rel=0.01)
    assert base.seconds == pytest.approx(2.0 * 3600, rel=0.05)
    assert base.usd == pytest.approx(48, rel=0.05)
    assert 140 <= got.shards_needed <= 175
    assert got.memory_bytes["total"] < got.memory_limit_bytes


def test_every_gpu_preset_fits_its_machine_and_every_stage_has_time_and_cost():
    for name in ("speedrun", "classic-d20", "d26", "run1000"):
        for machine in ("1xh100", "8xh100", "8xa100"):
            got = make_plan(spec(name), hardware.find(machine))
            assert [stage.stage for stage in got.stages] == [stage.name for stage in STAGES]
            assert all(stage.seconds > 0 and stage.usd > 0 for stage in got.stages)
            assert got.seconds == pytest.approx(sum(stage.seconds for stage in got.stages))
            assert got.usd == pytest.approx(sum(stage.usd for stage in got.stages))


def test_depth_is_the_only_option_that_a_bigger_model_takes():
    got = make_plan(spec(depth=26, device_batch_size=16), hardware.find("8xh100"))
    assert (got.depth, got.width, got.device_batch_size) == (26, 1664, 16)
    assert got.total_batch_tokens == 2**20


@pytest.mark.parametrize(
    ("machine", "changes", "message", "hint"),
    [
        ("8xh100", {"depth": 32, "device_batch_size": 64}, "depth 32", "--device-batch-size 8"),
        ("1xrtx4090", {}, "GiB", "--device-batch-size 2"),
        ("1xh100", {"depth": 80}, "depth 80", "smaller --depth"),
        ("8xh100", {"device_batch_size": 12}, "device-batch-size is 12", "8 or 16"),
        ("7xh100", {}, "7 ranks", "4 or 8"),
        ("8xh100", {"preset": "spedrun"}, "spedrun", "speedrun"),
        ("8xh100", {"steps": 10**6}, "times what `climbmix` holds", "--allow-epochs"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(machine, changes, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(spec(**changes), hardware.find(machine))
    assert hint in caught.value.hint


def test_the_device_batch_that_a_refusal_offers_is_accepted():
    with pytest.raises(ConfigError) as caught:
        make_plan(spec(device_batch_size=64), hardware.find("8xh100"))
    rows = int(caught.value.hint.split("--device-batch-size ")[1].split(";")[0])
    assert make_plan(spec(device_batch_size=rows), hardware.find("8xh100")).device_batch_size == rows


def test_too_little_data_becomes_a_warning_with_the_epoch_count():
    tokens = PRESETS["tiny"].base_steps * PRESETS["tiny"].total_batch_tokens
    facts = DataFacts(utf8_bytes=round(tokens * 4.0 * 1.5 / 2.5), bytes_per_token=4.0)
    with pytest.raises(ConfigError, match=r"2\.5 times what"):
        make_plan(spec("tiny"), hardware.find("cpu"), data=facts)
    got = make_plan(spec("tiny", allow_epochs=True), hardware.find("cpu"), data=facts)
    assert got.epochs == pytest.approx(2.5, rel=1e-3)
    assert "2.5 times" in got.warnings[0]
    assert make_plan(spec("tiny"), hardware.find("cpu"), data=DataFacts(utf8_bytes=10**9)).warnings == ()


def test_shards_follow_from_the_measured_bytes_per_token():
    few = make_plan(spec(), hardware.find("8xh100"), data=DataFacts(utf8_bytes=10**12, bytes_per_token=3.0))
    many = make_plan(spec(), hardware.find("8xh100"), data=DataFacts(utf8_bytes=10**12, bytes_per_token=6.0))
    assert many.shards_needed == pytest.approx(2 * few.shards_needed, abs=2)


def tokens_manifest(*counts, dataset="h"):
    shards = [
        {"name": f"shard_{n:05d}", "tokens": count, "documents": 1, "sha256": "", "offsets_sha256": ""}
        for n, count in enumerate(counts)
    ]
    return {"version": 1, "tokenizer": "t", "dataset": dataset, "shards": shards}


def test_a_prepared_dataset_says_its_size_and_bytes_per_token(tmp_path):
    home = Home(tmp_path)
    assert plan.known_data(home, spec("tiny")) is None
    folder = home.dataset("packages-cpu")
    entry = {"sha256": "0" * 64, "bytes": 10, "rows": 1}
    values = {
        "name": "packages-cpu",
        "source": "packages/cpu",
        "recipe": "r",
        "documents": 3,
        "utf8_bytes": 12_000,
        "shards": ["shard_00000.parquet", "shard_00001.parquet"],
        "files": {
            "shard_00000.parquet": entry | {"kind": "train", "utf8_bytes": 9000},
            "shard_00001.parquet": entry | {"kind": "val", "utf8_bytes": 3000},
        },
        "sources": [],
        "hash": "h",
    }
    write_json(folder / "manifest.json", values)
    assert plan.known_data(home, spec("tiny")) is None
    write_json(folder / "tokens-abc" / "manifest.json", tokens_manifest(3000, 1000))
    assert plan.known_data(home, spec("tiny")) == DataFacts(
        utf8_bytes=9000, bytes_per_token=3.0, packing_loss=1.05
    )
    hub = home.dataset("climbmix")
    write_json(hub / "manifest.json", values | {"name": "climbmix", "source": "climbmix"})
    write_json(hub / "tokens-abc" / "manifest.json", tokens_manifest(3000, 1000))
    assert plan.known_data(home, spec("speedrun")) == DataFacts(utf8_bytes=None, bytes_per_token=3.0)


def test_the_newest_whole_tokens_of_the_dataset_count(tmp_path):
    home = Home(tmp_path)
    folder = home.dataset("climbmix")
    entry = {"sha256": "0" * 64, "bytes": 10, "rows": 1, "kind": "train", "utf8_bytes": 6000}
    values = {"name": "climbmix", "source": "climbmix", "recipe": "r", "documents": 1, "utf8_bytes": 6000}
    files = {"a.parquet": entry, "b.parquet": entry | {"kind": "val"}}
    values |= {"shards": ["a.parquet", "b.parquet"], "files": files, "sources": [], "hash": "h"}
    write_json(folder / "manifest.json", values)
    for age, (name, tokens) in enumerate({"tokens-b": 1000, "tokens-a": 2000}.items()):
        path = folder / name / "manifest.json"
        write_json(path, tokens_manifest(tokens, 10))
        os.utime(path, (age, age))
    assert plan.known_data(home, spec("speedrun")).bytes_per_token == 3.0
    for age, (name, found) in enumerate(
        {
            "tokens-c": tokens_manifest(500),
            "tokens-d": tokens_manifest(500, 10, dataset="another"),
            "tokens-e": {"shards": [{}]},
        }.items()
    ):
        path = folder / name / "manifest.json"
        write_json(path, found)
        os.utime(path, (9 + age, 9 + age))
        assert plan.known_data(home, spec("speedrun")).bytes_per_token == 3.0
    for name in ("tokens-a", "tokens-b"):
        (folder / name / "manifest.json").unlink()
    assert plan.known_data(home, spec("speedrun")) is None


def test_a_cpu_is_measured_once_and_only_after_everything_else_fits():
    calls = []

    def measure(asked):
        calls.append(asked)
        return {"tok_per_s": 8000.0, "first_step_s": 20.0}

    with pytest.raises(ConfigError, match="GiB"):
        make_plan(spec("tiny"), hardware.find("cpu", memory_bytes=2**24), measure=measure)
    assert not calls
    got = make_plan(spec("tiny"), hardware.find("cpu", memory_bytes=8 * GIB), measure=measure)
    base = next(stage for stage in got.stages if stage.stage == "base_train")
    row = PRESETS["tiny"]
    assert calls == [spec("tiny")]
    assert base.seconds == pytest.approx(20 + row.base_steps * row.total_batch_tokens / 8000)
    assert got.usd is None


def test_without_a_measurement_a_cpu_plan_has_sizes_but_no_times():
    got = make_plan(spec("smoke"), hardware.find("cpu"))
    assert got.seconds is None
    assert got.tok_per_s is None
    assert got.parameters["total"] == PRESETS["smoke"].shape.parameter_counts()["total"]


def test_a_failed_measurement_says_why(monkeypatch):
    class Done:
        returncode, stdout, stderr = 64, "", "warning\nerror: no torch"

    monkeypatch.setattr(subprocess, "run", lambda *args, **options: Done)
    with pytest.raises(ConfigError, match="no torch"):
        plan.measure_here(spec("smoke"))


def test_a_measurement_asks_for_exactly_what_would_be_trained(monkeypatch):
    asked = []

    class Done:
        returncode, stdout, stderr = 0, 'talk\n{"tok_per_s": 5.0}\n', ""

    monkeypatch.setattr(subprocess, "run", lambda command, **options: asked.append(command) or Done)
    assert plan.measure_here(spec("tiny", depth=6, device_batch_size=4))["tok_per_s"] == 5.0
    options = " ".join(asked[0][1:])
    assert options == ("-m nanochat.train.measure --preset tiny --dtype auto --depth 6 --device-batch-size 4")


def test_the_text_names_every_stage_with_time_and_cost():
    text = describe(make_plan(spec(), hardware.find("8xh100")))
    for stage in STAGES:
        assert stage.name in text
    assert "1.384B parameters" in text
    assert "$" in text
    assert max(map(len, text.splitlines())) < 140


def test_a_plan_survives_json():
    got = make_plan(spec("d26"), hardware.find("8xa100"))
    assert plan.Plan.model_validate_json(got.model_dump_json()) == got


@pytest.mark.parametrize(
    ("name", "nearest"), [("8xh10", "8xh100"), ("gpu", "cpu"), ("9xh100", "8xh100"), ("xpu", "cpu")]
)
def test_unknown_hardware_gets_the_nearest_name(name, nearest):
    with pytest.raises(ConfigError, match=name) as caught:
        hardware.find(name)
    assert nearest in caught.value.hint


def test_utilisation_is_interpolated_between_published_depths():
    machine = hardware.find("8xh100")
    assert machine.mfu(24).mfu == 0.50
    assert machine.mfu(22).mfu == pytest.approx((0.475 + 0.50) / 2)
    assert machine.mfu(40).mfu == machine.mfu(32).mfu
    assert machine.mfu(2).mfu == machine.mfu(8).mfu
    assert hardware.find("cpu").mfu(4) is None


def test_a_container_limit_counts_as_the_memory(tmp_path):
    limit = tmp_path / "memory.max"
    assert hardware.local_memory_bytes(limit) > 0
    limit.write_text("1048576\n")
    assert hardware.local_memory_bytes(limit) == 1048576
    limit.write_text("max\n")
    assert hardware.local_memory_bytes(limit) > 1048576


def test_a_plan_imports_no_torch():
    code = "import sys, nanochat_platform.plan, nanochat_platform.hardware; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0

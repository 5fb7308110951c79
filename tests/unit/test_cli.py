"""The command line without processes: surface, errors, the spec of a run, listings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import typer
from nanochat_platform import local
from nanochat_platform.cli.app import build, run

from nanochat.errors import ConfigError
from nanochat.run.config import RunConfig
from nanochat.run.stage import STAGES
from nanochat.settings import Home

SURFACE = Path(__file__).parents[1] / "surface"
TRAIN = {
    *("--run", "--preset", "--depth", "--device-batch-size", "--source", "--until", "--steps"),
    *("--checkpoint-every", "--checkpoint-minutes", "--seed", "--deterministic", "--dtype"),
    *("--max-problems", "--nproc"),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    return Home(tmp_path)


def commands(command, path="nanochat"):
    """Yield (path, command) of every command below."""
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from commands(child, f"{path} {name}")
    if not hasattr(command, "commands"):
        yield path, command


def surface():
    """Return one line a command argument or option."""
    lines = []
    for path, command in commands(typer.main.get_command(build())):
        lines.append(path)
        for param in command.params:
            names = "/".join([*param.opts, *param.secondary_opts])
            name = names if param.param_type_name == "option" else param.metavar or param.name.upper()
            value = f" {param.metavar}" if param.param_type_name == "option" and param.metavar else ""
            default = (
                f" = {param.default}" if param.default not in (None, False) and not param.required else ""
            )
            lines.append(f"  {name}{value}{default}{' (required)' if param.required else ''}")
    return lines


def test_the_commands_and_options_are_those_of_the_surface_file():
    assert surface() == (SURFACE / "cli.txt").read_text().splitlines()


@pytest.mark.parametrize("command", ["speedrun", "run"])
def test_training_commands_take_the_flags_of_the_contract(command):
    params = typer.main.get_command(build()).commands[command].params
    options = {name for param in params for name in param.opts}
    assert options >= TRAIN


def test_every_option_has_help():
    for path, command in commands(typer.main.get_command(build())):
        assert command.help, path
        for param in command.params:
            assert param.help, f"{path} {param.name}"


def test_every_training_option_is_a_setting_of_the_run():
    params = typer.main.get_command(build()).commands["speedrun"].params
    names = {param.name for param in params} - {"until", "as_json"}
    assert names == set(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sped"], ("`nanochat` has no command `sped`", "did you mean `speedrun`?")),
        (["data", "prep"], ("`nanochat data` has no command `prep`", "did you mean `prepare`?")),
        (["speedrun", "--dept", "3"], ("has no option `--dept`", "did you mean `--depth`?")),
        (["speedrun", "--preset", "tny"], ("unknown preset `tny`", "did you mean `tiny`?")),
        (["speedrun", "--source", "climbmx"], ("unknown source `climbmx`", "did you mean `climbmix`?")),
        (["speedrun", "--until", "base_trian"], ("unknown stage `base_trian`", "did you mean `base_train`?")),
        (["run", "chat_stf"], ("unknown stage `chat_stf`", "did you mean `chat_sft`?")),
        (["run", "report", "--until", "data"], ("--until data comes before report",)),
        (["run"], ("missing argument", "nanochat run --help")),
        (["speedrun", "--depth", "0"], ("--depth is 0", "greater than or equal to 1")),
        (["speedrun", "--depth", "two"], ("--depth", "integer")),
        (["speedrun", "--steps", "-3"], ("--steps is -3",)),
        (
            ["speedrun", "--device-batch-size", "7", "--preset", "smoke"],
            ("device-batch-size is 7", "use --dev"),
        ),
        (["speedrun", "--checkpoint-minutes", "0"], ("--checkpoint-minutes is 0",)),
        (["speedrun", "--dtype", "int4"], ("--dtype is 'int4'",)),
        (["speedrun", "--run", "../x"], ("run `../x` is not a valid name",)),
        (
            ["data", "prepare", "--source", "generated", "--profile", "cpu"],
            ("`generated` has no profile `cpu`",),
        ),
        (["plan", "--hardware", "8xh10"], ("unknown hardware `8xh10`", "did you mean `8xh100`?")),
        (["plan", "--preset", "run1000", "--hardware", "1xrtx4090"], ("GiB", "smaller --depth")),
        (["checkpoints", "--run", "none"], ("there is no run `none`", "nanochat speedrun")),
        (["export", "--run", "none", "--to", "x"], ("run `none` has no model",)),
        (["export", "--to", "x", "--format", "ht"], ("--format is `ht`", "did you mean `hf`?")),
        (["export"], ("missing option '--to'",)),
        (["serve", "--run", "a", "--model", "a/chat_sft-1"], ("--run and --model exclude each other",)),
        (["serve", "--model", "none/chat_sft-1"], ("`none/chat_sft-1`", "speedrun")),
        (["serve", "--lame-duck-s", "-1"], ("--lame-duck-s is -1",)),
        (["serve", "--grace-s", "inf"], ("--grace-s is inf",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_usage_error_is_64_and_names_field_value_and_fix(capsys, home, arguments, words):
    assert run(arguments) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    for word in words:
        assert word in err
    assert not list(home.root.iterdir()), "a usage error leaves nothing behind"


def test_no_command_shows_the_help_and_is_a_usage_error(capsys):
    assert run([]) == 64
    assert "Commands:" in capsys.readouterr().err
    assert run(["--help"]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_verify_without_any_dataset_is_a_data_error(capsys):
    assert run(["data", "verify"]) == 65
    assert "nanochat data prepare" in capsys.readouterr().err


def test_ctrl_c_in_a_command_is_130(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "choose", stop)
    assert run(["speedrun"]) == 130


def test_a_bench_of_no_server_is_unavailable(capsys):
    assert run(["bench", "--url", "http://127.0.0.1:9"]) == 69
    assert "nanochat serve" in capsys.readouterr().err


def test_a_run_is_called_like_its_preset_and_takes_its_source(home):
    spec = local.make_spec(home, {"preset": "smoke"})
    assert (spec.run, spec.source, spec.depth) == ("smoke", "generated", None)
    assert local.make_spec(home, {}).preset == "tiny"
    assert local.make_spec(home, {"source": "packages"}).source == "packages/cpu"


def test_options_given_now_stand_over_those_of_the_run_s_spec(home):
    first = local.make_spec(home, {"run": "a", "preset": "smoke", "seed": 7, "steps": 3})
    home.run("a").mkdir(parents=True)
    (home.run("a") / "spec.json").write_text(first.model_dump_json())
    again = local.make_spec(home, {"run": "a", "seed": None, "steps": 5})
    assert (again.preset, again.seed, again.steps, again.source) == ("smoke", 7, 5, "generated")


def test_a_spec_of_another_version_names_the_field(home):
    home.run("a").mkdir(parents=True)
    (home.run("a") / "spec.json").write_text('{"preset": "smoke", "colour": "red"}')
    with pytest.raises(ConfigError, match="unknown field `colour`"):
        local.make_spec(home, {"run": "a"})


@pytest.mark.parametrize(
    ("first", "last", "chosen"),
    [
        (None, None, [stage.name for stage in STAGES]),
        (None, "tok_train", ["data", "tok_train"]),
        ("tok_eval", None, ["tok_eval"]),
        ("tok_eval", "base_train", ["tok_eval", "tokenize", "base_train"]),
    ],
)
def test_stages_are_chosen_by_their_ends(first, last, chosen):
    assert [stage.name for stage in local.choose(first, last)] == chosen


@pytest.mark.parametrize(
    ("code", "again"),
    [
        *((code, False) for code in (0, 1, 64, 65, 66, 70, 130, 143, 201)),
        *((code, True) for code in (134, 137, 139, 202)),
    ],
)
def test_only_a_lost_or_hung_rank_is_retried_where_a_person_sits(code, again):
    assert local.retried(code) is again


def test_a_plan_is_text_or_json_and_is_kept_with_the_run_that_it_is_for(home, capsys):
    assert run(["plan", "--preset", "speedrun", "--hardware", "8xh100"]) == 0
    assert "base_train" in capsys.readouterr().out
    assert not list(home.root.iterdir())
    assert run(["plan", "--preset", "smoke", "--run", "a", "--no-measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["preset"] == "smoke"
    assert json.loads((home.run("a") / "plan.json").read_text()) == found


def test_checkpoints_lists_what_is_there_and_what_is_damaged(home, capsys):
    import torch

    from nanochat.checkpoint.commit import CheckpointStore

    store = CheckpointStore(home.stage("r", "base_train"))
    for step in (1, 2):
        store.save(step, model={"w": torch.ones(3)}, optim={}, state={})
    os.truncate(store.folder / "step-00000002" / "state.json", 1)
    assert run(["checkpoints", "--run", "r", "--json", "--verify"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["base_train/step-00000001", "base_train/step-00000002"]
    assert rows[0]["state"] == "verified"
    assert rows[1]["state"].startswith("damaged: ")
    assert run(["checkpoints", "--run", "r"]) == 0
    assert "complete" in capsys.readouterr().out

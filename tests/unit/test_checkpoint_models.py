"""Exported models: published whole, found by run, loaded only when verified."""

from __future__ import annotations

import os

import pytest
import torch

from nanochat.checkpoint.commit import CheckpointStore
from nanochat.checkpoint.models import copy_model, export_model, find_model, list_models, resolve_model
from nanochat.errors import ConfigError, DataError
from nanochat.gpt import GPT
from nanochat.settings import Home
from nanochat.shape import Shape
from nanochat.tokenizer import Tokenizer

SHAPE = Shape(depth=2, width=64, heads=2, kv_heads=2, head_dim=32, vocab_size=300, seq_len=32)


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    Tokenizer.train(["low lower lowest " * 50], 285).save(tokenizer_path(home))
    return home


def tokenizer_path(home):
    return home.stage("r", "tok_train") / "tokenizer.json"


def weights(seed=1):
    model = GPT(SHAPE)
    model.init_weights(seed)
    return model.state_dict()


def export(home, stage, step, *, run="r", state="new"):
    return export_model(
        home,
        run,
        stage,
        step,
        model_state=weights() if state == "new" else state,
        shape_json=SHAPE.to_json(),
        tokenizer_path=tokenizer_path(home),
    )


def test_an_exported_model_loads_with_its_tokenizer_and_computes_the_same(home):
    path = export(home, "chat_sft", 12)
    assert path == home.models("r") / "chat_sft-12"
    assert sorted(p.name for p in path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    folder = resolve_model(home, "r")
    assert folder.id == "r/chat_sft-12"
    assert (folder.stage, folder.step) == ("chat_sft", 12)
    assert folder.verify()["stage"] == "chat_sft"
    model, tokenizer = folder.load("cpu", torch.float32)
    same = GPT(SHAPE)
    same.load_state_dict(weights())
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids), same.for_inference()(ids))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.decode(tokenizer.encode("lowest")) == "lowest"
    half, _ = folder.load("cpu", torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16


def test_weights_equal_to_the_checkpoint_s_are_hard_links(home):
    store = CheckpointStore(home.stage("r", "base_train"))
    store.save(7, model=weights(), optim={}, state={})
    saved = store.folder / "step-00000007" / "model.safetensors"
    for state in ("new", None):
        path = export(home, "base_train", 7, state=state)
        assert (path / "model.safetensors").stat().st_ino == saved.stat().st_ino
        assert (path / "tokenizer.json").stat().st_ino == tokenizer_path(home).stat().st_ino
    other = export(home, "base_train", 7, state=weights(2))
    assert (other / "model.safetensors").stat().st_ino != saved.stat().st_ino
    find_model(home, "r", "base_train").verify()


def test_a_volume_without_links_gets_copies(home, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    CheckpointStore(home.stage("r", "base_train")).save(7, model=weights(), optim={}, state={})
    exported = export(home, "base_train", 7, state=None) / "model.safetensors"
    saved = home.stage("r", "base_train") / "checkpoints" / "step-00000007" / "model.safetensors"
    assert exported.stat().st_ino != saved.stat().st_ino
    assert exported.read_bytes() == saved.read_bytes()
    find_model(home, "r", "base_train").verify()


def test_exporting_what_is_not_there_is_an_error(home):
    with pytest.raises(DataError, match="step-00000009"):
        export(home, "base_train", 9, state=None)
    assert not list(home.models("r").iterdir())


@pytest.mark.parametrize(
    ("exported", "best"),
    [
        ([("base_train", 900)], "base_train-900"),
        ([("base_train", 900), ("mid_train", 30)], "mid_train-30"),
        ([("chat_sft", 20), ("base_train", 900), ("mid_train", 30)], "chat_sft-20"),
        ([("chat_sft", 20), ("chat_sft", 100)], "chat_sft-100"),
    ],
)
def test_a_run_s_model_is_its_newest_chat_model_else_its_newest(home, exported, best):
    for stage, step in exported:
        export(home, stage, step)
    assert resolve_model(home, "r").path.name == best
    assert len(list_models(home, "r")) == len(exported)


def test_a_stage_s_own_model_is_found(home):
    export(home, "base_train", 900)
    export(home, "chat_sft", 20)
    assert find_model(home, "r", "base_train").id == "r/base_train-900"
    with pytest.raises(ConfigError, match="no model of stage `mid_train`"):
        find_model(home, "r", "mid_train")


def test_an_unknown_run_offers_the_nearest(home):
    with pytest.raises(ConfigError) as caught:
        resolve_model(home, "tiny")
    assert "speedrun" in (caught.value.hint or "")
    export(home, "base_train", 1, run="tiny-2")
    with pytest.raises(ConfigError) as caught:
        resolve_model(home, "tiny")
    assert caught.value.hint == "did you mean `tiny-2`?"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
def test_a_flipped_bit_in_any_file_is_named_and_never_loaded(home, name):
    path = export(home, "chat_sft", 1)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (path / name).unlink()  # the tokenizer is a hard link to the run's
    (path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        find_folder(home).load()


def find_folder(home):
    return list_models(home, "r")[0]


def test_a_damaged_newest_model_is_an_error_not_a_step_back(home):
    export(home, "base_train", 1)
    path = export(home, "chat_sft", 1)
    (path / "config.json").unlink()
    with pytest.raises(DataError, match=r"chat_sft-1.*config\.json"):
        resolve_model(home, "r")


def test_a_model_can_be_copied_out_and_only_whole(home, tmp_path):
    path = export(home, "chat_sft", 1)
    copy_model(resolve_model(home, "r"), tmp_path / "out" / "model")
    copied = {p.name: p.read_bytes() for p in (tmp_path / "out" / "model").iterdir()}
    assert copied == {p.name: p.read_bytes() for p in path.iterdir()}
    (path / "config.json").write_text("{}")
    with pytest.raises(DataError):
        copy_model(list_models(home, "r")[0], tmp_path / "out" / "second")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]

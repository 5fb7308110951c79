"""`nanochat export`: our format and Hugging Face's."""

from __future__ import annotations

import json

import pytest
import torch
from nanochat_platform.cli.app import run

from nanochat.checkpoint.folder import verify
from nanochat.checkpoint.models import export_model
from nanochat.gpt import GPT
from nanochat.hf import import_classic
from nanochat.settings import Home
from nanochat.shape import Arch, Shape
from nanochat.tokenizer import Tokenizer


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that exports a model of an architecture into run `r`, and gives its weights."""
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")

    def export(arch: Arch, stage="chat_sft"):
        tokenizer = Tokenizer.train(["low lower lowest " * 50], 280)
        path = home.stage("r", "tok_train") / "tokenizer.json"
        tokenizer.save(path)
        shape = Shape.from_depth(2, arch=arch, vocab_size=tokenizer.vocab_size, seq_len=32)
        model = GPT(shape)
        model.init_weights()
        state = model.state_dict()
        export_model(home, "r", stage, 3, model_state=state, shape_json=shape.to_json(), tokenizer_path=path)
        return model

    return export


def test_a_model_is_copied_whole_and_a_folder_in_use_is_refused(make, tmp_path, capsys):
    make("modern")
    to = str(tmp_path / "out")
    assert run(["export", "--run", "r", "--to", to, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "r/chat_sft-3"
    verify(tmp_path / "out")
    assert run(["export", "--run", "r", "--to", to]) == 73
    assert "choose a new folder" in capsys.readouterr().err


def test_a_classic_model_becomes_a_hugging_face_folder_with_the_same_logits(make, tmp_path):
    model = make("classic", stage="base_train")
    to = tmp_path / "hf"
    assert run(["export", "--run", "r", "--stage", "base_train", "--to", str(to), "--format", "hf"]) == 0
    config = json.loads((to / "config.json").read_text())
    assert config["model_type"] == "nanochat"
    assert config["bos_token_id"] is not None
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(import_classic(to)(ids), model(ids))


def test_a_modern_model_has_no_hugging_face_form_and_nothing_is_written(make, tmp_path, capsys):
    make("modern")
    to = tmp_path / "hf"
    assert run(["export", "--run", "r", "--to", str(to), "--format", "hf"]) == 64
    assert "classic" in capsys.readouterr().err
    assert not to.exists()

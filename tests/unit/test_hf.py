"""The classic architecture and `transformers` agree, in both directions."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gpt import build, random_ids, small
from transformers import NanoChatConfig, NanoChatForCausalLM

from nanochat.errors import ConfigError, DataError
from nanochat.hf import export_classic, import_classic, save_classic

CLASSIC = small("classic", vocab_size=130)


def test_logits_of_an_exported_model_agree_with_transformers(tmp_path):
    model = build(CLASSIC)
    save_classic(model, tmp_path)
    theirs = NanoChatForCausalLM.from_pretrained(tmp_path).eval()
    ids = random_ids(CLASSIC, 2, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_model_of_transformers_imports_with_the_same_logits(tmp_path, kv_heads):
    torch.manual_seed(1)
    config = NanoChatConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=48,
        initializer_range=0.2,
    )
    theirs = NanoChatForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    model = import_classic(tmp_path)
    ids = random_ids(model.shape, 2, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_export_and_import_are_inverse(tmp_path):
    model = build(CLASSIC)
    save_classic(model, tmp_path)
    again = import_classic(tmp_path)
    assert again.shape == model.shape
    for name, tensor in model.state_dict().items():
        rows = 130 if name in ("wte.weight", "lm_head.weight") else tensor.size(0)
        assert torch.equal(again.state_dict()[name][:rows], tensor[:rows]), name


def test_the_exported_vocabulary_is_the_real_one():
    tensors, config = export_classic(build(CLASSIC))
    assert config["vocab_size"] == tensors["lm_head.weight"].size(0) == 130


def test_the_modern_architecture_is_refused():
    with pytest.raises(ConfigError, match="modern"):
        export_classic(build(small("modern")))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("tie_word_embeddings", True),
        ("intermediate_size", 100),
        ("final_logit_softcapping", 30.0),
        ("model_type", "llama"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        ("num_hidden_layers", None),
    ],
)
def test_a_configuration_that_differs_is_refused_by_field(tmp_path, field, value):
    save_classic(build(CLASSIC), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if value is None:
        del config[field]
    else:
        config[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=field):
        import_classic(tmp_path)


def test_a_missing_or_misshapen_tensor_is_named(tmp_path):
    save_classic(build(CLASSIC), tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.fc2.weight"
    whole = load_file(path)
    save_file(whole | {name: whole[name].mT.contiguous()}, path)
    with pytest.raises(DataError, match=name):
        import_classic(tmp_path)
    del whole[name]
    save_file(whole, path)
    with pytest.raises(DataError, match=name):
        import_classic(tmp_path)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    save_classic(build(CLASSIC), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        import_classic(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"model\.safetensors"):
        import_classic(tmp_path)

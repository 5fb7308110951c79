"""The classic architecture as Hugging Face's `NanoChatForCausalLM`: weights and configuration, both ways.

Knows the names of the two formats; imports no transformers. Tokenizers are not part of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nanochat.errors import ConfigError, DataError
from nanochat.files import read_json, write_bytes, write_json
from nanochat.gpt import GPT, NORM_EPS, ROPE_BASE, SOFTCAP
from nanochat.shape import MLP_RATIO, Shape

_BLOCK_NAMES = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_INDEX = "model.safetensors.index.json"


def _names(depth: int) -> dict[str, str]:
    """Return {our parameter name: theirs}."""
    names = {"wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    for i in range(depth):
        for ours, theirs in _BLOCK_NAMES.items():
            names[f"blocks.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    return names


def _fixed(width: int) -> dict[str, Any]:
    """Return the fields of their configuration that our classic architecture has only one value for."""
    return {
        "model_type": "nanochat",
        "hidden_act": "relu2",
        "intermediate_size": MLP_RATIO * width,
        "rms_norm_eps": NORM_EPS,
        "final_logit_softcapping": SOFTCAP,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE["classic"]},
    }


def export_classic(
    model: GPT, *, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (state dict, configuration) that `NanoChatForCausalLM` loads; padding rows are cropped.

    Raises:
        ConfigError: the model is not of the classic architecture.
    """
    shape = model.shape
    if shape.arch != "classic":
        raise ConfigError(
            f"cannot export a model of arch `{shape.arch}` to Hugging Face",
            hint="`NanoChatForCausalLM` is the classic architecture: train a preset such as `classic-d20`",
        )
    own = model.state_dict()
    tensors = {}
    for ours, theirs in _names(shape.depth).items():
        rows = shape.vocab_size if ours in ("wte.weight", "lm_head.weight") else own[ours].size(0)
        tensors[theirs] = own[ours][:rows].detach().clone()
    config = {
        "architectures": ["NanoChatForCausalLM"],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.seq_len,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": None,
        "dtype": str(tensors["lm_head.weight"].dtype).removeprefix("torch."),
    }
    return tensors, config | _fixed(shape.width)


def save_classic(
    model: GPT, folder: Path, *, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> None:
    """Write `config.json` and `model.safetensors` for `from_pretrained(folder)`.

    Raises:
        ConfigError: the model is not of the classic architecture.
        StorageError: the volume refuses the write.
    """
    tensors, config = export_classic(model, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
    write_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)


def import_classic(folder: Path, *, dtype: torch.dtype = torch.float32) -> GPT:
    """Return the model in a folder that `NanoChatForCausalLM.save_pretrained` wrote, computing in `dtype`.

    Raises:
        ConfigError: the configuration asks for something that the classic architecture does not do.
        DataError: a file or tensor is missing, damaged or of another size.
    """
    shape = _shape(read_json(folder / "config.json"))
    theirs = _load_tensors(folder)
    model = GPT(shape, dtype=dtype)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for our_name, their_name in _names(shape.depth).items():
            if their_name not in theirs:
                raise DataError(f"`{folder}` has no tensor `{their_name}`")
            tensor, target = theirs[their_name], own[our_name]
            rows = min(target.size(0), shape.vocab_size) if "blocks" not in our_name else target.size(0)
            if tuple(tensor.shape) != (rows, target.size(1)):
                raise DataError(
                    f"`{folder}`: tensor `{their_name}` has shape {tuple(tensor.shape)},"
                    f" expected {(rows, target.size(1))}"
                )
            target.zero_()
            target[:rows] = tensor
    return model


def _shape(config: dict[str, Any]) -> Shape:
    width = int(config.get("hidden_size", 0))
    # Files of transformers 4 name the rotary base at the top level.
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", ROPE_BASE["classic"])}
    given = config | {"rope_parameters": {"rope_type": "default"} | rope}
    for field, value in _fixed(width).items():
        if field in given and given[field] != value:
            raise ConfigError(
                f"config.json: `{field}` is {given[field]!r}, but the classic architecture has {value!r}",
                hint="only models of `NanoChatForCausalLM` with its default options can be imported",
            )
    try:
        heads = int(config["num_attention_heads"])
        return Shape(
            arch="classic",
            depth=int(config["num_hidden_layers"]),
            width=width,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=width // heads,
            vocab_size=int(config["vocab_size"]),
            seq_len=int(config["max_position_embeddings"]),
            window_pattern="L",
        )
    except KeyError as error:
        raise ConfigError(f"config.json: field {error} is missing") from None


def _load_tensors(folder: Path) -> dict[str, Tensor]:
    names = ["model.safetensors"]
    if (folder / _INDEX).exists():
        names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except FileNotFoundError as error:
            raise DataError(f"`{folder / name}` does not exist") from error
        except SafetensorError as error:
            raise DataError(f"`{folder / name}` is damaged: {error}") from error
    return tensors

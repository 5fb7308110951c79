"""The model that an evaluation scores: exactly the one that a training stage's record lists.

Knows nothing of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.checkpoint.models import ModelFolder
from nanochat.device import select_device
from nanochat.errors import DataError
from nanochat.gpt import GPT
from nanochat.run.record import Record
from nanochat.settings import Home
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A verified model on its device, with its tokenizer."""

    id: str
    """`<run>/<stage>-<step>`."""
    model: GPT
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype

    @property
    def seq_len(self) -> int:
        """Tokens of its context."""
        return self.model.shape.seq_len


def model_folder(home: Home, record: Record) -> ModelFolder:
    """Return the exported model among a record's outputs.

    Raises:
        DataError: the record lists none.
    """
    folders = {Path(path).parent for path in record.outputs if Path(path).parts[0] == "models"}
    if len(folders) != 1:
        raise DataError(f"the record of stage `{record.stage}` lists {len(folders)} exported models, not one")
    return ModelFolder(home.root / folders.pop())


def load_model(home: Home, record: Record) -> LoadedModel:
    """Load the model that a training stage left, in the device's compute type.

    Raises:
        DataError: the record lists no model, or a file of it is damaged.
    """
    folder = model_folder(home, record)
    device = select_device()
    model, tokenizer = folder.load(device.torch, device.dtype)
    return LoadedModel(folder.id, model, tokenizer, device.torch, device.dtype)

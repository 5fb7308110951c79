"""What a run was asked to do: closed models that become `spec.json` and `config.json`.

Knows names and ranges; what a preset means is in `nanochat.shape`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.errors import ConfigError, did_you_mean
from nanochat.files import hash_json, sha256_file
from nanochat.run.stage import Stage
from nanochat.run.stage import stage as find_stage

Positive = Annotated[int, Field(ge=1)]
SOURCES = ("packages/cpu", "packages/core", "generated", "climbmix", "fineweb-edu")


class Frozen(BaseModel):
    """A closed, immutable model: an unknown field is an error."""

    # No `use_attribute_docstrings`: reading the source for them takes 20 ms of every launch (2026-11).
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunConfig(Frozen):
    """One run, the same for all of its stages: `runs/<run>/spec.json`."""

    run: str
    """Name of the run's folder; the preset's name by default."""
    preset: str
    """A row of the preset table in `nanochat.shape`."""
    source: str
    """Where the data comes from: one of `SOURCES`."""
    identity: Path | None = None
    """JSONL of the user's own identity conversations; the built-in ones without it."""
    depth: Positive | None = None
    """The one dial: layers; everything else is derived. None: the preset's."""
    device_batch_size: Positive | None = None
    """Rows a device holds at once; the total batch never changes. None: the preset's."""
    steps: Positive | None = None
    """Optimizer steps of each training stage. None: the preset's."""
    checkpoint_every: Positive | None = None
    """Steps between checkpoints. None: by time alone."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 2.0
    """Minutes between checkpoints."""
    max_problems: Positive | None = None
    """Problems an evaluation task takes at most. None: the preset's."""
    seed: Annotated[int, Field(ge=0)] = 42
    deterministic: bool = False
    """Bit-identical resume; slower."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; `auto`: bf16 where the device has it. Master weights are fp32."""
    nproc: Positive = 1
    """Ranks on this machine, unless torchrun or PET_* variables say otherwise."""
    allow_epochs: bool = False
    """Train on the data more than once instead of refusing when it is too little."""

    def dataset(self) -> str:
        """Return the dataset's folder name, e.g. `packages-cpu`."""
        return self.source.replace("/", "-")

    def relevant(self, stage: Stage) -> dict[str, Any]:
        """Return the fields that `stage` depends on: what its config hash is made of.

        A file counts by its content, so moving it changes nothing and editing it does.
        """
        values = self.model_dump(mode="json")
        if self.identity is not None and self.identity.is_file():
            values["identity"] = f"sha256:{sha256_file(self.identity)}"
        return {name: values[name] for name in stage.settings}


class StageConfig(Frozen):
    """`runs/<run>/<stage>/config.json`: all that the launcher is given."""

    stage: str
    spec: RunConfig

    @property
    def hash(self) -> str:
        """Identity of the settings that the stage's result depends on."""
        return hash_json(self.spec.relevant(find_stage(self.stage)))


def parse(model: type[BaseModel], values: dict[str, Any], *, what: str, flags: bool = False) -> Any:
    """Return `model(**values)`; `flags`: fields are called by their command-line option.

    Raises:
        ConfigError: names the first wrong field, its value and, for a misspelt field, the nearest name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{what}: unknown field `{field}`", hint=did_you_mean(field, model.model_fields)
            ) from None
        reason = first["msg"].replace("Input should", "it should")
        if flags:
            raise ConfigError(f"--{field.replace('_', '-')} is {first['input']!r}: {reason}") from None
        raise ConfigError(f"{what}: `{field}` is {first['input']!r}: {reason}") from None

"""What a run on a cluster is asked to be: one closed model, from a YAML file, from flags, or from both.

Knows names, ranges and what excludes what; knows nothing of the objects it becomes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn, Self, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nanochat import shape
from nanochat.errors import ConfigError, did_you_mean
from nanochat.run.config import SOURCES, Frozen, Positive, RunConfig, StageConfig
from nanochat.run.stage import STAGES
from nanochat.run.stage import stage as find_stage
from nanochat.settings import check_name

HOME = PurePosixPath("/data")
_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_IMAGE = r"^[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
_FORMS = {
    _DNS_LABEL: ("name", "lower-case letters, digits and `-`, at most 63"),
    _DNS_NAME: ("name", "lower-case letters, digits, `-` and `.`"),
    _QUANTITY: ("quantity", "e.g. `500m`, `4`, `16Gi`"),
    _IMAGE: (
        "image reference",
        "e.g. `registry.example.com/team/train:0.1.0`, or `...@sha256:` and its 64 hex digits",
    ),
}
"""What a pattern stands for, and what fits it."""
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("NANOCHAT_", "PET_", "MASTER_", "KUBERNETES_")


def _cpus(value: Any) -> Any:
    if isinstance(value, bool):
        raise _no_quantity()
    return str(value) if isinstance(value, int | float) else value


def _amount(value: Any) -> Any:
    if isinstance(value, float):
        raise _no_quantity()
    return _cpus(value)


def _no_quantity() -> PydanticCustomError:
    return PydanticCustomError("quantity", "it is no quantity", {"pattern": _QUANTITY})


DnsLabel = Annotated[str, Field(pattern=_DNS_LABEL)]
DnsName = Annotated[str, Field(pattern=_DNS_NAME)]
Image = Annotated[str, Field(pattern=_IMAGE)]
Quantity = Annotated[str, BeforeValidator(_amount), Field(pattern=_QUANTITY)]
"""An integer of YAML's counts as its text."""
Cpus = Annotated[str, BeforeValidator(_cpus), Field(pattern=_QUANTITY)]
Profile = Literal["8xh100", "8xa100", "1xh100", "cpu"]
JobKind = Literal["pytorchjob", "trainjob", "job"]


class Overrides(Frozen):
    """What differs from the preset: fields of `RunConfig`, where None counts as not given."""

    depth: Positive | None = None
    device_batch_size: Positive | None = None
    steps: Positive | None = None
    checkpoint_every: Positive | None = None
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = None
    max_problems: Positive | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    deterministic: bool | None = None
    dtype: Literal["auto", "bf16", "fp32"] | None = None
    allow_epochs: bool | None = None
    identity: PurePosixPath | None = None
    """A file on the volume, as the pods see it."""

    @field_validator("identity")
    @classmethod
    def _on_the_volume(cls, path: PurePosixPath | None) -> PurePosixPath | None:
        if path is not None and (".." in path.parts or not path.is_relative_to(HOME)):
            raise ConfigError(
                f"identity is `{path}`, which the pods cannot read",
                hint=f"copy the file to the volume and give its path there, e.g. `{HOME}/identity.jsonl`",
            )
        return path


class Volume(Frozen):
    """The PersistentVolumeClaim that everything is kept on."""

    claim: DnsName = "nanochat-data"
    size: Quantity | None = None
    """Given: the claim is made where it is missing. None: it must exist."""
    storage_class: DnsName | None = None
    """None: the cluster's default."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"


class Resources(Frozen):
    """What a pod that trains asks of its node, instead of what the hardware profile says.

    A pod that evaluates on one GPU gets one GPU's part of it.
    """

    cpu: Cpus | None = None
    memory: Quantity | None = None
    """Request and limit."""
    shm: Quantity | None = None
    """Limit of /dev/shm, which counts as memory."""
    rdma: str | None = None
    """Resource name of the RDMA devices, e.g. `rdma/hca_shared_devices_a`; `none`: TCP."""


class Toleration(Frozen):
    """A node taint that the pods accept, in Kubernetes' own words."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None


class RunSpec(Frozen):
    """One run on a cluster: `nanochat submit --spec run.yaml`."""

    run: str | None = None
    """Name of the run; the preset's name without it."""
    preset: str
    source: str | None = None
    """Where the data comes from; the preset's source without it."""
    overrides: Overrides = Overrides()
    stages: tuple[str, ...] | None = None
    """Names of stages; all of them without it."""
    image: Image
    """The `train` image, best by digest: a tag can change under a run."""
    namespace: DnsLabel
    volume: Volume = Volume()
    hardware: Profile
    nodes: Positive = 1
    """Nodes of the stages that train."""
    gpus: Positive | None = None
    """GPUs of each node; the profile's without it."""
    nproc: Positive | None = None
    """Ranks of each node: on `cpu` 1 without it, elsewhere always one a GPU."""
    kind: JobKind = "pytorchjob"
    queue: DnsName | None = None
    """Kueue's LocalQueue."""
    priority_class: DnsName | None = None
    deadline_minutes: Annotated[float, Field(gt=0)] | None = None
    """Of each attempt at a stage."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """A plan that costs more is refused."""
    max_attempts: Positive = 5
    """Attempts at a stage before a person has to look."""
    grace_s: Positive = 300
    """Seconds to write a checkpoint in after a signal."""
    resources: Resources = Resources()
    tolerations: tuple[Toleration, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Beside the hardware profile's own; an empty value takes one of those away."""
    image_pull_secrets: tuple[DnsName, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None, flags: Mapping[str, Any] | None = None) -> Self:
        """Return the spec of a YAML file with flags (names as in `FLAGS`, None: not given) over it.

        Raises:
            ConfigError: no such file, not YAML, a key given twice, an unknown key (the nearest name is
                offered), a wrong value, or two that exclude each other.
        """
        values = {} if path is None else read_yaml(path)
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        for name, value in given.items():
            _put(values, FLAGS[name], value)
        what = "options" if path is None else f"`{path}`"
        spec: Self = parse_spec(cls, values, what=what, flags=given)
        return spec

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_name("run", self.run_name)
        shape.preset(self.preset)
        if self.source is not None and self.source not in SOURCES:
            raise ConfigError(f"unknown source `{self.source}`", hint=did_you_mean(self.source, SOURCES))
        _check_stages(self.stages)
        self._check_ranks()
        if self.nodes > 1 and self.volume.access_mode != "ReadWriteMany":
            raise ConfigError(
                f"{self.nodes} nodes share the volume `{self.volume.claim}`, which is"
                f" {self.volume.access_mode}: one node at a time can mount it",
                hint="use a claim with access_mode ReadWriteMany (NFS, CephFS, FSx, Filestore) or nodes: 1",
            )
        _check_env(self.env)
        _check_labels(self.node_selector)
        return self

    def _check_ranks(self) -> None:
        if self.hardware == "cpu":
            if self.gpus is not None:
                raise ConfigError(
                    f"gpus is {self.gpus}, but hardware `cpu` has none", hint="remove gpus, or choose 1xh100"
                )
            return
        if self.gpus_per_node > self.profile_gpus:
            raise ConfigError(
                f"gpus is {self.gpus}, but a node of hardware `{self.hardware}` has {self.profile_gpus}",
                hint="use more nodes, or another hardware",
            )
        if self.nproc is not None and self.nproc != self.gpus_per_node:
            raise ConfigError(
                f"nproc is {self.nproc}, but there is one rank a GPU and {self.gpus_per_node} GPUs a node",
                hint="remove nproc and set gpus",
            )

    @property
    def run_name(self) -> str:
        """The run's name."""
        return self.run or self.preset

    @property
    def profile_gpus(self) -> int:
        """GPUs of a node of the hardware profile."""
        return 0 if self.hardware == "cpu" else int(self.hardware.split("x")[0])

    @property
    def gpus_per_node(self) -> int:
        """GPUs that a stage which trains takes of each node."""
        return self.gpus or self.profile_gpus

    @property
    def ranks_per_node(self) -> int:
        """Ranks of a stage that trains, on each node."""
        return self.gpus_per_node or self.nproc or 1

    def config(self) -> RunConfig:
        """Return what the run's stages are given."""
        given = self.overrides.model_dump(mode="json", exclude_none=True)
        return RunConfig(
            run=self.run_name,
            preset=self.preset,
            source=self.source or shape.preset(self.preset).source,
            nproc=self.ranks_per_node,
            **given,
        )

    def stage_config(self, stage: str) -> StageConfig:
        """Return what one stage is given.

        Raises:
            ConfigError: no such stage; the nearest name is offered.
        """
        return StageConfig(stage=find_stage(stage).name, spec=self.config())

    def stage_names(self) -> tuple[str, ...]:
        """Return the chosen stages in the order they run in."""
        return tuple(s.name for s in STAGES if self.stages is None or s.name in self.stages)


FLAGS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in RunSpec.model_fields if name not in ("overrides", "volume", "resources")},
    **{name: ("overrides", name) for name in Overrides.model_fields},
    **{name: ("volume", name) for name in Volume.model_fields},
    **{name: ("resources", name) for name in Resources.model_fields},
}
"""Where each command-line option goes: `claim` to `volume.claim`, `depth` to `overrides.depth`."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's one mapping.

    Raises:
        ConfigError: it is missing, not YAML, not a mapping, or gives a key twice; names the line.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            f"reading `{path}` needs PyYAML", hint="install `nanochat-platform[kubernetes]`"
        ) from None
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        _refuse_twice(node, path)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read `{path}`: {reason}", hint="give the file of a run's spec") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"`{path}`, line {line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"`{path}` is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"`{path}` holds no mapping of names to values", hint="start it with e.g. `preset: speedrun`"
        )
    return values


def parse_spec(model: type[RunSpec], values: dict[str, Any], *, what: str, flags: Iterable[str] = ()) -> Any:
    """Return `model(**values)`; fields of `flags` are called by their command-line option.

    Raises:
        ConfigError: names the first wrong field, its value and, for an unknown one, the nearest name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        _refuse(model, error, what=what, options={FLAGS[name] for name in flags})


def parse_options(model: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """Return `model(**values)`, where each value is that of the option with the field's name.

    Raises:
        ConfigError: names the first wrong option, its value and what fits it.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        _refuse(model, error, what="options", options={(name,) for name in values})


def _refuse(
    model: type[BaseModel], error: ValidationError, *, what: str, options: set[tuple[str, ...]]
) -> NoReturn:
    # An unknown key first: the field that is "missing" is most often the misspelt one.
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    loc = tuple(str(part) for part in first["loc"])
    field = ".".join(loc)
    if first["type"] == "extra_forbidden":
        known = _model_at(model, loc[:-1]).model_fields
        hint = did_you_mean(loc[-1], known)
        if len(loc) == 1 and (place := FLAGS.get(field)):
            hint = f"write it in `{place[0]}`: `{place[0]}: {{{field}: ...}}`"
        raise ConfigError(f"{what}: unknown field `{field}`", hint=hint) from None
    if first["type"] == "missing":
        option = f"`--{loc[-1].replace('_', '-')}`"
        hint = f"add `{field}:`, or give {option}"
        if field == "namespace":
            hint += ", or set one in the kubeconfig's context"
        raise ConfigError(f"{what}: `{field}` is not given", hint=hint) from None
    if first["input"] is None:
        raise ConfigError(f"{what}: `{field}` has no value", hint=_filled(model, first)) from None
    reason = first["msg"].replace("Input should", "it should")
    fix = _part_of_a_node(first) or _choices(first["input"], first) or _in_words(first)
    if form := _FORMS.get(first.get("ctx", {}).get("pattern", "")):
        reason, fix = f"it is no {form[0]}", form[1]
    name = f"--{loc[-1].replace('_', '-')}" if loc in options else f"{what}: `{field}`"
    raise ConfigError(f"{name} is {first['input']!r}: {reason}", hint=fix) from None


def _choices(value: Any, error: Mapping[str, Any]) -> str | None:
    if error["type"] != "literal_error" or not isinstance(value, str):
        return None
    return did_you_mean(value, re.findall(r"'([^']+)'", error["ctx"]["expected"]))


def _part_of_a_node(error: Mapping[str, Any]) -> str | None:
    match = re.fullmatch(r"([1-7])(x.+)", str(error["input"])) if error["loc"] == ("hardware",) else None
    if match is None or (whole := f"8{match[2]}") not in get_args(Profile):
        return None
    return f"`hardware: {whole}` with `gpus: {match[1]}`"


def _filled(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    name, *inner = error["loc"]
    if inner or not model.model_fields[name].is_required():
        return "write one, or remove the line"
    hint = f"write it after `{name}:`, or give `--{name}`"
    choices = _choices("", error)
    return f"{hint}; {choices}" if choices else hint


def _in_words(error: Mapping[str, Any]) -> str | None:
    """Return what to write instead of a value of another type, or out of range."""
    value, kind, limits = error["input"], error["type"], error.get("ctx", {})
    if kind == "string_type" and not isinstance(value, dict | list):
        return "write it in quotes"
    if kind == "tuple_type" and isinstance(value, str):
        return f"write a list: `{error['loc'][-1]}: [{value}]`"
    if kind == "greater_than_equal":
        return f"give a whole number, {limits['ge']} or more"
    if kind == "greater_than":
        return f"give a number above {limits['gt']:g}"
    return "give a whole number" if kind.startswith("int_") else None


def _model_at(model: type[BaseModel], loc: tuple[str, ...]) -> type[BaseModel]:
    """Return the model of a nested field: an item of a list has the model of the list's items."""
    for part in loc:
        if part.isdigit():
            continue
        annotation = model.model_fields[part].annotation
        nested = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
        model = next(a for a in nested if issubclass(a, BaseModel))
    return model


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        inner = values.get(parent)
        values[parent] = inner = dict(inner) if isinstance(inner, dict) else {}
        values = inner
    values[last] = value


def _refuse_twice(node: Any, path: Path) -> None:
    """YAML keeps the last of two equal keys in silence; a spec that says two things is a mistake."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConfigError(
                    f"`{path}`, line {key.start_mark.line + 1}: `{key.value}` is given twice",
                    hint="keep one of them",
                )
            seen.add(str(key.value))
            _refuse_twice(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, path)


def _check_stages(stages: tuple[str, ...] | None) -> None:
    if stages is None:
        return
    for name in stages:
        find_stage(name)
    if not stages:
        raise ConfigError("stages is empty", hint="remove it for all stages, or name at least one")


def _check_env(env: Mapping[str, str]) -> None:
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"env `{name}` is not a name of an environment variable")
        if name.startswith(_OURS) or name in ("RANK", "WORLD_SIZE", "HOME"):
            raise ConfigError(
                f"env `{name}` is set by the platform or by the training operator",
                hint="remove it; topology and settings come from the spec's own fields",
            )


def _check_labels(selector: Mapping[str, str]) -> None:
    for key, value in selector.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(f"node_selector `{key}: {value}` is not a label of a node")

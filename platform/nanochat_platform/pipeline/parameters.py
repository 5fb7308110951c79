"""The parameters of the pipeline: names, types, defaults, and what they mean for a run.

Kubeflow Pipelines has no null, so 0 and the empty string mean "not given". Knows
nothing of the pipeline's file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from nanochat.run.config import Frozen, parse
from nanochat_platform.kube.names import CLAIM

TRAIN_IMAGE = "localhost/nanochat/train:0.1.0"
SUBMIT_IMAGE = "localhost/nanochat/submit:0.1.0"
"""Never pulled from somebody else's registry: the parameters `image` and `submit_image` name your own."""
SMALL_PRESETS = ("smoke", "tiny")
"""Presets that a processor trains; the others need GPUs."""

Count = Annotated[int, Field(ge=0)]


class Parameters(Frozen):
    """What a run of the pipeline can be given; the field order is that of the compiled file."""

    preset: str = Field("speedrun", description="Row of the preset table: smoke, tiny, speedrun, d26, ...")
    run: str = Field("", description="Name of the run's folder on the volume; empty: the preset's name.")
    source: str = Field("", description="Where the data comes from; empty: the preset's source.")
    identity: str = Field("", description="JSONL of your own identity conversations, on the volume.")
    depth: Count = Field(0, description="The one dial: layers; 0: the preset's.")
    steps: Count = Field(0, description="Optimizer steps of each training stage; 0: the preset's.")
    device_batch_size: Count = Field(0, description="Rows on a device at once; 0: the preset's.")
    checkpoint_every: Count = Field(0, description="Steps between checkpoints; 0: by time alone.")
    checkpoint_minutes: float = Field(2.0, gt=0, description="Minutes between checkpoints.")
    max_problems: Count = Field(0, description="Problems of an evaluation task at most; 0: the preset's.")
    seed: Count = Field(42, description="Seed of weights and data order.")
    deterministic: bool = Field(False, description="Bit-identical resume; slower.")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="Compute type: auto, bf16 or fp32.")
    allow_epochs: bool = Field(False, description="Repeat the data where it is too little.")
    image: str = Field(TRAIN_IMAGE, description="Image of the training pods; best by digest.")
    submit_image: str = Field(SUBMIT_IMAGE, description="Light image of the pipeline's own steps.")
    hardware: str = Field("", description="8xh100, 8xa100, 1xh100, cpu; empty: what the preset needs.")
    nodes: int = Field(1, ge=1, description="Nodes of a training stage.")
    gpus: Count = Field(0, description="GPUs of a node; 0: the hardware's.")
    nproc: Count = Field(0, description="Ranks of a node; 0: one a GPU.")
    kind: Literal["pytorchjob", "trainjob", "job"] = Field(
        "pytorchjob", description="Object that runs a stage: pytorchjob, trainjob or job."
    )
    namespace: str = Field("", description="Where the training jobs run; empty: beside the pipeline.")
    claim: str = Field(CLAIM, description="PersistentVolumeClaim with the data and the runs.")
    queue: str = Field("", description="Kueue LocalQueue of the training jobs.")
    priority_class: str = Field("", description="PriorityClass of the training pods.")
    cpu: str = Field("", description="CPU of a training pod, as Kubernetes writes it; empty: the hardware's.")
    memory: str = Field("", description="Memory of a training pod, e.g. 512Gi; empty: the hardware's.")
    rdma: str = Field("", description="RDMA resource of a node; empty: the hardware's; none: TCP.")
    deadline_minutes: float = Field(0.0, ge=0, description="Minutes of an attempt at most; 0: no limit.")
    budget_usd: float = Field(0.0, ge=0, description="Refuse a plan that costs more; 0: no limit.")
    max_attempts: int = Field(5, ge=1, description="Attempts at a stage whose pods were lost.")
    wait_for_nodes: bool = Field(False, description="Do not refuse where an autoscaler must bring the nodes.")
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes that train.")
    tolerations: list[dict[str, Any]] = Field([], description="Tolerations of the training pods.")
    env: dict[str, str] = Field({}, description="Further environment variables of the training pods.")
    image_pull_secrets: list[str] = Field([], description="Secrets to pull the training image with.")

    @classmethod
    def of(cls, values: Mapping[str, Any], *, what: str = "pipeline") -> Parameters:
        """Return the parameters in `values`, defaults for the others.

        Raises:
            ConfigError: an unknown name, or a value out of range; names it.
        """
        found: Parameters = parse(cls, dict(values), what=what)
        return found

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        return self.run or self.preset

    def overrides(self) -> dict[str, Any]:
        """Return the settings of the run that differ from the preset's, by their `RunConfig` field."""
        names = ("identity", "depth", "steps", "device_batch_size", "checkpoint_every", "max_problems")
        given = {name: value for name in names if (value := getattr(self, name))}
        given |= {"checkpoint_minutes": self.checkpoint_minutes, "seed": self.seed, "dtype": self.dtype}
        return given | {"deterministic": self.deterministic, "allow_epochs": self.allow_epochs}

    def run_spec(self, namespace: str) -> dict[str, Any]:
        """Return the `RunSpec` document of the run, for jobs in `namespace` unless one was given."""
        given = {
            "source": self.source,
            "gpus": self.gpus,
            "nproc": self.nproc,
            "queue": self.queue,
            "priority_class": self.priority_class,
            "deadline_minutes": self.deadline_minutes,
            "budget_usd": self.budget_usd,
            "node_selector": self.node_selector,
            "tolerations": self.tolerations,
            "env": self.env,
            "image_pull_secrets": self.image_pull_secrets,
            "resources": {
                name: value for name in ("cpu", "memory", "rdma") if (value := getattr(self, name))
            },
        }
        return {
            "run": self.run_name,
            "preset": self.preset,
            "overrides": self.overrides(),
            "image": self.image,
            "namespace": self.namespace or namespace,
            "volume": {"claim": self.claim},
            "hardware": self.hardware or ("cpu" if self.preset in SMALL_PRESETS else "8xh100"),
            "nodes": self.nodes,
            "kind": self.kind,
            "max_attempts": self.max_attempts,
            **{name: value for name, value in given.items() if value},
        }

    def flags(self) -> list[str]:
        """Return the run as options of `nanochat run STAGE` on this machine."""
        options: dict[str, Any] = {"run": self.run_name, "preset": self.preset, **self.overrides()}
        options |= {name: value for name in ("source", "nproc") if (value := getattr(self, name))}
        flags = []
        for name, value in options.items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{option}" if value else f"--no-{option}")
            else:
                flags += [f"--{option}", str(value)]
        return flags

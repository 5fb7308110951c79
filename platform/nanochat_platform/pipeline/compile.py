"""Write the pipeline as one file that Kubeflow Pipelines 2 takes: one container step a stage.

The steps carry no GPU: each follows a training job that it made. Knows the file
format through the SDK, which only this module imports; the same input gives the
same bytes.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanochat.errors import ConfigError, UnavailableError
from nanochat.files import write_bytes
from nanochat.run.config import Frozen
from nanochat.run.stage import STAGES, Stage
from nanochat_platform.kube.names import HOME, STAGE, UID, app_labels
from nanochat_platform.pipeline import artifacts
from nanochat_platform.pipeline.parameters import Parameters
from nanochat_platform.spec import DnsName, Image, parse_options

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

NAME = "speedrun"
STEP = ("python", "-m", "nanochat_platform.pipeline.step")
KILL = ("python", "-m", "nanochat_platform.pipeline.kill", "%d")
"""What a backend runs in the step's container to stop it; `%d` becomes the signal's number."""


class _Given(Frozen):
    """What a spec of a run would refuse is refused before it is a default."""

    image: Image | None = None
    submit_image: Image | None = None
    claim: DnsName | None = None


def compile_pipeline(
    path: Path, *, image: str | None = None, submit_image: str | None = None, claim: str | None = None
) -> None:
    """Write the pipeline's file; the images and the claim replace the defaults of those parameters.

    Raises:
        ConfigError: an image or the claim is none, or `path` cannot be a file.
        UnavailableError: the SDK is not installed.
        StorageError: the volume refuses the file.
    """
    _check_file(path)
    values = {"image": image, "submit_image": submit_image, "claim": claim}
    given = {name: value for name, value in values.items() if value is not None}
    parse_options(_Given, given)
    defaults = Parameters.of(given)
    try:
        from kfp import compiler
    except ImportError:
        raise UnavailableError(
            "`kfp` is not installed, and only it writes the pipeline's file",
            hint="pip install 'nanochat-platform[pipeline]'",
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(_pipeline(defaults), str(file))
        write_bytes(path, file.read_bytes())


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(
            f"--output is `{path}`, which is a folder", hint=f"name a file in it: `-o {path / NAME}.yaml`"
        )
    file = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        raise ConfigError(
            f"--output is `{path}`, but `{file}` is no folder",
            hint="name a file in a folder, or in a new one",
        )


def _pipeline(defaults: Parameters) -> Any:
    from kfp import dsl

    names = list(Parameters.model_fields)

    def speedrun(*channels: Any) -> None:
        values = dict(zip(names, channels, strict=True))
        tasks: dict[str, PipelineTask] = {}
        for stage in STAGES:
            read = {source.name: tasks[source.name].outputs[a.name] for source, a in artifacts.inputs(stage)}
            task = _component(stage)(**values, **read)
            _place(task, stage, values)
            if tasks:
                task.after(list(tasks.values())[-1])
            tasks[stage.name] = task

    lines = [f"    {name}: {field.description}" for name, field in Parameters.model_fields.items()]
    title = "Train a chat model from real text: data, tokenizer, training, evaluation, report."
    speedrun.__doc__ = "\n".join([title, "", "Args:", *lines])
    speedrun.__signature__ = _signature(  # type: ignore[attr-defined]
        {name: (kind, getattr(defaults, name)) for name, kind in _types().items()}
    )
    return dsl.pipeline(speedrun, name=NAME)


def _component(stage: Stage) -> Callable[..., PipelineTask]:
    """Return the component of a stage: every parameter and artifact reaches it in one JSON, `{{$}}`."""
    from kfp import dsl

    kinds = {
        "system.Artifact": dsl.Artifact,
        "system.Dataset": dsl.Dataset,
        "system.HTML": dsl.HTML,
        "system.Markdown": dsl.Markdown,
        "system.Metrics": dsl.Metrics,
        "system.Model": dsl.Model,
    }

    def component(*placeholders: Any) -> Any:
        image = str(dict(zip(parameters, placeholders, strict=True))["submit_image"])
        args = ["--stage", stage.name, "--executor-input", "{{$}}"]
        args += [] if mounts(stage) else ["--no-volume"]
        return dsl.ContainerSpec(image=image, command=list(STEP), args=args)

    parameters: dict[str, Any] = dict(_types())
    parameters |= {source.name: dsl.Input[kinds[a.schema]] for source, a in artifacts.inputs(stage)}
    parameters |= {a.name: dsl.Output[kinds[a.schema]] for a in artifacts.outputs(stage)}
    component.__name__ = stage.name
    component.__signature__ = _signature(  # type: ignore[attr-defined]
        {name: (kind, inspect.Parameter.empty) for name, kind in parameters.items()}
    )
    made: Callable[..., PipelineTask] = dsl.container_component(component)
    return made


def mounts(stage: Stage) -> bool:
    """Return whether a stage's step mounts the volume.

    The first does not. Some volumes take their group from the first pod that mounts them, and on a new
    one that must be a training pod, whose group then owns it: a backend cannot give a step's pod a group.
    """
    return bool(stage.reads)


def _place(task: PipelineTask, stage: Stage, values: dict[str, Any]) -> None:
    """Say what the step's pod is: image, size, user, volume, how it is stopped."""
    from kfp import kubernetes

    task.set_caching_options(False)  # the run's own records decide what is done
    task.set_cpu_request("50m").set_cpu_limit("1").set_memory_request("128Mi").set_memory_limit("512Mi")
    task.set_env_variable("NANOCHAT_HOME", HOME)
    task.set_env_variable("PYTHONUNBUFFERED", "1")
    if mounts(stage):
        kubernetes.mount_pvc(task, pvc_name=values["claim"], mount_path=HOME)
    kubernetes.set_security_context(task, run_as_user=UID, run_as_group=UID, run_as_non_root=True)
    kubernetes.add_pod_annotation(task, "workflows.argoproj.io/kill-cmd-main", json.dumps(list(KILL)))
    for key, value in {**app_labels("pipeline"), STAGE: stage.name}.items():
        kubernetes.add_pod_label(task, key, value)


def _types() -> dict[str, Any]:
    """Return the SDK's type of each parameter: what remains of an annotation without ranges and choices."""
    origins = {
        name: getattr(field.annotation, "__origin__", field.annotation)
        for name, field in Parameters.model_fields.items()
    }
    return {name: str if origin is Literal else origin for name, origin in origins.items()}


def _signature(parameters: dict[str, tuple[Any, Any]]) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [inspect.Parameter(n, kind, annotation=a, default=d) for n, (a, d) in parameters.items()]
    )

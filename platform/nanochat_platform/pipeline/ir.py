"""Read a compiled pipeline: its parameters, its steps in order, and what each step is started with.

Follows how a backend's driver and launcher read the same file. Takes the part of
the format that `compile` writes and refuses the rest. Knows nothing of who runs a
step, and needs no SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.errors import ConfigError, did_you_mean

_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
_ZERO: dict[str, Any] = {
    "STRING": "",
    "NUMBER_INTEGER": 0,
    "NUMBER_DOUBLE": 0.0,
    "BOOLEAN": False,
    "STRUCT": {},
    "LIST": [],
}
_WORDS = {
    "STRING": "a text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "STRUCT": "a JSON object",
    "LIST": "a JSON list",
}

Key = tuple[str, str]
"""Producing step and the name of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One container step."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: Mapping[str, str]
    resources: Mapping[str, Any]
    after: tuple[str, ...]
    parameters: Mapping[str, str]
    """Input -> the pipeline's parameter that it takes."""
    artifacts: Mapping[str, Key]
    outputs: Mapping[str, Mapping[str, str]]
    """Output artifact -> its type."""
    platform: Mapping[str, Any]
    """Its part of the Kubernetes platform spec: volume, user, labels, annotations."""
    cached: bool

    def executor_input(
        self,
        values: Mapping[str, Any],
        produced: Mapping[Key, Mapping[str, Any]],
        *,
        uri: Callable[[str, str], str],
        output_file: str,
    ) -> dict[str, Any]:
        """Return the `ExecutorInput` that the step is started with.

        Args:
            values: the pipeline's parameters.
            produced: what earlier steps left.
            uri: gives an output artifact of this step its place.
            output_file: where the step says what became of its outputs.
        """
        return {
            "inputs": {
                "parameterValues": {name: values[source] for name, source in self.parameters.items()},
                "artifacts": {
                    name: {"artifacts": [dict(produced[key])]} for name, key in self.artifacts.items()
                },
            },
            "outputs": {
                "artifacts": {
                    name: {"artifacts": [{"name": name, "type": dict(kind), "uri": uri(self.name, name)}]}
                    for name, kind in self.outputs.items()
                },
                "outputFile": output_file,
            },
        }

    def argv(self, executor_input: Mapping[str, Any]) -> list[str]:
        """Return command and arguments with their placeholders replaced."""
        return [resolve(part, executor_input) for part in (*self.command, *self.args)]


def resolve(text: str, executor_input: Mapping[str, Any]) -> str:
    """Replace `{{$}}` and the input parameters' placeholders in a text.

    Raises:
        ConfigError: a placeholder of another kind.
    """
    values = executor_input["inputs"]["parameterValues"]

    def value(match: re.Match[str]) -> str:
        found = values[match[1]]
        return found if isinstance(found, str) else json.dumps(found)

    found = _INPUT.sub(value, text.replace("{{$}}", json.dumps(executor_input)))
    if "{{$" in text and "{{$" in _INPUT.sub("", text.replace("{{$}}", "")):
        raise ConfigError(f"pipeline file: no such placeholder is known: {text}")
    return found


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A compiled pipeline."""

    name: str
    types: Mapping[str, str]
    defaults: Mapping[str, Any]
    steps: tuple[Step, ...] = field(default=())
    """Each after all that it depends on."""

    @classmethod
    def load(cls, path: Path) -> Pipeline:
        """Return the pipeline of a file that `nanochat pipeline compile` wrote.

        Raises:
            ConfigError: no such file, not YAML, or a part of the format that has no meaning here.
        """
        import yaml

        try:
            spec, *rest = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"pipeline file `{path}` does not exist",
                hint="`nanochat pipeline compile -o speedrun.yaml` writes one",
            ) from None
        except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"cannot read pipeline file `{path}`: {first}") from None
        try:
            platform = rest[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if rest else {}
            given = spec["root"].get("inputDefinitions", {}).get("parameters", {})
            steps = [_step(name, spec, platform) for name in spec["root"]["dag"]["tasks"]]
            return cls(
                name=spec["pipelineInfo"]["name"],
                types={name: kind["parameterType"] for name, kind in given.items()},
                defaults={
                    name: kind["defaultValue"] for name, kind in given.items() if "defaultValue" in kind
                },
                steps=tuple(_in_order(steps)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"`{path}` is not a pipeline of this program: {type(error).__name__} {error}",
                hint="`nanochat pipeline compile -o speedrun.yaml` writes one",
            ) from None

    def arguments(self, texts: Iterable[str]) -> dict[str, Any]:
        """Return all parameters: `NAME=VALUE` texts over defaults, values as JSON where that is meant.

        Raises:
            ConfigError: an unknown name (the nearest is offered), a wrong type, or a missing one.
        """
        given: dict[str, Any] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"`{text}` is no parameter", hint="write NAME=VALUE, e.g. preset=tiny")
            given[name] = value if self.types.get(name) == "STRING" else _json(value)
        return self.values(given)

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters: those given over defaults.

        Raises:
            ConfigError: an unknown name (the nearest is offered), a wrong type, or a missing one.
        """
        found = dict(self.defaults)
        for name, value in given.items():
            if name not in self.types:
                raise ConfigError(
                    f"pipeline `{self.name}` has no parameter `{name}`", hint=did_you_mean(name, self.types)
                )
            found[name] = _typed(name, self.types[name], value)
        if missing := sorted(set(self.types) - set(found)):
            raise ConfigError(f"pipeline `{self.name}` needs the parameter `{missing[0]}`")
        return {name: _typed(name, self.types[name], value) for name, value in found.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def _typed(name: str, kind: str, value: Any) -> Any:
    if kind not in _ZERO:
        raise ConfigError(f"pipeline parameter `{name}` is of type {kind}, which has no meaning here")
    zero = _ZERO[kind]
    if isinstance(value, float) and isinstance(zero, int) and value.is_integer():
        value = int(value)  # every number of the file format is a float
    if isinstance(value, int) and isinstance(zero, float) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(zero):
        raise ConfigError(f"pipeline parameter `{name}` is {value!r}, not {_WORDS[kind]}")
    return value


def _step(name: str, spec: Mapping[str, Any], platform: Mapping[str, Any]) -> Step:
    task = spec["root"]["dag"]["tasks"][name]
    component = spec["components"][task["componentRef"]["name"]]
    for key in ("triggerPolicy", "iteratorPolicy", "parameterIterator", "artifactIterator", "retryPolicy"):
        if key in task:
            raise ConfigError(f"pipeline step `{name}`: `{key}` has no meaning here")
    if "executorLabel" not in component:
        raise ConfigError(f"pipeline step `{name}` is not a container")
    label = component["executorLabel"]
    container = spec["deploymentSpec"]["executors"][label]["container"]
    inputs = task.get("inputs", {})
    return Step(
        name=name,
        image=container["image"],
        command=tuple(container.get("command", ())),
        args=tuple(container.get("args", ())),
        env={variable["name"]: variable["value"] for variable in container.get("env", ())},
        resources=container.get("resources", {}),
        after=tuple(task.get("dependentTasks", ())),
        parameters={key: source["componentInputParameter"] for key, source in _items(inputs, "parameters")},
        artifacts={
            key: (
                source["taskOutputArtifact"]["producerTask"],
                source["taskOutputArtifact"]["outputArtifactKey"],
            )
            for key, source in _items(inputs, "artifacts")
        },
        outputs={
            key: kind["artifactType"]
            for key, kind in _items(component.get("outputDefinitions", {}), "artifacts")
        },
        platform=platform.get(label, {}),
        cached=bool(task.get("cachingOptions", {}).get("enableCache", False)),
    )


def _items(values: Mapping[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    found: Mapping[str, Any] = values.get(name, {})
    return found.items()


def _in_order(steps: Iterable[Step]) -> Iterable[Step]:
    """Yield steps after those they depend on, by name where there is a choice.

    Raises:
        ConfigError: they depend on each other in a circle, or on a step that there is not.
    """
    left = {step.name: step for step in sorted(steps, key=lambda step: step.name)}
    done: set[str] = set()
    while left:
        ready = next((step for step in left.values() if done.issuperset(step.after)), None)
        if ready is None:
            raise ConfigError(f"pipeline step `{min(left)}` depends on a step that cannot come before it")
        del left[ready.name]
        done.add(ready.name)
        yield ready

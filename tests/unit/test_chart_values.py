"""The values schema is closed: what it does not know it refuses, down to the last field of a toleration."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from tests.charts.docs import README, SCHEMA, at, comments, defaults, readme, schema_text
from tests.charts.helm import CHART, HelmError, all_options, one, schema, template, template_text, value_sets

pytestmark = pytest.mark.rung_a

VALIDATOR = jsonschema.Draft202012Validator(schema())

# Maps whose keys are the user's own words: any key that is well formed is right.
MAPS = {"labels", "annotations", "podLabels", "podAnnotations", "nodeSelector", "matchLabels"}
MAPS |= {"requests", "limits", "volumeAttributes"}

GPU_REQUEST = {"requests": {"nvidia.com/gpu": 1}}

Path = tuple[str | int, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every leaf of a value set: what is no mapping with keys in it and no list of such."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def parent(values: Any, path: Path) -> Any:
    """Return the mapping or list that holds the end of a path."""
    for part in path[:-1]:
        values = values[part]
    return values


def misspelt() -> Iterator[tuple[Path, str]]:
    """Yield (path, key with one letter dropped) for every leaf key of the all-options values."""
    for path in leaves(all_options()):
        key = path[-1]
        if isinstance(key, str) and not (len(path) > 1 and path[-2] in MAPS):
            for index in range(len(key)):
                if (wrong := key[:index] + key[index + 1 :]) and wrong != key:
                    yield path, wrong


def refusals(values: Any) -> list[str]:
    return [f"{list(error.absolute_path)}: {error.message}" for error in VALIDATOR.iter_errors(values)]


def test_the_schema_is_one_and_takes_every_value_set():
    jsonschema.Draft202012Validator.check_schema(schema())
    assert not refusals(defaults())
    for name, values in value_sets().items():
        assert not refusals(values), name


def test_every_leaf_key_with_one_letter_dropped_is_refused():
    cases = 0
    taken = []
    for path, wrong in misspelt():
        values = copy.deepcopy({path[0]: all_options()[path[0]]})  # alone: the others make it no worse
        holder = parent(values, path)
        holder[wrong] = holder.pop(path[-1])
        cases += 1
        if VALIDATOR.is_valid(values):
            taken.append((path, wrong))
    assert not taken
    assert cases > 2000


@pytest.mark.parametrize("path", [("model", "rn"), ("tolerations", 0, "efect"), ("ray", "head", "resorces")])
def test_helm_refuses_what_the_schema_refuses_and_names_it(path):
    values = copy.deepcopy(all_options())
    parent(values, path)[path[-1]] = "x"
    where = "/" + "/".join(map(str, path[:-1]))
    with pytest.raises(HelmError, match=f"at '{where}': additional properties '{path[-1]}' not allowed"):
        template(values)


def test_every_leaf_of_another_type_is_refused():
    taken = []
    for path in leaves(all_options()):
        if path[0] == "global":
            continue
        values = copy.deepcopy(all_options())
        parent(values, path)[path[-1]] = {"no": {"such": "thing"}}
        if VALIDATOR.is_valid(values):
            taken.append(path)
    assert not taken


def objects_of(node: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (pointer, schema) for every object schema in the document."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, inner in node.items():
            yield from objects_of(inner, f"{path}/{key}")
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from objects_of(inner, f"{path}/{index}")


def test_every_object_of_the_schema_is_closed_or_a_map_of_strings():
    for path, node in objects_of(schema()):
        if path == "#/properties/global":
            continue
        extra = node.get("additionalProperties")
        assert extra is False or (isinstance(extra, dict) and extra), path


def used(values: Any, node: Any, found: set[str], pointer: str) -> None:
    """Collect the pointers of all property schemas that a value set uses."""
    while "$ref" in node:
        pointer = node["$ref"]
        node = schema()["$defs"][pointer.removeprefix("#/$defs/")]
    if isinstance(values, dict):
        for key, inner in values.items():
            if key in node.get("properties", {}):
                at = f"{pointer}/properties/{key}"
                found.add(at)
                used(inner, node["properties"][key], found, at)
    elif isinstance(values, list) and "items" in node:
        for item in values:
            used(item, node["items"], found, f"{pointer}/items")


def test_the_all_options_set_uses_every_property_of_the_schema():
    found: set[str] = set()
    used(all_options(), schema(), found, "#")
    known = {
        f"{path}/properties/{name}"
        for path, node in objects_of(schema())
        for name in node.get("properties", ())
    }
    assert sorted(known - found) == []


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "Deployment"},
        {"model": {"run": "a", "folder": "a/chat_sft-1"}},
        {"model": {"run": "Not A Name"}},
        {"model": {"folder": "a/../b"}},
        {"apiKeys": {"existingSecret": "a", "hashes": ["0" * 64]}},
        {"apiKeys": {"hashes": ["sk-a-key-in-plain-text"]}},
        {"security": {"runAsUser": 0}},
        {"security": {"runAsGroup": 0}},
        {"image": {"repository": "a/b:latest"}},
        {"image": {"digest": "sha256:123"}},
        {"replicas": -1},
        {"replicas": "3"},
        {"server": {"maxRunning": 0}},
        {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]},
        {"volumes": [{"name": "a"}]},
        {"env": [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
        {"env": [{"name": "A", "value": 1}]},
        {"sidecars": [{"name": "a", "securityContext": {"privileged": True}}]},
        {"resources": {"requests": {"memry": "1Gi"}}},
        {"resources": {"requests": {"memory": "1GB"}}},
        {"service": {"port": 0}},
        {"ray": {"version": "latest"}},
        {"ray": {"upgradeStrategy": "NewClusterWithIncrementalUpgrade"}},
        {"httpRoute": {"requestTimeout": "forever"}},
        {"podDisruptionBudget": {"maxUnavailable": 0}},
    ],
    ids=lambda values: json.dumps(values)[:60],
)  # fmt: skip
def test_values_that_cannot_work_are_refused(values):
    assert refusals(values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"autoscaling": {"enabled": True, "minReplicas": 5}}, "minReplicas is 5, autoscaling.maxReplicas 4"),
        (
            {"mode": "rayservice", "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}},
            "minReplicas is 3, autoscaling.maxReplicas 2",
        ),
        ({"updateStrategy": {"maxSurge": 0}}, "maxSurge and updateStrategy.maxUnavailable are both 0"),
        ({"updateStrategy": {"maxSurge": "0%", "maxUnavailable": "00%"}}, "are both 0"),
        ({"ingress": {"enabled": True, "hosts": []}}, "ingress.hosts is empty"),
        ({"resources": GPU_REQUEST}, "resources.requests has nvidia.com/gpu: 1, resources.limits has none"),
        ({"mode": "rayservice", "resources": GPU_REQUEST}, "resources.requests has nvidia.com/gpu: 1"),
        (
            {"mode": "rayservice", "ray": {"head": {"resources": GPU_REQUEST}}},
            "ray.head.resources.requests has nvidia.com/gpu: 1",
        ),
        ({"sidecars": [{"name": "a", "resources": GPU_REQUEST}]}, "a: resources.requests has nvidia.com/gpu"),
        ({"initContainers": [{"name": "a", "resources": GPU_REQUEST}]}, "a: resources.requests has nvidia"),
        ({"resources": {"requests": {"hugepages-2Mi": "4Mi"}}}, "resources.requests has hugepages-2Mi: 4Mi"),
    ],
    ids=lambda case: json.dumps(case)[:60],
)
def test_values_that_kubernetes_would_refuse_together_are_refused_by_the_templates(values, says):
    assert not refusals(values)
    with pytest.raises(HelmError, match=re.escape(says)):
        template(values)


@pytest.mark.parametrize(
    "values",
    [
        {"autoscaling": {"minReplicas": 5}},
        {"autoscaling": {"enabled": True, "minReplicas": 4}},
        {"updateStrategy": {"type": "Recreate", "maxSurge": 0}},
        {"mode": "rayservice", "updateStrategy": {"maxSurge": 0}},
        {"updateStrategy": {"maxSurge": 0, "maxUnavailable": "10%"}},
        {"ingress": {"hosts": []}},
        {"resources": {**GPU_REQUEST, "limits": {"nvidia.com/gpu": 1}}},
    ],
    ids=lambda values: json.dumps(values)[:60],
)
def test_their_neighbours_are_taken(values):
    assert template(values)


def test_no_values_make_a_pod_less_than_restricted():
    words = json.dumps(schema())
    for loose in (
        "privileged",
        "hostNetwork",
        "hostPID",
        "hostPath",
        "capabilities",
        "allowPrivilegeEscalation",
    ):
        assert loose not in words


def test_every_value_is_documented_once_and_the_readme_and_schema_say_the_same():
    documented = set(comments())
    missing = []
    for path in leaves(defaults()):
        names = [str(part) for part in path if isinstance(part, str)]
        if not any(".".join(names[:depth]) in documented for depth in range(1, len(names) + 1)):
            missing.append(path)
    assert not missing
    assert README.read_text() == readme(), "run `python -m tests.charts`"
    assert SCHEMA.read_text() == schema_text(), "run `python -m tests.charts`"


def changed(value: Any) -> Any:
    """Return another value that the schema takes, for an integer or the strategy."""
    return value + 1 if isinstance(value, int) else "Recreate"


@pytest.mark.parametrize("enabled", [False, True], ids=["replicas", "autoscaled"])
def test_what_is_said_to_be_for_deployments_only_changes_nothing_of_ray(enabled):
    plain: dict[str, Any] = {"mode": "rayservice", "autoscaling": {"enabled": enabled}}
    values = copy.deepcopy(plain)
    for path, text in comments().items():
        if "`mode: deployment` only" in text:
            holder = values
            *folders, name = path.split(".")
            for folder in folders:
                holder = holder.setdefault(folder, {})
            holder[name] = changed(at(defaults(), path))
    assert len(values) > len(plain)
    assert template_text(values) == template_text(plain)


def test_the_readmes_installs_render_and_its_gpu_values_are_skaffolds():
    commands = [
        shlex.split(line) for line in README.read_text().splitlines() if line.startswith("helm install ")
    ]
    gpus = []
    for words in commands:
        values: dict[str, Any] = {}
        if "-f" in words:
            values = yaml.safe_load((CHART.parents[1] / words[words.index("-f") + 1]).read_text())
        for pair in words[words.index("--set") + 1].split(","):
            path, _, value = pair.partition("=")
            section, name = path.split(".")
            values.setdefault(section, {})[name] = value
        (container,) = one(template(values), "Deployment")["spec"]["template"]["spec"]["containers"]
        gpus.append(container["resources"]["limits"].get("nvidia.com/gpu", 0))
    assert gpus == [0, 1]
    (shown,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert yaml.safe_load(shown) == yaml.safe_load((CHART / "skaffold" / "gpu.yaml").read_text())


def test_every_property_has_a_default():
    def check(node: dict[str, Any], values: dict[str, Any], path: str) -> Iterator[str]:
        for name, inner in node["properties"].items():
            if name == "global":
                continue
            if name not in values:
                yield f"{path}{name}"
            elif "properties" in inner:
                yield from check(inner, values[name], f"{path}{name}.")

    assert not list(check(schema(), defaults(), ""))

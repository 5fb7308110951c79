"""skaffold.yaml against Skaffold's own schema, and against every file, value and service that it names."""

from __future__ import annotations

import copy
import functools
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.charts import modules
from tests.charts.helm import one, schema, template

pytestmark = pytest.mark.rung_a

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("local", "ray", "gpu")


@functools.cache
def config():
    return yaml.safe_load((ROOT / "skaffold.yaml").read_text())


def merged(name):
    """Return the configuration with a profile laid over it: patches first, then whole sections."""
    result = copy.deepcopy(config())
    (profile,) = [p for p in result.pop("profiles") if p["name"] == name]
    for patch in profile.get("patches", ()):
        assert patch["op"] == "replace"
        *parents, last = patch["path"].strip("/").split("/")
        node = result
        for part in parents:
            node = node[int(part) if isinstance(node, list) else part]
        assert last in node
        node[last] = patch["value"]
    for section in ("build", "deploy"):
        result[section] = {**result[section], **profile.get(section, {})}
    result["portForward"] = profile.get("portForward", result["portForward"])
    return result


def values_of(release):
    """Return the values of a release, as helm merges them for these files."""
    values: dict = {}
    for name in release.get("valuesFiles", ()):
        values |= yaml.safe_load((ROOT / name).read_text())
    return values


@modules.needs_go
def test_skaffold_takes_it():
    version = config()["apiVersion"].removeprefix("skaffold/")
    sources = modules.folder("github.com/GoogleContainerTools/skaffold/v2")
    skaffold = json.loads((sources / "docs-v2/content/en/schemas" / f"{version}.json").read_text())
    validator = jsonschema.Draft7Validator(skaffold)
    assert not [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(config())]
    misspelt = copy.deepcopy(config())
    misspelt["deploy"]["helm"]["releases"][0]["chartPth"] = "x"
    assert not validator.is_valid(misspelt)


def test_the_profiles_are_those_of_the_documentation():
    assert tuple(profile["name"] for profile in config()["profiles"]) == PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_an_image_is_built_from_files_that_are_there(name):
    (artifact,) = merged(name)["build"]["artifacts"]
    for pattern in artifact["custom"]["dependencies"]["paths"]:
        assert any(ROOT.glob(pattern)), pattern
    words = shlex.split(artifact["custom"]["buildCommand"])
    dockerfile = ROOT / words[words.index("--file") + 1]
    argument, _, value = words[words.index("--build-arg") + 1].partition("=")
    assert value == ("cuda" if name == "gpu" else "cpu")
    assert f"ARG {argument}=" in dockerfile.read_text()
    assert words[words.index("make") + 1] == "wheels"
    assert re.search("^wheels:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", PROFILES)
def test_the_chart_is_installed_with_values_it_takes(name):
    merged_config = merged(name)
    (release,) = merged_config["deploy"]["helm"]["releases"]
    values = values_of(release)
    for path in release["setValueTemplates"]:
        node = schema()
        for part in path.split("."):
            node = node["properties"][part]
    assert (ROOT / release["chartPath"] / "Chart.yaml").exists()
    objects = template(values, release=release["name"])
    (forward,) = merged_config["portForward"]
    if values["mode"] == "rayservice":
        service = one(objects, "RayService")["spec"]["serveService"]
    else:
        service = one(objects, "Service")
    assert forward["resourceName"] == service["metadata"]["name"]
    assert forward["port"] == service["spec"]["ports"][0]["port"]
    assert forward["namespace"] == release["namespace"]


def test_the_built_image_is_the_one_that_the_chart_starts():
    (artifact,) = config()["build"]["artifacts"]
    container = one(template({}), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].partition(":")[0] == artifact["image"]


def test_python_files_are_copied_to_where_python_looks_first():
    local = merged("local")
    (artifact,) = local["build"]["artifacts"]
    (release,) = local["deploy"]["helm"]["releases"]
    spec = one(template(values_of(release)), "Deployment")["spec"]["template"]["spec"]
    container = spec["containers"][0]
    (path,) = [item["value"] for item in container["env"] if item["name"] == "PYTHONPATH"]
    assert path in [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    watched = artifact["custom"]["dependencies"]["paths"]
    for rule in artifact["sync"]["manual"]:
        assert rule["dest"] == path
        assert rule["src"] in watched, "only what is watched is synchronised"
        (first, *_) = ROOT.glob(rule["src"])
        package = str(first.relative_to(ROOT)).removeprefix(rule.get("strip", "")).partition("/")[0]
        assert package in spec["initContainers"][0]["args"][0]


def test_the_copy_of_the_sources_works(tmp_path):
    values = yaml.safe_load((ROOT / "charts/nanochat/skaffold/local.yaml").read_text())
    (script,) = values["initContainers"][0]["args"]
    exec(compile(script.replace("/src/", f"{tmp_path}/"), "sources", "exec"), {})  # noqa: S102
    assert (tmp_path / "nanochat" / "serve" / "main.py").exists()
    assert (tmp_path / "nanochat_platform" / "ray_serve.py").exists()


def test_the_profiles_values_are_not_part_of_the_packaged_chart():
    assert "skaffold/" in (ROOT / "charts/nanochat/.helmignore").read_text().splitlines()

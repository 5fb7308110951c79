"""The real helm over our chart. Knows nothing of clusters."""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.harness.tools import helm, tool_env
from tests.schemas import load_all

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "nanochat"
HERE = Path(__file__).parent
GOLDEN = ROOT / "tests" / "golden" / "chart"
GOLDEN_SETS = ("default", "rayservice", "all-options", "all-options-ray")


class HelmError(Exception):
    """helm refused; the message is what it said."""


@functools.cache
def schema() -> dict[str, Any]:
    """Return the chart's values schema."""
    loaded: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return loaded


@functools.cache
def all_options() -> dict[str, Any]:
    """Return the value set with every option on."""
    loaded: dict[str, Any] = yaml.safe_load((HERE / "all-options.yaml").read_text())
    return loaded


@functools.cache
def value_sets() -> dict[str, dict[str, Any]]:
    """Return all value sets by name."""
    sets: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "sets.yaml").read_text())
    sets["all-options"] = all_options()
    sets["all-options-ray"] = {**all_options(), "mode": "rayservice"}
    return sets


def _helm(*arguments: str, values: dict[str, Any]) -> str:
    """Return what helm prints; raises `HelmError`."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        done = subprocess.run(
            [str(helm()), *arguments, "-f", "-"],
            input=json.dumps(values),
            capture_output=True,
            text=True,
            timeout=30,
            env=tool_env(home / "none", home),
            check=False,
        )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def template_text(values: dict[str, Any], *, release: str = "chat", namespace: str = "serving") -> str:
    """Return what `helm template` prints.

    Raises:
        HelmError: the values or the templates are wrong.
    """
    return _helm("template", release, str(CHART), "--namespace", namespace, values=values)


def notes(values: dict[str, Any]) -> str:
    """Return what `helm install` tells its user."""
    printed = _helm("install", "chat", str(CHART), "-n", "serving", "--dry-run=client", values=values)
    return printed.partition("\nNOTES:\n")[2]


def template(
    values: dict[str, Any], *, release: str = "chat", namespace: str = "serving"
) -> list[dict[str, Any]]:
    """Return the objects that `helm template` renders.

    Raises:
        HelmError: the values or the templates are wrong.
    """
    return load_all(template_text(values, release=release, namespace=namespace))


def one(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the only object of a kind (and name)."""
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} {name or ''}"
    return found[0]

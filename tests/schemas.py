"""Strict offline validation of Kubernetes objects: what a server with strict field validation would refuse.

Custom resources against the CRDs of `../shared/specs/crds`, core objects against Kubernetes' own schemas; an
unknown field is an error. Rules in CEL and admission webhooks are left to the real API server.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import referencing
import yaml

CRDS = Path(__file__).parents[2] / "shared" / "specs" / "crds"
KUBERNETES = "1.36"
_PACKAGE = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
_SCHEMAS = next(_PACKAGE.glob(f"v{KUBERNETES}.*-local-strict"))
needs_crds = pytest.mark.skipif(not CRDS.exists(), reason="no ../shared/specs")

_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.:-]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def load_all(text: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML stream, empty ones left out."""
    return [document for document in yaml.load_all(text, Loader=_Loader) if document]


def validate(document: Any) -> list[str]:
    """Return everything that is wrong with one object, as `path: reason`; empty: a server would take it."""
    if not isinstance(document, dict):
        return [f"not an object but {type(document).__name__}"]
    missing = [name for name in ("apiVersion", "kind", "metadata") if not document.get(name)]
    if missing:
        return [f"{name}: not given" for name in missing]
    group, _, version = document["apiVersion"].rpartition("/")
    crd = _crd_files().get((group, document["kind"]))
    if crd is None:
        errors = _core(document)
    else:
        schema = _crd_schema(crd, version)
        if schema is None:
            return [f"apiVersion: {document['apiVersion']} is not served"]
        errors = [*_metadata_errors(document["metadata"]), *_errors(document, schema, "")]
    return [*errors, *_conventions(document)]


def validate_custom(document: dict[str, Any], crd: dict[str, Any]) -> list[str]:
    """Return everything that is wrong with an object of a CRD from elsewhere."""
    version = document["apiVersion"].rpartition("/")[2]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version]
    errors = [*_metadata_errors(document["metadata"]), *_errors(document, schema, "")]
    return [*errors, *_conventions(document)]


@functools.cache
def _crd_files() -> dict[tuple[str, str], Path]:
    """Return CRD files by (group, kind), from their first lines: parsing them all takes seconds."""
    found = {}
    for file in sorted(CRDS.glob("*.yaml")):
        head = file.read_text(encoding="utf-8")[:4000]
        group = re.search(r"^  group: (\S+)$", head, re.MULTILINE)
        kind = re.search(r"^    kind: (\S+)$", head, re.MULTILINE)
        if group and kind:
            found[group[1], kind[1]] = file
    return found


@functools.cache
def _crd_schema(file: Path, version: str) -> dict[str, Any] | None:
    (crd,) = load_all(file.read_text(encoding="utf-8"))
    for served in crd["spec"]["versions"]:
        if served["name"] == version and served["served"]:
            schema: dict[str, Any] = served["schema"]["openAPIV3Schema"]
            return schema
    return None


def _errors(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """Yield what a structural schema refuses."""
    if value is None:
        if not schema.get("nullable"):
            yield f"{path}: null"
        return
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: {value!r} is neither integer nor string"
        elif "pattern" in schema and not re.search(schema["pattern"], str(value)):
            yield f"{path}: {value!r} does not match {schema['pattern']}"
        return
    wanted = schema.get("type")
    if wanted and (
        not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted != "boolean")
    ):
        yield f"{path}: {value!r} is no {wanted}"
        return
    yield from _limits(value, schema, path)
    if isinstance(value, dict):
        yield from _object_errors(value, schema, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _errors(item, schema.get("items", {}), f"{path}[{index}]")
        yield from _repeated(value, schema, path)


def _object_errors(value: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    extra = schema.get("additionalProperties")
    root = not path
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: not given"
    for name, inner in value.items():
        if root and name == "metadata":
            continue  # checked as what it is: CRDs say no more than "object" of it
        where = f"{path}.{name}"
        if name in known:
            yield from _errors(inner, known[name], where)
        elif isinstance(extra, dict):
            yield from _errors(inner, extra, where)
        elif not (extra or schema.get("x-kubernetes-preserve-unknown-fields")):
            yield f"{where}: unknown field"


def _limits(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path}: {value!r} does not match {schema['pattern']}"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield f"{path}: {len(value)} characters"
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{path}: {len(value)} items"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        bits = 31 if schema.get("format") == "int32" else 63
        low, high = schema.get("minimum", -(2**bits)), schema.get("maximum", 2**bits - 1)
        if not low <= value <= high:
            yield f"{path}: {value} is not between {low} and {high}"


def _repeated(value: list[Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    if schema.get("x-kubernetes-list-type") != "map":
        return
    properties = schema["items"].get("properties", {})
    seen = set()
    for item in value:
        keys = schema["x-kubernetes-list-map-keys"]
        key = tuple(item.get(name, properties.get(name, {}).get("default")) for name in keys)
        if key in seen:
            yield f"{path}: {key} is given twice"
        seen.add(key)


def _core(document: dict[str, Any]) -> list[str]:
    validator = _core_validator(document["apiVersion"], document["kind"])
    if validator is None:
        return [f"kind: no schema for {document['apiVersion']} {document['kind']}"]
    found = []
    for error in validator.iter_errors(document):
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.path)
        found.append(f"{path}: {error.message}")
    return found


@functools.cache
def _core_validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator | None:
    """Return the validator of a core kind: the package itself reads its files again for every document."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    file = _SCHEMAS / f"{kind.lower()}-{group}.json"
    if not file.exists():
        return None
    schema = json.loads(file.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema, registry=_definitions())


@functools.cache
def _definitions() -> referencing.Registry[Any]:
    definitions = json.loads((_SCHEMAS / "_definitions.json").read_text(encoding="utf-8"))
    return referencing.Resource.from_contents(definitions) @ referencing.Registry()


def _metadata_errors(metadata: dict[str, Any]) -> list[str]:
    return _core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})


def _conventions(document: dict[str, Any]) -> Iterator[str]:
    """Yield what the API server checks beyond the schema, for the mistakes that are easy to make."""
    name = document["metadata"].get("name", "")
    if not _NAME.fullmatch(name):
        yield f".metadata.name: {name!r} is no name of an object"
    yield from _labels(document, "")
    yield from _pods(document, "")


def _labels(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _labels(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, inner in value.items():
            where = f"{path}.{key}"
            if key in ("labels", "matchLabels", "nodeSelector") and isinstance(inner, dict):
                pairs = [(k, v) for k, v in inner.items() if isinstance(v, str)]
                bad = [(k, v) for k, v in pairs if not (_KEY.fullmatch(k) and _LABEL.fullmatch(v))]
                yield from (f"{where}: `{k}: {v}` is no label" for k, v in bad)
            yield from _labels(inner, where)


def _pods(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _pods(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        if isinstance(value.get("containers"), list) and all(
            isinstance(c, dict) for c in value["containers"]
        ):
            yield from _pod(value, path)
        for key, inner in value.items():
            yield from _pods(inner, f"{path}.{key}")


def _pod(spec: dict[str, Any], path: str) -> Iterator[str]:
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    yield from _twice([c.get("name") for c in containers], f"{path}.containers")
    volumes = [v.get("name") for v in spec.get("volumes") or ()]
    yield from _twice(volumes, f"{path}.volumes")
    for container in containers:
        where = f"{path}.{container.get('name')}"
        mounts = container.get("volumeMounts") or ()
        yield from (f"{where}: no volume `{m.get('name')}`" for m in mounts if m.get("name") not in volumes)
        yield from _twice([m.get("mountPath") for m in mounts], f"{where}.volumeMounts")
        yield from _twice([e.get("name") for e in container.get("env") or ()], f"{where}.env")
        resources = container.get("resources") or {}
        for part in ("requests", "limits"):
            for resource, amount in (resources.get(part) or {}).items():
                if not _QUANTITY.fullmatch(str(amount)):
                    yield f"{where}.{part}.{resource}: {amount!r} is no quantity"


def _twice(names: list[Any], path: str) -> Iterator[str]:
    yield from (
        f"{path}: `{name}` is there twice" for name in sorted({n for n in names if names.count(n) > 1})
    )


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml where it is there: the CRDs are 5 MB."""


# As Kubernetes reads YAML: `=` is text, and a date stays what was written.
_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: str(node.value))
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: str(node.value))

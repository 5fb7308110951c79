"""The chart's documentation, from the `# --` comments of values.yaml: one source for table and schema."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.charts.helm import CHART

README = CHART / "README.md"
SCHEMA = CHART / "values.schema.json"
BEGIN, END = "<!-- values: begin, made by `python -m tests.charts` -->", "<!-- values: end -->"


def comments() -> dict[str, str]:
    """Return the comment of every documented key, by its dotted path, in the file's order."""
    found: dict[str, str] = {}
    above: str | None = None
    path: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            above = stripped.removeprefix("# -- ")
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            depth = len(match[1]) // 2
            path = [*path[:depth], match[2]]
            if above is not None:
                found[".".join(path)] = above
            above = None
    return found


def defaults() -> dict[str, Any]:
    """Return values.yaml."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return values


def at(values: Any, path: str) -> Any:
    """Return the value at a dotted path."""
    for part in path.split("."):
        values = values[part]
    return values


def table() -> str:
    """Return the Markdown table of all values."""
    rows = ["| key | default | what |", "|---|---|---|"]
    for path, text in comments().items():
        default = json.dumps(at(defaults(), path))
        rows.append(f"| `{path}` | `{default}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def readme() -> str:
    """Return README.md with the present table."""
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def schema_text() -> str:
    """Return values.schema.json with the present descriptions."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for path, text in comments().items():
        node = schema
        for part in path.split("."):
            node = node["properties"][part]
        rest = {key: value for key, value in node.items() if key != "description"}
        node.clear()
        node.update({"description": text, **rest})
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"

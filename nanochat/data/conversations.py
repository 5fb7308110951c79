"""Checks conversations that a user brings: `--identity FILE`, one a line.

A line is a list of messages or {"messages": [...]}; a message is {"role",
"content"}. Knows nothing of rendering or tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nanochat.errors import ConfigError

ROLES = ("user", "assistant", "system")
PART_TYPES = ("text", "python", "python_output")
_SHAPE = (
    'a line is [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}] '
    'or {"messages": [...]}'
)


def read_identity(path: Path) -> list[dict[str, Any]]:
    """Return the conversations of a JSONL file as {"messages": [...]}.

    Raises:
        ConfigError: the file is missing or empty, or names the file, the line and the field that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--identity `{path}` does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--identity `{path}` cannot be read as UTF-8 text: {error}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"--identity `{path}`, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where}: not valid JSON: {error}", hint=_SHAPE) from None
        rows.append({"messages": _messages(value, where)})
    if not rows:
        raise ConfigError(f"--identity `{path}` holds no conversation", hint=_SHAPE)
    return rows


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        if "messages" not in value:
            raise ConfigError(f"{where}: field `messages` is missing; it has {sorted(value)}", hint=_SHAPE)
        value = value["messages"]
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: `messages` is {_short(value)}, not a list of messages", hint=_SHAPE)
    messages = [_message(message, f"{where}: `messages.{index}") for index, message in enumerate(value)]
    turns = [message["role"] for message in messages]
    if turns[0] == "system":
        turns.pop(0)
    expected = [ROLES[index % 2] for index in range(len(turns))]
    if turns != expected or len(turns) < 2 or len(turns) % 2:
        raise ConfigError(
            f"{where}: `messages` has the roles {', '.join(message['role'] for message in messages)}",
            hint="after an optional system message, user and assistant alternate, and the assistant is last",
        )
    return messages


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}` is {_short(value)}, not an object", hint=_SHAPE)
    if unknown := sorted(set(value) - {"role", "content"}):
        raise ConfigError(
            f"{where}` has an unknown field `{unknown[0]}`", hint="a message has `role` and `content`"
        )
    if value.get("role") not in ROLES:
        raise ConfigError(f"{where}.role` is {_short(value.get('role'))}", hint=f"one of {', '.join(ROLES)}")
    content = value.get("content")
    if isinstance(content, list) and content and value["role"] == "assistant":
        return {
            "role": "assistant",
            "content": [_part(p, f"{where}.content.{i}") for i, p in enumerate(content)],
        }
    if not isinstance(content, str) or not content.strip():
        raise ConfigError(f"{where}.content` is {_short(content)}, not text")
    return {"role": value["role"], "content": content}


def _part(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) != {"type", "text"} or not isinstance(value["text"], str):
        raise ConfigError(f'{where}` is {_short(value)}, not {{"type": ..., "text": ...}}')
    if value["type"] not in PART_TYPES:
        raise ConfigError(f"{where}.type` is {_short(value['type'])}", hint=f"one of {', '.join(PART_TYPES)}")
    return {"type": value["type"], "text": value["text"]}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "missing"
    return text if len(text) <= 60 else text[:57] + "..."

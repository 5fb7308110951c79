"""Chat messages of a request -> the strictly alternating turns that the model was trained on.

System and developer texts join the user turn that follows them, with a blank
line between, as in training; consecutive messages of one role join the same
way. Knows nothing of tokens.
"""

from __future__ import annotations

from typing import Any

from nanochat.serve.refusals import invalid, shown

Turn = dict[str, str]

_JOINT = "\n\n"
_SYSTEM_ROLES = ("system", "developer")
_ROLES = (*_SYSTEM_ROLES, "user", "assistant")
_LATER_ROLES = ("tool", "function")
_MESSAGE_FIELDS = ("role", "content")
_LATER_FIELDS = ("name", "refusal", "audio", "tool_calls", "function_call", "tool_call_id", "annotations")


def turns(messages: Any, *, limit: int) -> list[Turn]:
    """Return `[{"role": "user"|"assistant", "content": str}]`, from user to user, alternating.

    Raises:
        RequestError: 400 with the path of the wrong field, e.g. `messages[2].content[0].type`.
    """
    if not isinstance(messages, list):
        raise invalid(f"`messages` is {shown(messages)}: must be a list", "messages")
    if not messages:
        raise invalid("`messages` is empty: at least one message is required", "messages")
    if len(messages) > limit:
        raise invalid(f"`messages` has {len(messages):,} entries, at most {limit:,} are allowed", "messages")
    result: list[Turn] = []
    pending: list[str] = []
    for index, message in enumerate(messages):
        role, text = _message(message, f"messages[{index}]")
        if role in _SYSTEM_ROLES:
            pending.append(text)
        elif role == "user":
            _append(result, "user", _JOINT.join([*pending, text]))
            pending = []
        elif not result:
            raise invalid(
                f"`messages[{index}].role` is 'assistant': a user message must come first",
                f"messages[{index}].role",
            )
        else:
            _append(result, "assistant", text)
    last = len(messages) - 1
    if pending:  # instructions after the last user turn belong to that turn
        _append(result, "user", _JOINT.join(pending))
    if result[-1]["role"] != "user":
        raise invalid(
            f"`messages[{last}].role` is 'assistant': the last message must be the user's",
            f"messages[{last}].role",
        )
    return result


def _append(result: list[Turn], role: str, text: str) -> None:
    if result and result[-1]["role"] == role:
        result[-1]["content"] += _JOINT + text
    else:
        result.append({"role": role, "content": text})


def _message(message: Any, path: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise invalid(f"`{path}` is {shown(message)}: must be an object with `role` and `content`", path)
    role = message.get("role")
    if role is None:
        raise invalid(f"`{path}.role` is required", f"{path}.role", code="missing_required_parameter")
    if role in _LATER_ROLES:
        raise invalid(
            f"`{path}.role` is {role!r}: tool results from the client are not supported yet", f"{path}.role"
        )
    if role not in _ROLES:
        raise invalid(f"`{path}.role` is {shown(role)}: must be one of {', '.join(_ROLES)}", f"{path}.role")
    for field, value in message.items():
        if field in _MESSAGE_FIELDS:
            continue
        if field not in _LATER_FIELDS:
            raise invalid(f"`{path}.{field}` is not a field of a message", f"{path}.{field}")
        if value is not None and value != []:
            raise invalid(f"`{path}.{field}` is not supported yet", f"{path}.{field}")
    return role, _content(message.get("content"), f"{path}.content")


def _content(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise invalid(f"`{path}` is required", path, code="missing_required_parameter")
    if not isinstance(content, list):
        raise invalid(f"`{path}` is {shown(content)}: must be a string or a list of text parts", path)
    if not content:
        raise invalid(f"`{path}` is empty: at least one text part is required", path)
    return "".join(_part(part, f"{path}[{index}]") for index, part in enumerate(content))


def _part(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise invalid(f"`{path}` is {shown(part)}: must be an object with `type` and `text`", path)
    kind = part.get("type")
    if kind != "text":
        raise invalid(f"`{path}.type` is {shown(kind)}: this model reads text parts only", f"{path}.type")
    for field in part:
        if field not in ("type", "text"):
            raise invalid(f"`{path}.{field}` is not supported", f"{path}.{field}")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"`{path}.text` is {shown(text)}: must be a string", f"{path}.text")
    return text

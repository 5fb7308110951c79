"""Conversations as token ids: how turns are laid out and which tokens are supervised.

    bos
    user_start      text                    user_end
    assistant_start text                    assistant_end
                    python_start text python_end output_start text output_end   (a tool call within a turn)

A system message becomes the head of the first user turn. Only what the assistant says
is supervised: its text, its tool calls and the end of its turn, not the tool's output.
Knows nothing of batches, files or the API's requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

from nanochat.errors import DataError
from nanochat.tokenizer import Tokenizer

__all__ = ["Conversation", "Message", "Part", "find_fault", "render", "render_prompt"]


class Part(TypedDict):
    """A piece of an assistant's turn: text, a tool call or what the tool gave back."""

    type: Literal["text", "python", "python_output"]
    text: str


class Message(TypedDict):
    """One turn. Only an assistant's may hold parts other than text."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class Conversation(TypedDict):
    """An optional system message, then user and assistant in turn: a line of a chat file."""

    messages: list[Message]
    id: NotRequired[str]


Unchecked = Sequence[Mapping[str, Any]]
"""Messages of a file or a request, checked before use; a list of `Message` is one."""

_Piece = tuple[list[int], int]  # ids and their mask

_BRACKETS = {"python": ("python_start", "python_end", 1), "python_output": ("output_start", "output_end", 0)}


def find_fault(messages: Unchecked) -> tuple[str, str] | None:
    """Return the first thing wrong with `messages`, as (field, sentence about it), or None.

    The field is a path such as `messages[2].role`.
    """
    if not messages or not isinstance(messages, list | tuple):
        return "messages", "holds no message"
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            return f"messages[{index}]", f"is {type(message).__name__}, not an object with role and content"
    head = 1 if messages[0].get("role") == "system" else 0
    for index, message in enumerate(messages):
        expected = "system" if index < head else ("user", "assistant")[(index - head) % 2]
        role = message.get("role")
        if role != expected:
            return (
                f"messages[{index}].role",
                f"is {role!r}, expected {expected!r}: user and assistant alternate",
            )
        fault = _content_fault(message)
        if fault:
            return f"messages[{index}].content", fault
    return ("messages", "holds a system message and no user turn") if head == len(messages) else None


def _content_fault(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"is {type(content).__name__}, not a string or a list of parts"
    allowed = ("text", *_BRACKETS) if message["role"] == "assistant" else ("text",)
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in allowed:
            return f"has part {index} of type {kind!r}, expected one of {', '.join(allowed)}"
        if not isinstance(part.get("text"), str):
            return f"has part {index} without text"
    return None


def render(
    tokenizer: Tokenizer, conversation: Mapping[str, Any], *, max_tokens: int | None = None
) -> tuple[list[int], list[int]]:
    """Return ids and mask, equally long; mask 1 marks a token that training should predict.

    The first `max_tokens` are kept.

    `conversation` is a `Conversation`, or JSON that should be one.

    Raises:
        DataError: roles do not alternate or a content is malformed; names the message's index.
    """
    ids: list[int] = []
    mask: list[int] = []
    for piece, supervised in _pieces(tokenizer, _checked(conversation.get("messages", ()))):
        ids += piece
        mask += [supervised] * len(piece)
        if max_tokens is not None and len(ids) >= max_tokens:
            break
    return ids[:max_tokens], mask[:max_tokens]


def render_prompt(tokenizer: Tokenizer, messages: Unchecked) -> list[int]:
    """Return the ids after which the assistant answers: the last one is `assistant_start`.

    Raises:
        DataError: as `render`, or the last message is not the user's.
    """
    checked = _checked(messages)
    if checked[-1]["role"] != "user":
        last = len(checked) - 1
        raise DataError(f"messages[{last}].role is 'assistant': the last message must be the user's")
    ids = [token for piece, _ in _pieces(tokenizer, checked) for token in piece]
    return [*ids, tokenizer.special("assistant_start")]


def _checked(messages: Unchecked) -> Sequence[Message]:
    fault = find_fault(messages)
    if fault:
        raise DataError(f"{fault[0]} {fault[1]}")
    return cast(Sequence[Message], messages)


def _pieces(tokenizer: Tokenizer, messages: Sequence[Message]) -> Iterator[_Piece]:
    special = tokenizer.specials
    yield [special["bos"]], 0
    head = ""
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            yield [special["assistant_start"]], 0
            yield from _assistant_pieces(tokenizer, content)
            yield [special["assistant_end"]], 1
            continue
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if message["role"] == "system":
            head = f"{text}\n\n"
        else:
            yield [special["user_start"], *tokenizer.encode(head + text), special["user_end"]], 0
            head = ""


def _assistant_pieces(tokenizer: Tokenizer, content: str | list[Part]) -> Iterator[_Piece]:
    parts = [Part(type="text", text=content)] if isinstance(content, str) else content
    for part in parts:
        ids = tokenizer.encode(part["text"])
        if part["type"] == "text":
            yield ids, 1
        else:
            start, end, supervised = _BRACKETS[part["type"]]
            yield [tokenizer.specials[start], *ids, tokenizer.specials[end]], supervised

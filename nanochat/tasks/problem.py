"""The types that tasks hand out: conversations to train on, problems to be scored on.

Knows nothing of tokens. A conversation is what `chat/*.jsonl` holds: `messages`,
each with a role and a content that is a text or a list of typed parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.chat import Conversation, Message, Part

__all__ = [
    "Choice",
    "Conversation",
    "Message",
    "Part",
    "Problem",
    "assistant",
    "conversation",
    "python",
    "python_output",
    "questions",
    "text",
    "user",
]


def user(text: str) -> Message:
    """Return a user's message."""
    return Message(role="user", content=text)


def assistant(*parts: Part | str) -> Message:
    """Return an assistant's message: one plain text, or typed parts."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return Message(role="assistant", content=parts[0])
    return Message(
        role="assistant", content=[text(part) if isinstance(part, str) else part for part in parts]
    )


def text(value: str) -> Part:
    """Return a part that is written to the user."""
    return Part(type="text", text=value)


def python(expression: str) -> Part:
    """Return a part that calls the calculator."""
    return Part(type="python", text=expression)


def python_output(value: str) -> Part:
    """Return the calculator's answer; it is forced, so training never scores it."""
    return Part(type="python_output", text=value)


def conversation(*messages: Message) -> Conversation:
    """Return a conversation of these messages."""
    return Conversation(messages=list(messages))


def questions(chat: Conversation) -> list[str]:
    """Return what the user says, message by message."""
    return [
        message["content"]
        for message in chat["messages"]
        if message["role"] == "user" and isinstance(message["content"], str)
    ]


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice problem; `answer` is the index of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem answered in free text; `answer` is what the text must hold."""

    question: str
    answer: str
    expression: str | None = None
    """The calculator call that solves it, where there is exactly one."""

"""`nanochat chat`: a conversation in the terminal with the engine in this process.

Knows the engine and a console; nothing of HTTP. One-shot with `-p`: only the answer goes to stdout.
"""

from __future__ import annotations

import contextlib
import queue
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape
from rich.prompt import Prompt

from nanochat.engine.request import Delta, SamplingParams
from nanochat.errors import NanochatError, RequestError, did_you_mean
from nanochat.serve.bridge import Engine
from nanochat.serve.messages import Turn
from nanochat.serve.prompts import Prompts

if TYPE_CHECKING:
    from nanochat.settings import Home

HELP = """[bold]/temperature T[/]  how daring, 0 to 2
[bold]/topk K[/]         choose among the K likeliest, 0: all
[bold]/clear[/]          forget the conversation
[bold]/help[/]           this text
[bold]/quit[/]           leave (also Ctrl-D)
Ctrl-C stops an answer."""
_COMMANDS = ("/help", "/temperature", "/topk", "/clear", "/quit")


class _Stream:
    """A sink that a waiting thread reads."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Delta] = queue.SimpleQueue()

    def put(self, delta: Delta, /) -> None:
        self._queue.put(delta)

    def __iter__(self) -> Iterator[Delta]:
        while True:
            delta = self._queue.get()
            yield delta
            if delta.finish_reason is not None:
                return


@dataclass
class Session:
    """One conversation: turns, parameters, and where text goes."""

    engine: Engine
    prompts: Prompts
    params: SamplingParams
    out: Callable[[str], None]
    note: Callable[[str], None]
    """Talk beside the answer: tool runs, help, errors; rich markup."""
    turns: list[Turn] = field(default_factory=list)

    def say(self, text: str) -> str:
        """Send one user message, stream the answer to `out`, return it. Ctrl-C stops it and keeps the part.

        Raises:
            RequestError: the conversation is longer than the context; the message is not kept.
        """
        stream = _Stream()
        asked: list[Turn] = [*self.turns, {"role": "user", "content": text}]
        request = self.engine.submit(self.prompts.chat(asked), self.params, stream)
        parts: list[str] = []
        try:
            for delta in stream:
                self._show(delta, parts)
        except KeyboardInterrupt:
            self.engine.cancel(request)
            for delta in stream:
                parts.append(delta.text)
            self.note(f"{_break(parts)}[dim](stopped)[/]")
        answer = "".join(parts)
        self.turns = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def _show(self, delta: Delta, parts: list[str]) -> None:
        for call in delta.tool_calls:
            result = "refused" if call.result is None else f"= {call.result}"
            self.note(f"{_break(parts)}[dim]calculator: {escape(call.expression)} {escape(result)}[/]")
        if delta.text:
            parts.append(delta.text)
            self.out(delta.text)
        if delta.finish_reason == "error":
            raise RequestError(
                delta.error or "the model failed on this message", status=500, kind="server_error"
            )
        if delta.finish_reason == "length":
            self.note(f"{_break(parts)}[dim](cut at the token limit)[/]")

    def command(self, line: str) -> bool:
        """Obey a line that starts with `/`; False to leave."""
        name, _, value = line.strip().partition(" ")
        if name == "/quit":
            return False
        if name == "/help":
            self.note(HELP)
        elif name == "/clear":
            self.turns = []
            self.note("[dim]forgotten[/]")
        elif name in ("/temperature", "/topk"):
            self._set(name, value.strip())
        else:
            self.note(f"[red]{escape(name)} is not a command[/]; {escape(did_you_mean(name, _COMMANDS))}")
        return True

    def _set(self, name: str, value: str) -> None:
        try:
            if name == "/temperature":
                self.params = replace(self.params, temperature=float(value))
            else:
                self.params = replace(self.params, top_k=int(value))
        except (ValueError, RequestError) as error:
            why = error.message if isinstance(error, RequestError) else f"`{value}` is not a number"
            self.note(f"[red]{escape(why)}[/]")
            return
        self.note(f"[dim]temperature {self.params.temperature:g}, top-k {self.params.top_k or 'off'}[/]")


def _break(parts: list[str]) -> str:
    """Return the line break that a note needs after an answer's part."""
    return "\n" if parts and not parts[-1].endswith("\n") else ""


def chat(
    home: Home,
    *,
    run: str,
    prompt: str | None = None,
    temperature: float = 0.6,
    top_k: int = 50,
    max_tokens: int = 256,
    seed: int | None = None,
    out: TextIO | None = None,
) -> None:
    """Chat with a run's newest chat model, else its newest model; with `prompt` answer it and return.

    Raises:
        ConfigError: the run has no exported model.
        DataError: a model file does not match its manifest.
        RequestError: a parameter is out of range, or `prompt` is longer than the context.
    """
    params = SamplingParams(temperature=temperature, top_k=top_k, max_tokens=max_tokens, seed=seed)
    from nanochat.serve.loading import load_engine

    loaded = load_engine(home, run=run, max_running=1)
    stdout = sys.stdout if out is None else out
    talk = Console(stderr=True, highlight=False)

    def write(text: str) -> None:
        stdout.write(text)
        stdout.flush()

    try:
        if prompt is not None:
            quiet = Session(loaded.engine, loaded.prompts, params, write, lambda _: None)
            quiet.say(prompt)
            write("\n")
            return
        talk.print(f"[bold]{escape(loaded.id)}[/] — /help for commands, /quit to leave")
        converse(Session(loaded.engine, loaded.prompts, params, write, talk.print), read_line(talk))
    finally:
        loaded.engine.close()


def read_line(console: Console) -> Callable[[], str]:
    """Return a reader of one line from the terminal, with history and editing where readline exists."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it is what gives `input` its line editing)
    return lambda: Prompt.ask("\n[bold cyan]you[/]", console=console)


def converse(session: Session, read: Callable[[], str]) -> None:
    """Read lines and answer them until /quit or the end of input."""
    while True:
        try:
            line = read()
        except (EOFError, KeyboardInterrupt):
            return
        if line.startswith("/"):
            if not session.command(line):
                return
        elif line.strip():
            try:
                session.say(line)
                session.out("\n")
            except NanochatError as error:
                session.note(f"[red]{escape(error.message)}[/]")
                if isinstance(error, RequestError) and error.code == "context_length_exceeded":
                    session.note("[dim]/clear forgets the conversation and makes room[/]")

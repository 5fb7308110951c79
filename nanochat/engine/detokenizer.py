"""Tokens' bytes to text that is safe to send: whole characters, and nothing of a stop string.

Knows bytes and strings, neither tokens nor requests.
"""

from __future__ import annotations

import codecs


class TextStream:
    """Turns pieces of bytes into pieces of text, at any cut of the bytes the same text in total.

    A character that is not complete yet is held; bytes that can be no character become U+FFFD. Text that
    could be the beginning of a stop string is held too, at most the longest one less one character.
    """

    __slots__ = ("_decoder", "_held", "_longest", "_stops", "decoded", "stopped")

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.decoded = 0
        """Characters decoded so far, whether sent or held."""
        self.stopped = False
        """True once a stop string was met; nothing comes out after it."""

    def push(self, data: bytes, *, last: bool = False) -> str:
        """Return the text that `data` makes safe to send; `last` makes an unfinished character U+FFFD."""
        text = self._decoder.decode(data, last)
        self.decoded += len(text)
        if not self._stops:
            return text
        return self._search(text)

    def finish(self) -> str:
        """Return what is held, at the end of the stream."""
        text = self.push(b"", last=True)
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _search(self, text: str) -> str:
        """Find the stop string that ends first, as if the text came one character at a time."""
        if self.stopped:
            return ""
        held = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)[1]]
        size = next(
            (n for n in range(min(self._longest - 1, len(held)), 0, -1) if self._begins_stop(held[-n:])), 0
        )
        self._held = held[len(held) - size :]
        return held[: len(held) - size]

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)

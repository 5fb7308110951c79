"""What one client may ask of the server at most. Knows numbers only; the code that enforces each is named.

The bounds exist because each missing one is a known way to take a server down
with a single request or connection.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nanochat.run.config import Frozen, Positive

Seconds = Annotated[float, Field(gt=0)]


class Limits(Frozen):
    """Bounds of one server process."""

    max_body_bytes: Positive = 1 << 20
    """Larger request bodies are refused with 413 before JSON parsing starts (`http.read_body`)."""
    max_drain_bytes: Positive = 8 << 20
    """Bytes of a refused body that are read and dropped, so that the client sees the 413 and not a reset."""
    max_header_bytes: Positive = 32 << 10
    """Longer request heads are refused with 431 (`protocol`)."""
    header_timeout_s: Seconds = 10.0
    """Time a client has to finish its request head: the guard against slow-loris (`protocol`)."""
    body_timeout_s: Seconds = 20.0
    """Time a client has to finish its request body (`http.read_body`)."""
    keep_alive_s: Seconds = 60.0
    """Time an idle connection stays open between requests."""
    stall_s: Seconds = 60.0
    """A client that reads nothing for this long while output waits loses its stream and its slot
    (`protocol`)."""
    stuck_s: Seconds = 60.0
    """Work that waits this long without an engine step makes /health 503; the slowest step is far below."""
    max_connections: Positive = 4096
    """Open connections; more are closed at once (`protocol`)."""
    max_messages: Positive = 1000
    """Messages in one chat request."""
    max_waiting: Positive = 64
    """Sequences that may wait for a slot; more are answered 429 with Retry-After (`admission`)."""
    max_inline_bytes: Positive = 16 << 10
    """Bodies above this are rendered to ids off the event loop, so that they do not hold up other streams."""

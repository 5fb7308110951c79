"""A server without a model: the real routes and the real server over an engine that only repeats.

For measuring what the API itself costs and for developing clients. Knows nothing of torch. Run:
`python -m nanochat.serve.stub --port 0 --step-ms 1`
"""

from __future__ import annotations

import argparse
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.engine.request import Delta, SamplingParams, Sink, TokenLogprob, ToolCall
from nanochat.errors import RequestError
from nanochat.serve.messages import Turn

_USER, _ASSISTANT = 256, 257
_SUM = re.compile(r"(\d{1,4}) ?([+-]) ?(\d{1,4})")
_PIECE = re.compile(r"\s*\S+|\s+")


class StubPrompts:
    """Texts as their UTF-8 bytes, with one id for each role."""

    vocab_size = 258

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        ids: list[int] = []
        for turn in turns:
            ids += [_USER if turn["role"] == "user" else _ASSISTANT, *turn["content"].encode()]
        return [*ids, _ASSISTANT]

    def text(self, text: str) -> list[int]:
        return list(text.encode())


@dataclass(slots=True)
class StubRequest:
    """One completion of the stub."""

    params: SamplingParams
    sink: Sink
    pieces: list[str]
    call: ToolCall | None
    limit: int
    made: int = 0
    cancelled: bool = False
    finish_reason: str | None = None

    def put(self, delta: Delta) -> None:
        """Hand one delta to the server."""
        self.finish_reason = delta.finish_reason
        self.sink.put(delta)

    def next(self) -> Delta:
        """Return what this step makes: the next word."""
        if self.cancelled:
            return Delta(finish_reason="cancelled", completion_tokens=self.made)
        self.made += 1
        if self.made > len(self.pieces) and not self.params.ignore_eos:
            return Delta(token_ids=[_ASSISTANT], finish_reason="stop", completion_tokens=self.made)
        text = self.pieces[(self.made - 1) % len(self.pieces)]
        delta = Delta(text=text, token_ids=[0], completion_tokens=self.made)
        if self.call is not None and self.made == 1:
            delta.tool_calls.append(self.call)
        if self.params.logprobs is not None:
            data = text.encode()
            top = tuple((index, data, -1.0 - index) for index in range(self.params.logprobs))
            delta.logprobs.append(TokenLogprob(0, data, -0.5, top))
        if self.made >= self.limit:
            delta.finish_reason = "length"
        return delta


@dataclass(frozen=True, slots=True)
class StubLimits:
    """The part of the engine's limits that the server reads."""

    max_running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StubStats:
    """The part of the engine's statistics that /metrics shows."""

    ticks: int
    waiting: int
    running: int
    kv_total_tokens: int = 0
    kv_used_tokens: int = 0
    kv_intact: bool = True
    failures: int = 0


class StubEngine:
    """Answers every prompt by repeating its last user text, one word a step, for all requests at once."""

    def __init__(self, *, step_s: float = 0.0, max_running: int = 8, context: int = 4096) -> None:
        self.limits = StubLimits(max_running)
        self.context = context
        self.on_flush: Callable[[], None] | None = None
        self.ticks = 0
        self._step_s = step_s
        self._inbox: deque[StubRequest] = deque()
        self._running: list[StubRequest] = []
        self._wake = threading.Condition()
        self._pause = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def busy(self) -> bool:
        return bool(self._inbox or self._running)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, sink: Sink) -> StubRequest:
        """Queue one completion, as the real engine does."""
        if not 0 < len(prompt_ids) < self.context:
            raise RequestError(
                f"this model's context is {self.context} tokens and the prompt has {len(prompt_ids)}",
                param="messages",
                code="context_length_exceeded",
            )
        text = _last_user_text(prompt_ids)
        sum_ = _SUM.search(text)
        call = None
        if sum_ is not None:
            left, sign, right = int(sum_[1]), sum_[2], int(sum_[3])
            call = ToolCall(f"{left}{sign}{right}", str(left + right if sign == "+" else left - right))
        reply = f"You said: {text}" if call is None else f"{call.expression} is {call.result}."
        room = self.context - len(prompt_ids)
        request = StubRequest(params, sink, _PIECE.findall(reply), call, min(room, params.max_tokens or room))
        with self._wake:
            self._inbox.append(request)
            self._wake.notify()
        return request

    def cancel(self, request: StubRequest) -> None:
        """End a request within one step."""
        request.cancelled = True

    def run_thread(self) -> None:
        """Start stepping."""
        self._thread.start()

    def close(self) -> None:
        """Cancel all and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._pause.set()
        self._thread.join()

    def stats(self) -> StubStats:
        """Return what /metrics shows."""
        return StubStats(ticks=self.ticks, waiting=len(self._inbox), running=len(self._running))

    def _loop(self) -> None:
        while not self._closing:
            self._step()
            if self.on_flush is not None:
                self.on_flush()
            if self._running:
                if self._step_s:
                    self._pause.wait(self._step_s)
                continue
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._inbox)
        for request in [*self._running, *self._inbox]:
            request.put(Delta(finish_reason="cancelled", completion_tokens=request.made))
        if self.on_flush is not None:
            self.on_flush()

    def _step(self) -> None:
        self.ticks += 1
        while self._inbox and len(self._running) < self.limits.max_running:
            self._running.append(self._inbox.popleft())
        for request in self._running:
            request.put(request.next())
        self._running = [request for request in self._running if request.finish_reason is None]


def _last_user_text(prompt_ids: Sequence[int]) -> str:
    ids = list(prompt_ids)
    if ids[-1] == _ASSISTANT:
        ids.pop()
    start = max((i + 1 for i, token in enumerate(ids) if token >= _USER), default=0)
    return bytes(ids[start:]).decode("utf-8", "replace")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal; prints one JSON line with the URL."""
    from nanochat.serve.app import create_app
    from nanochat.serve.keys import Keys
    from nanochat.serve.limits import Limits
    from nanochat.serve.main import announce, bind, serve

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--max-running", type=int, default=8)
    parser.add_argument("--grace-s", type=float, default=25.0)
    parser.add_argument("--lame-duck-s", type=float, default=0.0)
    parser.add_argument("--api-keys", type=Path)
    parser.add_argument("--limits", default="{}", help="JSON of nanochat.serve.limits.Limits")
    options = parser.parse_args(arguments)
    address = bind("127.0.0.1", options.port)
    engine = StubEngine(step_s=options.step_ms / 1000, max_running=options.max_running)
    engine.run_thread()
    keys = None if options.api_keys is None else Keys.load(options.api_keys)
    limits = Limits.model_validate_json(options.limits)
    app = create_app(engine, StubPrompts(), model_id="stub", keys=keys, limits=limits)
    announce(address, "stub", keys=keys is not None, as_json=True, out=sys.stdout)
    serve(app, address, limits=limits, grace_s=options.grace_s, lame_duck_s=options.lame_duck_s)
    engine.close()


if __name__ == "__main__":
    main()

"""The two completion routes: body -> engine -> reply, whole or streamed.

Raw ASGI on purpose: at one event a token, objects of a framework would cost more than the token's
own bookkeeping. Knows the engine only through `bridge`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.engine.request import SamplingParams
from nanochat.errors import RequestError
from nanochat.serve.bridge import Bridge, Engine, Job
from nanochat.serve.http import KEPT, ClientGone, Receive, Reply, Scope, check_json, read_body
from nanochat.serve.limits import Limits
from nanochat.serve.messages import turns
from nanochat.serve.metrics import Metrics
from nanochat.serve.prompts import Prompts
from nanochat.serve.refusals import internal_error, refusal
from nanochat.serve.schema import ChatBody, CompletionBody, parse_chat, parse_completion
from nanochat.serve.serving import Serving
from nanochat.serve.wire import DONE, PING, ChatWire, Choice, Head, TextWire, Wire, error_event

log = logging.getLogger(__name__)

_GONE = 499  # nginx's status for a client that left; never sent, only counted
_SEEDS = 2**63


@dataclass(slots=True, kw_only=True)
class Context:
    """What the routes share. The bridge is made on the first request, when there is a loop."""

    engine: Engine
    prompts: Prompts
    model_id: str
    names: frozenset[str]
    """What a request may call the model: its id and aliases."""
    limits: Limits
    serving: Serving
    metrics: Metrics
    clock: Callable[[], float]
    """Wall clock, seconds since the epoch: `created`."""
    timer: Callable[[], float]
    """Monotonic clock: latencies."""
    bridge: Bridge | None = None

    def connect(self) -> Bridge:
        """Return the bridge to the running loop."""
        if self.bridge is None:
            self.bridge = Bridge(self.engine, asyncio.get_running_loop())
        return self.bridge


@dataclass(slots=True, kw_only=True)
class Plan:
    """A validated request, ready for the engine: one prompt and one set of parameters a choice."""

    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]
    wire: Wire
    stream: bool
    prompt_tokens: int
    """Tokens of the distinct prompts: `n` choices of one prompt count it once."""


class Completions(ABC):
    """One of the two routes as an endpoint: `await endpoint(scope, receive, reply)`."""

    name: str
    """The `route` label of the metrics."""
    id_prefix: str
    prompt_field: str

    def __init__(self, context: Context) -> None:
        self._context = context

    @abstractmethod
    def parse(self, raw: bytes) -> tuple[ChatBody | CompletionBody, Sequence[Any]]:
        """Return the body and its inputs: the turns of one chat, or the prompts."""

    @abstractmethod
    def encode(self, one: Any) -> Sequence[int]:
        """Return the ids of one input."""

    @abstractmethod
    def wire(self, head: Head) -> Wire:
        """Return how the route writes its objects."""

    async def __call__(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        """Answer one request. Never raises but on cancellation."""
        context = self._context
        begun = context.timer()
        try:
            await self._answer(scope, receive, reply, begun)
        except RequestError as error:
            if not reply.started:
                await reply.refuse(error)
            else:
                await reply.close(error_event(error))
                reply.status = error.status
        except ClientGone:
            reply.status = _GONE
        except asyncio.CancelledError:  # how Ray Serve tells that the client left
            context.metrics.answered(self.name, _GONE, context.timer() - begun)
            raise
        except (
            Exception
        ):  # the HTTP handler is a boundary: the log has the traceback, the client has no internals
            log.exception("event=request_failed route=%s", self.name)
            fault = internal_error()
            if not reply.started:
                await reply.refuse(fault)
            else:
                await reply.close(error_event(fault))
            reply.status = 500
        context.metrics.answered(self.name, reply.status, context.timer() - begun)

    async def _answer(self, scope: Scope, receive: Receive, reply: Reply, begun: float) -> None:
        context = self._context
        check_json(scope)
        raw = await read_body(scope, receive, context.limits)
        body, inputs = self.parse(raw)
        self._check_model(body.model)
        width = (body.n or 1) * len(inputs)
        context.serving.admit(width, kept=scope.get("state", {}).get(KEPT, False))
        try:
            if len(raw) > context.limits.max_inline_bytes:
                plan = await asyncio.to_thread(self._plan, body, inputs)
            else:
                plan = self._plan(body, inputs)
            job = self._submit(plan)
            watch = asyncio.create_task(_watch(receive, job))
            try:
                if plan.stream:
                    await self._stream(plan, job, reply, begun)
                else:
                    await self._whole(plan, job, reply)
            finally:
                watch.cancel()
                context.connect().end(job)
        finally:
            context.serving.release(width, context.timer() - begun)

    def _check_model(self, model: str) -> None:
        if model not in self._context.names:
            raise refusal(
                404,
                f"the model `{model[:80]}` does not exist; this server has `{self._context.model_id}`",
                param="model",
                code="model_not_found",
            )

    def _submit(self, plan: Plan) -> Job:
        try:
            return self._context.connect().submit(plan.prompts, plan.params, eager=plan.stream)
        except RequestError as error:
            if error.param == "messages":  # the engine knows one name for the prompt
                error.param = self.prompt_field
            raise

    def _plan(self, body: ChatBody | CompletionBody, inputs: Sequence[Any]) -> Plan:
        context = self._context
        distinct = [self.encode(one) for one in inputs]
        n = body.n or 1
        head = Head(
            id=self.id_prefix + secrets.token_hex(12),
            created=int(context.clock()),
            model=context.model_id,
            choices=n * len(distinct),
            include_usage=body.wants_usage,
            logprobs=body.alternatives is not None,
            tools=bool(body.nanochat_tools),
        )
        return Plan(
            prompts=[prompt for prompt in distinct for _ in range(n)],
            params=[params for _ in distinct for params in _params(body, n)],
            wire=self.wire(head),
            stream=bool(body.stream),
            prompt_tokens=sum(len(prompt) for prompt in distinct),
        )

    async def _whole(self, plan: Plan, job: Job, reply: Reply) -> None:
        choices = [Choice() for _ in plan.prompts]
        made = 0
        ready = await job.wait()
        if job.gone:
            raise ClientGone
        for index, delta in ready:
            choices[index].add(delta)
            if delta.finish_reason is not None:
                made += delta.completion_tokens
                _check_end(delta.finish_reason, delta.error)
        self._count(plan, made, [call.result for choice in choices for call in choice.tool_calls])
        await reply.whole(200, plan.wire.body(choices, plan.prompt_tokens, made))

    async def _stream(self, plan: Plan, job: Job, reply: Reply, begun: float) -> None:
        wire, metrics = plan.wire, self._context.metrics
        await reply.open_events()
        if opening := b"".join([wire.opening(index) for index in range(len(plan.prompts))]):
            await reply.events(opening)
        made, first, left = 0, 0.0, len(plan.prompts)
        results: list[str | None] = []
        data = b""
        while left:
            ready = await job.wait()
            if job.gone:
                raise ClientGone
            if job.pinging:
                job.pinging = False
                await reply.events(PING)
            parts = []
            for index, delta in ready:
                if delta.finish_reason is not None:
                    left -= 1
                    made += delta.completion_tokens
                    _check_end(delta.finish_reason, delta.error)
                if delta.tool_calls:
                    results += [call.result for call in delta.tool_calls]
                parts.append(wire.delta(index, delta))
            if not first and ready:
                first = self._context.timer()
                metrics.first_token.observe(first - begun)
            data = b"".join(parts)
            if data and left:
                await reply.events(data)
        self._count(plan, made, results)
        tokens = made // len(plan.prompts)
        if tokens > 1:
            metrics.token_gap.observe((self._context.timer() - first) / (tokens - 1))
        await reply.close(data + wire.usage(plan.prompt_tokens, made) + DONE)

    def _count(self, plan: Plan, made: int, results: Sequence[str | None]) -> None:
        metrics = self._context.metrics
        metrics.prompt_tokens.inc(plan.prompt_tokens)
        metrics.completion_tokens.inc(made)
        for result in results:
            metrics.tool_calls.labels("refused" if result is None else "ok").inc()


class ChatCompletions(Completions):
    """`POST /v1/chat/completions`."""

    name = "chat"
    id_prefix = "chatcmpl-"
    prompt_field = "messages"

    def parse(self, raw: bytes) -> tuple[ChatBody | CompletionBody, Sequence[Any]]:
        body = parse_chat(raw)
        return body, [turns(body.messages, limit=self._context.limits.max_messages)]

    def encode(self, one: Any) -> Sequence[int]:
        return self._context.prompts.chat(one)

    def wire(self, head: Head) -> Wire:
        return ChatWire(head)


class TextCompletions(Completions):
    """`POST /v1/completions`."""

    name = "completions"
    id_prefix = "cmpl-"
    prompt_field = "prompt"

    def parse(self, raw: bytes) -> tuple[ChatBody | CompletionBody, Sequence[Any]]:
        body = parse_completion(raw)
        return body, body.prompts(self._context.prompts.vocab_size)

    def encode(self, one: Any) -> Sequence[int]:
        return self._context.prompts.text(one) if isinstance(one, str) else one

    def wire(self, head: Head) -> Wire:
        return TextWire(head)


def _params(body: ChatBody | CompletionBody, n: int) -> list[SamplingParams]:
    """Return the parameters of `n` choices: the same but for the seed, else they would be one text."""
    return [
        SamplingParams(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            max_tokens=body.token_limit,
            seed=None if body.seed is None else (body.seed + index) % _SEEDS,
            stop=body.stops(),
            logprobs=body.alternatives,
            ignore_eos=bool(body.ignore_eos),
        )
        for index in range(n)
    ]


async def _watch(receive: Receive, job: Job) -> None:
    """Notice a client that leaves while the engine works."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.abandon()


def _check_end(reason: str, message: str | None) -> None:
    if reason == "error":
        raise refusal(500, message or "the model failed on this request", code="internal_error")
    if reason == "cancelled":  # the client is there, so it was the server: the grace period ended
        raise refusal(503, "the server shut down before the answer was complete", code="draining")

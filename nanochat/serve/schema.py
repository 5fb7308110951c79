"""Request bodies of the two completion routes: raw JSON bytes -> validated fields.

Closed: a field of OpenAI's schema that is not supported yet is refused by name
unless its value asks for nothing, and an unknown field is refused with the
nearest known one. Knows nothing of HTTP, tokens or the engine.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nanochat.errors import RequestError, did_you_mean
from nanochat.serve.refusals import invalid, shown

MAX_CHOICES = 8
"""Upper bound of `n`. Unbounded `n` is a one-request denial of service."""
_MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 256
_MAX_PROMPTS = 32
_SEED_BOUND = 2**63
_ID_BOUND = 2**31

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=_ID_BOUND)]

_NOTHING = object()
_LATER: dict[str, tuple[Any, ...]] = {
    # field of OpenAI's schema: values that ask for nothing, accepted beside null
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "audio": (),
    "metadata": (),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "safety_identifier": (),
    "user": (),
    "verbosity": (),
    "web_search_options": (),
}
_LATER_COMPLETIONS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "user": (),
}


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, Field()] = None


class Sampling(BaseModel):
    """What both routes accept; every optional field may be null. The last three are our extensions."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Unit | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Any = None
    seed: Annotated[int, Field(ge=-_SEED_BOUND, lt=_SEED_BOUND)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Annotated[int, Field(ge=0, lt=_ID_BOUND)] | None = None
    """Sample from the k likeliest tokens; 0 and null: from all of them."""
    ignore_eos: bool | None = None
    """Go on after the end-of-turn token, as load generators ask."""
    nanochat_tools: bool | None = None
    """Report the calculator's runs as `nanochat_tools` of a choice."""

    def stops(self) -> tuple[str, ...]:
        """Return `stop` as a tuple.

        Raises:
            RequestError: 400 for anything but a string or 1 to 4 strings.
        """
        if self.stop is None:
            return ()
        given = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(given, list) or len(given) > _MAX_STOPS:
            raise invalid(
                f"`stop` is {shown(self.stop)}: must be a string or at most {_MAX_STOPS} strings", "stop"
            )
        for text in given:
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_STOP_CHARACTERS:
                raise invalid(
                    f"`stop` holds {shown(text)}: must be strings of 1 to {_MAX_STOP_CHARACTERS} characters",
                    "stop",
                )
        return tuple(given)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatBody(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Any
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def token_limit(self) -> int | None:
        """Tokens to make at most; `max_completion_tokens` wins over the deprecated `max_tokens`."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Top alternatives to report a token; None without logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Sampling):
    """`POST /v1/completions`."""

    prompt: Any
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def token_limit(self) -> int | None:
        """Tokens to make at most; OpenAI's default for this route is 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Top alternatives to report a token; None without logprobs."""
        return self.logprobs

    def prompts(self, vocab_size: int) -> list[str | list[int]]:
        """Return the prompts: texts or lists of token ids.

        Raises:
            RequestError: 400 for other types, an empty list, too many prompts or an unknown id.
        """
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not isinstance(prompt, list) or not prompt:
            raise invalid(
                f"`prompt` is {shown(prompt)}: must be a string, a list of strings or lists of token ids",
                "prompt",
            )
        many = [prompt] if isinstance(prompt[0], int) else prompt
        if len(many) > _MAX_PROMPTS:
            raise invalid(f"`prompt` holds {len(many)} prompts, at most {_MAX_PROMPTS} are allowed", "prompt")
        return [_prompt(one, index, vocab_size) for index, one in enumerate(many)]


_Body = TypeVar("_Body", bound=Sampling)


def parse_chat(raw: bytes) -> ChatBody:
    """Return the validated body of a chat request.

    Raises:
        RequestError: 400 that names the first wrong field.
    """
    body = _parse(ChatBody, raw, _LATER)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("`top_logprobs` needs `logprobs` to be true", "top_logprobs")
    return body


def parse_completion(raw: bytes) -> CompletionBody:
    """Return the validated body of a completion request.

    Raises:
        RequestError: 400 that names the first wrong field.
    """
    return _parse(CompletionBody, raw, _LATER_COMPLETIONS)


def _parse(model: type[_Body], raw: bytes, later: dict[str, tuple[Any, ...]]) -> _Body:
    try:
        body = model.model_validate_json(raw)
    except ValidationError as error:
        raise _translate(error) from None
    for field, value in (body.model_extra or {}).items():
        if field not in later:
            known = [*model.model_fields, *later]
            raise invalid(f"`{field}` is not a field of this request: {did_you_mean(field, known)}", field)
        if value is not None and not any(
            value == neutral and type(value) is type(neutral) for neutral in later[field]
        ):
            raise invalid(f"`{field}` is not supported yet: leave it out or set it to null", field)
    if body.stream_options is not None:
        if not body.stream:
            raise invalid("`stream_options` needs `stream` to be true", "stream_options")
        if body.stream_options.include_obfuscation:
            raise invalid(
                "`stream_options.include_obfuscation` is not supported yet: leave it out or set it to null",
                "stream_options.include_obfuscation",
            )
    return body


def _translate(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    kind, message = first["type"], first["msg"].replace("Input should", "must")
    if kind == "json_invalid":
        return invalid(
            f"the request body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}", None
        )
    if not first["loc"]:
        return invalid("the request body must be a JSON object", None)
    field = ".".join(str(part) for part in first["loc"])
    if kind == "missing":
        return invalid(f"`{field}` is required", field, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(f"`{field}` is not a field of this request", field)
    return invalid(f"`{field}` is {shown(first['input'])}: {message}", field)


def _prompt(one: Any, index: int, vocab_size: int) -> str | list[int]:
    where = f"prompt[{index}]"
    if isinstance(one, str):
        return one
    if not isinstance(one, list) or not one:
        raise invalid(f"`{where}` is {shown(one)}: must be a string or a list of token ids", "prompt")
    for token in one:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise invalid(
                f"`{where}` holds {shown(token)}: token ids are integers in 0..{vocab_size - 1}", "prompt"
            )
    return one

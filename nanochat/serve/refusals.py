"""Every refusal in OpenAI's error shape. Knows no route and no engine.

The body is always `{"error": {"message", "type", "param", "code"}}` and `code`
is a string or null: clients branch on it.
"""

from __future__ import annotations

import json
from typing import Any

from nanochat.errors import RequestError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refusal(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_s: float | None = None,
) -> RequestError:
    """Return the error of a status with the `type` that OpenAI's clients expect for it."""
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return RequestError(
        message, status=status, kind=kind, param=param, code=code, retry_after_s=retry_after_s
    )


def invalid(message: str, param: str | None, *, code: str | None = None) -> RequestError:
    """Return a 400 that names the field."""
    return refusal(400, message, param=param, code=code)


def internal_error() -> RequestError:
    """Return the answer to a fault of ours: no internals, the traceback is in the log."""
    return refusal(500, "the server failed while it worked on this request", code="internal_error")


def error_object(error: RequestError) -> dict[str, dict[str, str | None]]:
    """Return the JSON value of an error."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_body(error: RequestError) -> bytes:
    """Return the JSON bytes of an error."""
    return json_bytes(error_object(error))


def json_bytes(value: Any) -> bytes:
    """Return compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def shown(value: object, limit: int = 60) -> str:
    """Return a value as a message may quote it: short, on one line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"

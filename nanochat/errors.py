"""Every error a user can cause or meet, and the exit code it ends a process with.

Knows nothing of what raised it. The codes are a contract: Kubernetes operators
retry only codes of 128 and above, so everything a retry cannot mend is below.

NanochatError
  ConfigError            usage or configuration: exit 64
  DataError              damaged or missing data, wrong checksum: exit 65
  RunLockedError         another process holds the run, or its configuration changed: exit 66
  UnavailableError       cluster, API or network not reachable: exit 69
  DivergedError          loss is not finite: exit 70
  TakenError             port or name in use: exit 73
  QuotaError             quota, queue or budget: exit 75
  ForbiddenError         credentials or RBAC: exit 77
  Interrupted            stopped by a signal after a checkpoint: exit 130 (SIGINT) or 143 (SIGTERM)
  StorageError           the volume refused a write that must not be lost: exit 201
  RankLostError          a rank died by a signal: its code passed through (137, 139)
    PeerLostError          another rank or node is gone, and none said why: exit 137
  HangError              no step within the watchdog's limit: exit 202
  RequestError           the API client's fault: HTTP status and OpenAI error code
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "DivergedError",
    "ForbiddenError",
    "HangError",
    "Interrupted",
    "NanochatError",
    "PeerLostError",
    "QuotaError",
    "RankLostError",
    "RequestError",
    "RunLockedError",
    "StorageError",
    "TakenError",
    "UnavailableError",
    "did_you_mean",
]


class NanochatError(Exception):
    """One sentence that names the field, the value and what is wrong; `hint` says how to mend it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def render(self) -> str:
        """Return the text for a terminal: `error: ...` and, after a blank line, `hint: ...`."""
        text = f"error: {self.message}"
        return f"{text}\n\nhint: {self.hint}" if self.hint else text


class ConfigError(NanochatError):
    """Usage or configuration is wrong; never retried."""

    exit_code = 64


class DataError(NanochatError):
    """A dataset, shard, token file or checkpoint is missing or damaged; never retried."""

    exit_code = 65


class RunLockedError(NanochatError):
    """Another process works on the run, or the run was made with another configuration."""

    exit_code = 66


class UnavailableError(NanochatError):
    """The network, an API or a cluster did not answer."""

    exit_code = 69


class DivergedError(NanochatError):
    """The loss is not finite; a retry would repeat it."""

    exit_code = 70


class TakenError(NanochatError):
    """A port or a name is in use."""

    exit_code = 73


class QuotaError(NanochatError):
    """A quota, a queue or a budget refuses the work."""

    exit_code = 75


class ForbiddenError(NanochatError):
    """Credentials or access rules refuse the work."""

    exit_code = 77


class Interrupted(NanochatError):
    """A signal was honoured and the state is on disk."""

    def __init__(self, signum: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signum = signum
        self.exit_code = 130 if signum == signal.SIGINT else 143


class StorageError(NanochatError):
    """The volume is full or failing; retried automatically."""

    exit_code = 201


class RankLostError(NanochatError):
    """A rank died by a signal; `exit_code` is 128 plus the signal."""

    def __init__(self, signum: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signum


class PeerLostError(RankLostError):
    """Another rank or node went away; a consequence, shown only where the cause stays unknown."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(signal.SIGKILL, message, hint=hint)


class HangError(NanochatError):
    """No step finished within the watchdog's limit."""

    exit_code = 202


class RequestError(NanochatError):
    """An API request is refused; carries what OpenAI's error body needs."""

    exit_code = 64

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest of `known`, or the list of them."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else "one of: " + ", ".join(f"`{name}`" for name in names)

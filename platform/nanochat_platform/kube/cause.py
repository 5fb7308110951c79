"""Why an attempt ended or does not go on: one line, what mends it, and its exit code.

Pure data that goes into an annotation and comes back. Knows nothing of how it was found.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import ValidationError

from nanochat.errors import (
    ConfigError,
    DataError,
    DivergedError,
    ForbiddenError,
    HangError,
    NanochatError,
    QuotaError,
    RunLockedError,
    StorageError,
    TakenError,
    UnavailableError,
)
from nanochat.run.config import Frozen

State = Literal["waits", "stuck", "failed"]
_CLASSES = (
    ConfigError,
    DataError,
    RunLockedError,
    UnavailableError,
    DivergedError,
    TakenError,
    QuotaError,
    ForbiddenError,
    StorageError,
    HangError,
)


class Cause(Frozen):
    """The root cause in one line."""

    kind: str
    """One of a closed list, for machines: `oom-killed`, `image-missing`, `diverged`, ..."""
    text: str
    exit_code: int
    fix: str = ""
    state: State = "failed"
    """`waits`: may pass by itself; `stuck`: will not, though nothing has ended; `failed`: it is over."""
    retried: bool = False
    """Whether another attempt followed without a person."""

    def line(self) -> str:
        """Return the text with the fix, for a terminal."""
        return f"{self.text}; {self.fix}" if self.fix else self.text

    def annotation(self) -> str:
        """Return what is kept on the job object."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Cause | None:
        """Return the cause of an annotation, None when it holds none."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def worth_retrying(self) -> bool:
        """Whether another attempt may end better without a person: codes of 128 and above, except Ctrl-C."""
        return self.exit_code >= 128 and self.exit_code != 130

    def error(self, where: str) -> NanochatError:
        """Return it as the error that a command ends with; `where` names run, stage and attempt."""
        error = next((c for c in _CLASSES if c.exit_code == self.exit_code), NanochatError)(
            f"{where}: {self.text}", hint=self.fix or None
        )
        error.exit_code = self.exit_code
        return error

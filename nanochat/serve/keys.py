"""API keys: a file of sha256 hashes, compared in constant time. Knows no HTTP.

One hash a line, 64 hex digits, optionally a name after it; `#` starts a
comment. Make one with `printf %s "$KEY" | sha256sum`. The keys themselves are
stored nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from nanochat.errors import ConfigError

_HASH = re.compile(r"[0-9a-f]{64}")


class Keys:
    """The accepted keys. Immutable; a changed file takes a restart."""

    def __init__(self, hashes: tuple[bytes, ...]) -> None:
        self._hashes = hashes

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Read the file of hashes.

        Raises:
            ConfigError: the file cannot be read or holds no hash; or the line that is not a sha256.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-keys `{path}` cannot be read: {error}") from error
        hashes = []
        for number, line in enumerate(lines, 1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            if not _HASH.fullmatch(words[0].lower()):
                raise ConfigError(
                    f"--api-keys `{path}` line {number} does not start with a sha256 (64 hex digits)",
                    hint='write `printf %s "$KEY" | sha256sum` into the file, never the key itself',
                )
            hashes.append(bytes.fromhex(words[0]))
        if not hashes:
            raise ConfigError(f"--api-keys `{path}` holds no key: every request would be refused")
        return cls(tuple(hashes))

    def accepts(self, authorization: bytes) -> bool:
        """Return whether an Authorization header carries a known key.

        Every hash is compared, whichever matches, so the time taken tells nothing.
        """
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = 0
        for known in self._hashes:
            matches |= hmac.compare_digest(given, known)
        return bool(matches) and scheme.lower() == b"bearer"

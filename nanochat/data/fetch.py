"""HTTP downloads that survive: parallel, resumed by range, verified, retried with backoff and jitter.

A file appears under its name only when it is whole and has passed its checks;
until then it grows as `.<name>.part`, which a later run continues. Knows
nothing of what is inside.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from nanochat.errors import DataError, NanochatError, UnavailableError
from nanochat.files import fsync_dir, sha256_file, storage_errors, write_json

Check = Callable[[Path], None]
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True, slots=True)
class Item:
    """One file to fetch."""

    url: str
    path: Path
    sha256: str | None = None
    check: Check | None = None
    """Raises `DataError` when the whole file, still under its temporary name, is not as it should be."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient the downloads are."""

    workers: int = 8
    connect_s: float = 15.0
    stall_s: float = 30.0
    """Without a byte for this long a connection counts as dead."""
    attempts: int = 6
    """Consecutive failures without any progress after which a file is given up."""
    corrupt_attempts: int = 2
    """Times that a file may arrive whole but wrong."""
    backoff_s: float = 1.0
    longest_backoff_s: float = 60.0

    def delay(self, failures: int, pick: random.Random, *, retry_after_s: float | None = None) -> float:
        """Return seconds to wait after the n-th failure in a row: doubled each time, half of it random."""
        if retry_after_s is not None:
            return min(retry_after_s, self.longest_backoff_s)
        full = min(self.backoff_s * 2.0 ** (failures - 1), self.longest_backoff_s)
        return full * (0.5 + 0.5 * pick.random())


class _RetryError(Exception):
    """The attempt failed in a way that another may not; carries what the server asked for."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _CorruptError(Exception):
    """The file is whole but wrong."""


class Downloader:
    """Fetches files over one connection pool.

    Args:
        policy: patience.
        pause: waits that many seconds, or until cancelled; tests pass one that returns at once.
        seed: of the jitter.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        pause: Callable[[float], object] | None = None,
        seed: int | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self._cancelled = threading.Event()
        self._pause = pause or self._cancelled.wait
        self._random = random.Random(seed)

    def fetch(self, items: Sequence[Item], *, report: Callable[[int, int], None]) -> None:
        """Fetch all items that are not there yet.

        Args:
            items: what to fetch.
            report: called in the calling thread with (files done, files in all), about twice a second.

        Raises:
            UnavailableError: a file cannot be had; says how many are.
            DataError: a file arrives with a wrong checksum or content every time.
            StorageError: the volume is full.
        """
        missing = [item for item in items if not item.path.exists()]
        done = len(items) - len(missing)
        report(done, len(items))
        timeout = httpx.Timeout(self.policy.stall_s, connect=self.policy.connect_s)
        headers = {"Accept-Encoding": "identity"}  # a range counts bytes as they are stored
        with (
            httpx.Client(timeout=timeout, follow_redirects=True, headers=headers) as client,
            ThreadPoolExecutor(self.policy.workers, thread_name_prefix="fetch") as pool,
        ):
            futures: set[Future[None]] = {pool.submit(self._fetch_one, client, item) for item in missing}
            try:
                while futures:
                    finished, futures = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                        done += 1
                    report(done, len(items))
            except BaseException:
                self._cancelled.set()
                for future in futures:
                    future.cancel()
                raise

    def _fetch_one(self, client: httpx.Client, item: Item) -> None:
        part = item.path.with_name(f".{item.path.name}.part")
        failures = corrupt = 0
        while not self._cancelled.is_set():
            before = part.stat().st_size if part.exists() else 0
            try:
                announced = self._stream(client, item, part)
                self._accept(item, part, announced)
                return
            except _CorruptError as error:
                part.unlink(missing_ok=True)
                corrupt += 1
                if corrupt >= self.policy.corrupt_attempts:
                    raise DataError(
                        f"`{item.url}` arrives damaged: {error}",
                        hint="the source or a mirror serves a wrong file",
                    ) from None
            except (httpx.TransportError, _RetryError) as error:
                grown = part.exists() and part.stat().st_size > before
                failures = 1 if grown else failures + 1
                if failures >= self.policy.attempts:
                    raise UnavailableError(
                        f"cannot fetch `{item.url}`: {str(error) or type(error).__name__}"
                    ) from None
                self._pause(
                    self.policy.delay(
                        failures, self._random, retry_after_s=getattr(error, "retry_after_s", None)
                    )
                )

    def _stream(self, client: httpx.Client, item: Item, part: Path) -> str | None:
        """Append to the part file what is missing; return the checksum that the hub announces, if any."""
        state_path = part.with_suffix(".json")
        state = _read_state(state_path)
        have = part.stat().st_size if part.exists() and state.get("url") == item.url else 0
        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            if etag := state.get("etag"):
                headers["If-Range"] = etag
        with client.stream("GET", item.url, headers=headers) as response:
            if response.status_code == 416:  # the part is as long as the file, or longer than a changed one
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total == str(have):
                    return state.get("sha256")
                part.unlink(missing_ok=True)
                raise _RetryError("the file changed while it was fetched")
            _check_status(response)
            resumed = response.status_code == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                part.unlink(missing_ok=True)
                raise _RetryError("the server answered with another range")
            start = have if resumed else 0
            length = response.headers.get("Content-Length")
            total_bytes = start + int(length) if length is not None else None
            announced = _announced_sha256(response)
            etag = response.headers.get("ETag", "")
            strong = etag if etag and not etag.startswith("W/") else None
            with storage_errors(item.path):
                item.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(state_path, {"url": item.url, "etag": strong, "sha256": announced})
                size = self._append(response, part, start)
            if total_bytes is not None and size < total_bytes:
                raise _RetryError(f"the connection ended after {size:,} of {total_bytes:,} bytes")
            return announced

    def _append(self, response: httpx.Response, part: Path, start: int) -> int:
        with part.open("ab" if start else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                if self._cancelled.is_set():
                    raise _RetryError("cancelled")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    @staticmethod
    def _accept(item: Item, part: Path, announced: str | None) -> None:
        """Check the whole file and give it its name."""
        expected = item.sha256 or announced
        if expected is not None and (found := sha256_file(part)) != expected:
            raise _CorruptError(f"its sha256 is {found}, expected {expected}")
        if item.check is not None:
            try:
                item.check(part)
            except DataError as error:
                raise _CorruptError(error.message) from None
        with storage_errors(item.path):
            part.replace(item.path)
            part.with_suffix(".json").unlink(missing_ok=True)
            fsync_dir(item.path.parent)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _announced_sha256(response: httpx.Response) -> str | None:
    """Return the checksum that a hub names while it redirects to its store."""
    for answer in (*response.history, response):
        if match := _SHA256.fullmatch(answer.headers.get("X-Linked-ETag", "")):
            return match[1]
    return None


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    reason = f"the server answered {status} {response.reason_phrase}"
    if status in _RETRIED_STATUS:
        after = response.headers.get("Retry-After", "")
        raise _RetryError(reason, float(after) if after.isdigit() else None)
    hint = "check the address in sources.toml" if status in (404, 410) else "the source refuses access"
    raise UnavailableError(f"cannot fetch `{response.request.url}`: {reason}", hint=hint)


def offline_hint(error: NanochatError, items: Sequence[Item], folder: Path) -> str:
    """Return what is cached and how to go on without a network."""
    there = sum(item.path.exists() for item in items)
    started = sum(item.path.with_name(f".{item.path.name}.part").exists() for item in items)
    ways = (
        f"{there} of {len(items)} files are complete, {started} more begun (`{folder}`); the same command "
        "goes on from there. Without a network: copy the folder from a machine with one, name a mirror in "
        "`sources.toml` of NANOCHAT_HOME, or use `--source packages/cpu` or `--source generated`"
    )
    return f"{error.hint}; {ways}" if error.hint else ways

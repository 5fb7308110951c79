"""Logs of all pods of a run, as one stream of prefixed lines, each exactly once.

A pod's stream is opened again wherever it breaks, from the second of the last line seen; what
was shown already is left out by time stamp. Knows nothing of jobs or stages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nanochat.errors import NanochatError
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.follow import follow
from nanochat_platform.kube.names import selector
from nanochat_platform.kube.resources import PODS, Object, meta, name_of
from nanochat_platform.kube.symptoms import node_rank
from nanochat_platform.kube.transport import Stream, Unreachable

Sink = Callable[[str, str], None]
"""Takes a prefix and a line; called under a lock."""
TRAINING = "app.kubernetes.io/component=train"
ENDED = ("Succeeded", "Failed")
WINDOW_S, DRAIN_S = 5.0, 5.0
QUIET_S = 120.0
"""Seconds without a line after which a followed stream is opened again: a dead path says nothing."""


@dataclass(slots=True)
class Cursor:
    """How far one container's log was read."""

    stamp: str = ""
    """RFC 3339 with nanoseconds, as the kubelet writes it."""
    same: int = 0
    """Lines seen that carry `stamp`."""
    _again: int = 0
    _seen: bool = field(default=False)

    def reopen(self) -> str | None:
        """Start over; returns the time to read from, None for the beginning."""
        self._again = 0
        return self.stamp or None

    def take(self, line: str) -> str | None:
        """Return the text of a raw line that was not seen before, None of one that was."""
        stamp, _, text = line.partition(" ")
        if not _is_stamp(stamp):
            return line  # a runtime that stamps nothing: better twice than never
        if _key(stamp) < _key(self.stamp):
            return None
        if stamp == self.stamp:
            self._again += 1
            if self._again <= self.same:
                return None
            self.same += 1
            return text
        self.stamp, self.same, self._again = stamp, 1, 1
        return text


def _is_stamp(text: str) -> bool:
    return len(text) >= 20 and text[4:5] == "-" and text[10:11] == "T"


def _key(stamp: str) -> tuple[str, str]:
    """Return what orders stamps: the kubelet drops trailing zeros of the fraction."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return whole, fraction.ljust(9, "0")


def prefix(pod: Object) -> str:
    """Return what stands before a pod's lines: `<pod>/<node rank>`."""
    return f"{name_of(pod)}/{node_rank(pod)}"


class Reader:
    """Reads the log of one pod's working container to its end."""

    def __init__(
        self,
        client: Client,
        pod: Object,
        sink: Sink,
        *,
        follow: bool,
        tail: int | None = None,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._name = name_of(pod)
        self._uid = str(meta(pod, "uid", ""))
        self._container = str(((pod.get("spec") or {}).get("containers") or [{}])[0].get("name", ""))
        self._prefix = prefix(pod)
        self._sink = sink
        self._follow = follow
        self._tail = tail
        self._wait = wait
        self._cursor = Cursor()
        self._stopped = threading.Event()
        self._stream: Stream | None = None

    def stop(self) -> None:
        """End the reading, from another thread."""
        self._stopped.set()
        if self._stream is not None:
            self._stream.close()

    def read(self) -> None:
        """Read until the container has ended and its last line is shown, or the pod is gone."""
        delay, last = 0.2, not self._follow
        while not self._stopped.is_set():
            before = self._cursor.stamp
            try:
                finished = self._once()
            except Unreachable:
                finished = False
            if finished and last:
                return
            # Only a stream that was opened after the container had ended is sure to hold its last line.
            last = last or self._ended()
            delay = 0.2 if last or self._cursor.stamp != before else min(delay * 2, 5.0)
            self._stopped.wait(delay)

    def _once(self) -> bool:
        """Read one stream to its end; False when there was none yet."""
        since = self._cursor.reopen()
        query = {"container": self._container, "timestamps": "true"}
        query |= {"follow": "true"} if self._follow else {}
        query |= {"sinceTime": since.split(".")[0].rstrip("Z") + "Z"} if since else {}
        query |= {"tailLines": str(self._tail)} if self._tail is not None and not since else {}
        path = PODS.path(self._client.namespace, self._name, "log")
        self._stream = stream = self._client.stream(path, query, QUIET_S)
        try:
            if stream.status == 400:  # waiting to start
                return not self._follow
            if stream.status == 404:
                self._stopped.set()
                return True
            if stream.status != 200:
                raise Unreachable(f"the log was answered by {stream.status}")
            for raw in stream.lines():
                text = self._cursor.take(raw.decode("utf-8", "replace").rstrip("\r"))
                if text is not None:
                    self._sink(self._prefix, text)
            return True
        finally:
            stream.close()

    def _ended(self) -> bool:
        """Return whether the container has ended."""
        try:
            pod = self._client.get(PODS, self._name)
        except NanochatError:
            return False
        if pod is None or str(meta(pod, "uid", "")) != self._uid:
            self._stopped.set()
            return True
        return _phase(pod) in ENDED


class Readers:
    """One thread a pod; lines of all of them go to one sink, a whole line at a time."""

    def __init__(self, client: Client, sink: Sink, *, follow: bool, tail: int | None = None) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._sink = sink
        self._follow = follow
        self._tail = tail
        self._readers: dict[str, tuple[Reader, threading.Thread]] = {}
        self.broken = False
        """True once nobody reads our output any more."""

    def add(self, pod: Object) -> None:
        """Read a pod, once, from when its container has started."""
        uid = str(meta(pod, "uid", ""))
        if uid in self._readers or _phase(pod) == "Pending":
            return
        reader = Reader(self._client, pod, self._show, follow=self._follow, tail=self._tail)
        thread = threading.Thread(target=reader.read, name=f"log {name_of(pod)}", daemon=True)
        self._readers[uid] = (reader, thread)
        thread.start()

    def busy(self) -> bool:
        """Return whether any pod is still read."""
        return any(thread.is_alive() for _, thread in self._readers.values())

    def join(self) -> None:
        """Wait until every pod is read to its end."""
        for _, thread in self._threads():
            thread.join()

    def stop(self) -> None:
        """End all reading."""
        for reader, _ in self._threads():
            reader.stop()

    def _threads(self) -> Iterator[tuple[Reader, threading.Thread]]:
        yield from self._readers.values()

    def _show(self, prefix: str, line: str) -> None:
        with self._lock:
            if self.broken:
                return
            try:
                self._sink(prefix, line)
            except BrokenPipeError:
                self.broken = True


class Tee:
    """Follows the logs of a run's pods in the background for the duration of a block.

    Pods that had ended before are somebody else's news; those that come and go meanwhile are shown whole.
    """

    def __init__(self, client: Client, run: str, sink: Sink) -> None:
        self._client = client
        self._selector = f"{selector(run)},{TRAINING}"
        self._readers = Readers(client, sink, follow=True)
        self._before: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="logs", daemon=True)

    def __enter__(self) -> Tee:
        self._before = {str(meta(pod, "uid", "")) for pod in self._pods() if _phase(pod) in ENDED}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for pod in self._pods():
            self._add(pod)
        ends = time.monotonic() + DRAIN_S
        while self._readers.busy() and time.monotonic() < ends:
            time.sleep(0.05)
        self._readers.stop()

    def _pods(self) -> list[Object]:
        try:
            return self._client.items(PODS, selector=self._selector)
        except NanochatError:
            return []

    def _add(self, pod: Object) -> None:
        if str(meta(pod, "uid", "")) not in self._before:
            self._readers.add(pod)

    def _loop(self) -> None:
        while not self._done.is_set():
            try:
                for change in follow(self._client, PODS, selector=self._selector, window_s=lambda: WINDOW_S):
                    if self._done.is_set():
                        return
                    if change.object is not None and change.kind == "set":
                        self._add(change.object)
            except NanochatError:
                self._done.wait(WINDOW_S)


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", ""))

"""Requests to one API server that end in an object or in one of our errors.

Retries what cannot have an effect twice while the server restarts. Knows nothing of
runs; server-side apply, names and hashes make every write here safe to repeat.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nanochat.errors import NanochatError, UnavailableError
from nanochat_platform.kube import access, refusals
from nanochat_platform.kube.resources import Object, Resource
from nanochat_platform.kube.transport import Answer, Stream, Transport, Unreachable

FIRST_PATIENCE_S = 3.0
"""Seconds to try a server that never answered: longer helps nobody who has the wrong address."""
RECOVERY_S = 30.0
"""Seconds after an outage in which a refusal is not believed: rules and types are loaded after the start."""
WEBHOOK_S = 30.0
"""Seconds to wait for a webhook that does not answer."""
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class Gone(Exception):
    """The watch's resource version is too old: list again."""


class Client:
    """One cluster and one namespace. Safe to use from several threads."""

    def __init__(
        self,
        transport: Transport,
        namespace: str,
        *,
        patience_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """`patience_s`: how long a server that answered before may be away; `wait` sleeps, and may raise."""
        self.transport = transport
        self.namespace = namespace
        self.patience_s = patience_s
        self.requests = 0
        """Requests sent so far."""
        self._clock = clock
        self._wait = wait if wait is not None else threading.Event().wait
        self._answered = False
        self._lost_at = float("-inf")

    @classmethod
    def load(
        cls,
        kubeconfig: str | Path | None = None,
        context: str | None = None,
        namespace: str | None = None,
        *,
        patience_s: float = 20.0,
    ) -> Client:
        """Return a client of the cluster that kubectl would use, or of the pod's own.

        Raises:
            ConfigError: the kubeconfig is wrong.
            UnavailableError: there is none.
        """
        found = access.load(kubeconfig, context)
        return cls(Transport(found), namespace or found.namespace, patience_s=patience_s)

    def close(self) -> None:
        """Close idle connections."""
        self.transport.close()

    def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> Object | None:
        """Return one object, None when it does not exist.

        Raises:
            NanochatError: its type or namespace does not exist, or the request is refused.
        """
        path = resource.path(namespace or self.namespace, name)
        answer = self._call(
            "GET", path, what=f"read {resource.plural} `{name}`", resource=resource, missing=True
        )
        return None if answer.status == 404 else answer.json()

    def listing(
        self,
        resource: Resource,
        *,
        selector: str = "",
        fields: str = "",
        namespace: str | None = "",
        limit: int | None = None,
    ) -> Object:
        """Return a list object (`items`, and the version to watch from in its metadata).

        `namespace`: another one than the client's, or None for all of them.
        """
        where = self.namespace if namespace == "" else namespace
        query = {"labelSelector": selector, "fieldSelector": fields, "limit": str(limit or "")}
        answer = self._call(
            "GET",
            resource.path(where),
            query={key: value for key, value in query.items() if value},
            what=f"list {resource.plural}",
            resource=resource,
        )
        return answer.json()

    def items(
        self,
        resource: Resource,
        *,
        selector: str = "",
        fields: str = "",
        namespace: str | None = "",
        optional: bool = False,
    ) -> list[Object]:
        """Return the objects of a list; `optional`: none where the cluster does not know their type."""
        try:
            return list(
                self.listing(resource, selector=selector, fields=fields, namespace=namespace).get("items")
                or []
            )
        except refusals.NotServedError:
            if optional:
                return []
            raise

    def apply(self, resource: Resource, value: Object, *, manager: str, dry_run: bool = False) -> Object:
        """Create or change an object by server-side apply; what another manager set otherwise refuses it.

        Raises:
            RunLockedError: it exists with other values (409).
            NanochatError: the request is refused.
        """
        name = value["metadata"]["name"]
        query = {"fieldManager": manager, "fieldValidation": "Strict"}
        answer = self._call(
            "PATCH",
            resource.path(value["metadata"].get("namespace") or self.namespace, name),
            query=query | ({"dryRun": "All"} if dry_run else {}),
            body=value,
            content_type=_APPLY,
            what=f"create {resource.plural} `{name}`",
            resource=resource,
        )
        return answer.json()

    def create(self, resource: Resource, value: Object, *, dry_run: bool = False) -> Object:
        """Create an object.

        Raises:
            RunLockedError: it exists.
            NanochatError: the request is refused.
        """
        name = value["metadata"].get("name") or f"{value['metadata'].get('generateName', '')}..."
        query = {"fieldManager": "nanochat", "fieldValidation": "Strict"}
        answer = self._call(
            "POST",
            resource.path(value["metadata"].get("namespace") or self.namespace),
            query=query | ({"dryRun": "All"} if dry_run else {}),
            body=value,
            what=f"create {resource.plural} `{name}`",
            resource=resource,
        )
        return answer.json()

    def patch(
        self, resource: Resource, name: str, change: Mapping[str, Any], *, sub: str | None = None
    ) -> Object | None:
        """Merge `change` into an object; None when it does not exist."""
        answer = self._call(
            "PATCH",
            resource.path(self.namespace, name, sub),
            query={"fieldManager": "nanochat"},
            body=dict(change),
            content_type=_MERGE,
            what=f"change {resource.plural} `{name}`",
            resource=resource,
            missing=True,
        )
        return None if answer.status == 404 else answer.json()

    def delete(
        self, resource: Resource, name: str, *, namespace: str | None = None, timeout_s: float = 30.0
    ) -> bool:
        """Delete an object, and in the background what it owns; False when it was not there."""
        answer = self._call(
            "DELETE",
            resource.path(namespace or self.namespace, name),
            body={"propagationPolicy": "Background"},
            what=f"delete {resource.plural} `{name}`",
            resource=resource,
            missing=True,
            timeout_s=timeout_s,
        )
        return answer.status != 404

    def delete_all(self, resource: Resource, *, selector: str) -> None:
        """Delete the objects that a label selector picks, and in the background what they own."""
        self._call(
            "DELETE",
            resource.path(self.namespace),
            query={"labelSelector": selector},
            body={"propagationPolicy": "Background"},
            what=f"delete {resource.plural}",
            resource=resource,
            missing=True,
        )

    def raw(self, path: str, *, what: str, query: Mapping[str, str] | None = None) -> Answer:
        """Return the answer of a GET of any path.

        Raises:
            NanochatError: the request is refused.
        """
        answer = self._call("GET", path, query=query, what=what)
        return answer

    def watch(
        self,
        resource: Resource,
        version: str,
        *,
        selector: str = "",
        fields: str = "",
        window_s: float = 30.0,
    ) -> Iterator[tuple[str, Object]]:
        """Yield (ADDED | MODIFIED | DELETED | BOOKMARK, object) since a version, for `window_s` seconds.

        Raises:
            Gone: the version is too old.
            Unreachable: the connection broke: go on from the last version seen, or list again.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(window_s))),
            "labelSelector": selector,
            "fieldSelector": fields,
        }
        path = resource.path(self.namespace)
        stream = self.stream(path, {key: value for key, value in query.items() if value}, window_s + 15.0)
        try:
            if stream.status == 410:
                raise Gone
            if stream.status != 200:
                raise Unreachable(f"the watch was answered by {stream.status}")
            for line in stream.lines():
                yield _event(line)
        finally:
            stream.close()

    def stream(self, path: str, query: Mapping[str, str], timeout_s: float) -> Stream:
        """Start a GET whose answer goes on.

        Raises:
            Unreachable: there was no answer.
        """
        self.requests += 1
        try:
            return self.transport.stream(path, query=query, timeout_s=timeout_s)
        except Unreachable:
            self._lost_at = self._clock()
            raise

    def _call(
        self,
        method: str,
        path: str,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        resource: Resource | None = None,
        missing: bool = False,
        timeout_s: float = 30.0,
    ) -> Answer:
        """Send until there is an answer to believe: success, or a missing object where `missing` says so."""
        began, delay = self._clock(), 0.1
        while True:
            self.requests += 1
            after = None
            try:
                answer = self.transport.request(
                    method, path, query=query, body=body, content_type=content_type, timeout_s=timeout_s
                )
            except Unreachable as error:
                self._lost_at = self._clock()
                problem: NanochatError = self._unreachable(what, error)
                patience_s = self.patience_s if self._answered else min(FIRST_PATIENCE_S, self.patience_s)
            else:
                self._answered = True
                if answer.status < 400:
                    return answer
                if missing and refusals.is_missing(answer, resource):
                    return answer
                problem = refusals.error_of(answer, what=what, resource=resource, namespace=self.namespace)
                after, patience_s = answer.retry_after_s, self._patience(answer)
            left = began + patience_s - self._clock()
            if left <= 0:
                raise problem
            self._wait(min(left, after or delay * (0.5 + random.random())))
            delay = min(delay * 2, 2.0)

    def _patience(self, answer: Answer) -> float:
        if refusals.transient(answer):
            # An operator that is down is down for longer than an API server that restarts.
            return (
                min(WEBHOOK_S, self.patience_s)
                if b"failed calling webhook" in answer.body
                else self.patience_s
            )
        recovering = self._clock() - self._lost_at < RECOVERY_S
        doubtful = answer.status in (401, 403) or (answer.status == 404 and not answer.json())
        return min(10.0, self.patience_s) if recovering and doubtful else 0.0

    def _unreachable(self, what: str, error: Unreachable) -> UnavailableError:
        found = self.transport.access
        return UnavailableError(
            f"cannot {what}: the API server {found.server} does not answer: {error}",
            hint=f"it comes from {found.source}; is the cluster up, and is this the right one?",
        )


def _event(line: bytes) -> tuple[str, Object]:
    try:
        event = json.loads(line)
        kind, value = event["type"], event["object"]
    except (ValueError, KeyError, TypeError):
        raise Unreachable("the watch broke off in the middle of a line") from None
    if kind == "ERROR":
        if value.get("code") == 410:
            raise Gone
        raise Unreachable(str(value.get("message", "the watch failed")))
    return kind, value

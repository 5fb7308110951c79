"""The dead man's lease: as long as somebody renews it, the jobs that watch it may go on.

Knows nothing of jobs; the watching side is `nanochat_platform.kube.guard`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from nanochat.errors import NanochatError, RunLockedError
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.resources import LEASES, Object, meta

DURATION_S = 60
RENEW_S = 15.0


def utc_now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)


class Renewer:
    """Holds a Lease for the duration of a block, in a thread; takes over one that a dead predecessor left."""

    def __init__(
        self,
        client: Client,
        name: str,
        labels: dict[str, str],
        *,
        owners: list[dict[str, Any]] | None = None,
        every_s: float = RENEW_S,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`owners`: owner references, so that the lease goes with them."""
        self._client = client
        self._name = name
        self._labels = labels
        self._owners = owners or []
        self._every_s = every_s
        self._now = now
        self._holder = f"{socket.gethostname()}-{os.getpid()}"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"lease {name}", daemon=True)
        self.gone = False
        """True once somebody deleted the lease: the run was cancelled."""

    def __enter__(self) -> Renewer:
        """Take the lease.

        Raises:
            NanochatError: the cluster refuses it.
        """
        try:
            self._client.create(LEASES, self._object())
        except RunLockedError:
            self._take_over()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def release(self) -> None:
        """Delete the lease: its jobs are over."""
        self._done.set()
        with contextlib.suppress(NanochatError):
            self._client.delete(LEASES, self._name, timeout_s=5.0)

    def _object(self) -> Object:
        meta: dict[str, Any] = {"name": self._name, "labels": self._labels}
        if self._owners:
            meta["ownerReferences"] = self._owners
        spec = {"leaseDurationSeconds": DURATION_S, **self._times()}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}

    def _times(self) -> dict[str, Any]:
        return {"holderIdentity": self._holder, "renewTime": self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")}

    def _take_over(self) -> None:
        """Renew a lease that somebody made before; its owners stay beside ours."""
        found = self._client.get(LEASES, self._name) or {}
        owners = list(meta(found, "ownerReferences", []))
        owners += [mine for mine in self._owners if all(mine["uid"] != other.get("uid") for other in owners)]
        self._renew({"labels": self._labels} | ({"ownerReferences": owners} if owners else {}))

    def _renew(self, metadata: dict[str, Any] | None = None) -> None:
        change: dict[str, Any] = {"spec": {"leaseDurationSeconds": DURATION_S, **self._times()}}
        if metadata is not None:
            change["metadata"] = metadata
        self.gone = self._client.patch(LEASES, self._name, change) is None

    def _loop(self) -> None:
        while not self._done.wait(self._every_s) and not self.gone:
            # The API server may be away for longer than a renewal: the guard counts only time with it.
            with contextlib.suppress(NanochatError):
                self._renew()

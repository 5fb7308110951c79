"""The watching side of the lease, inside the first pod of a job: no renewal, no job.

`python -m nanochat_platform.kube.guard --lease NAME --job PLURAL.GROUP/NAME`, a native
sidecar. Standard library alone: it starts in a tenth of a second and holds 20 MB. Time
counts only while the API server answers, so an outage of the control plane ends nothing.
Knows nothing of what the job does.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nanochat.errors import NanochatError
from nanochat_platform.kube import access
from nanochat_platform.kube.names import kind_of
from nanochat_platform.kube.resources import LEASES, of_kind
from nanochat_platform.kube.transport import Answer, Transport, Unreachable

LOOK_S = 5.0
_REQUEST_S = 10.0
_DEFAULT_DURATION_S = 60.0


class Watch:
    """Judges a lease from what is seen of it; the clocks of other machines do not matter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._renewed = ""
        self._since = clock()
        self._missing = 0

    def seen(self, answer: Answer) -> str | None:
        """Take one answer about the lease; returns why the job must end, None while it need not."""
        if answer.status == 404:
            self._missing += 1
            return "its lease is gone" if self._missing > 1 else None  # one look may hit a restart
        self._missing = 0
        if answer.status != 200:
            self.unseen()
            return None
        spec = answer.json().get("spec") or {}
        renewed, now = str(spec.get("renewTime", "")), self._clock()
        if renewed != self._renewed:
            self._renewed, self._since = renewed, now
            return None
        limit_s = float(spec.get("leaseDurationSeconds") or _DEFAULT_DURATION_S)
        silent_s = now - self._since
        return f"nobody renewed its lease for {silent_s:.0f} s" if silent_s >= limit_s else None

    def unseen(self) -> None:
        """Start counting anew: who cannot be seen may have been renewing."""
        self._since = self._clock()


def guard(
    transport: Transport,
    namespace: str,
    lease: str,
    job: str,
    stop: threading.Event,
    *,
    look_s: float = LOOK_S,
) -> str | None:
    """Look at a lease until it fails, then delete the job; returns why, None when `stop` came first.

    Args:
        transport: to the API server.
        namespace: of lease and job.
        lease: name of the Lease.
        job: `plural.group/name`.
        stop: set when the pod ends for another reason.
        look_s: seconds between two looks.
    """
    resource, name = job.rsplit("/", 1)
    path = of_kind(kind_of(resource)).path(namespace, name)
    watch, reason = Watch(), None
    while reason is None:
        try:
            reason = watch.seen(transport.request("GET", LEASES.path(namespace, lease), timeout_s=_REQUEST_S))
        except (Unreachable, NanochatError):
            watch.unseen()
        if reason is None and stop.wait(look_s):
            return None
    print(f"guard: {reason}: deleting {job}", file=sys.stderr, flush=True)
    while not stop.is_set():
        with contextlib.suppress(Unreachable, NanochatError):
            body = {"propagationPolicy": "Background"}
            answer = transport.request("DELETE", path, body=body, timeout_s=_REQUEST_S)
            if answer.status < 300 or answer.status == 404:
                break
            print(f"guard: the API server answered {answer.status}", file=sys.stderr, flush=True)
        stop.wait(1.0)
    return reason


def main(argv: list[str] | None = None, *, account: Path = access.SERVICE_ACCOUNT) -> int:
    """Guard until the pod ends."""
    parser = argparse.ArgumentParser(prog="python -m nanochat_platform.kube.guard", description=__doc__)
    parser.add_argument("--lease", required=True, help="name of the Lease to watch")
    parser.add_argument("--job", required=True, help="what to delete: plural.group/name")
    parser.add_argument("--look-s", type=float, default=LOOK_S, help="seconds between two looks")
    args = parser.parse_args(argv)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):  # as process 1 of a container it has no default action
        signal.signal(signum, lambda *_: stop.set())
    try:
        kind_of(args.job.rsplit("/", 1)[0])
        found = access.from_pod(account=account)
    except KeyError:
        print(f"guard: --job `{args.job}` is of no kind that it can delete", file=sys.stderr)
        return 64
    except NanochatError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    if guard(Transport(found), found.namespace, args.lease, args.job, stop, look_s=args.look_s) is not None:
        stop.wait()  # the job's end ends this container too; leaving earlier would only restart it
    return 0


if __name__ == "__main__":
    sys.exit(main())

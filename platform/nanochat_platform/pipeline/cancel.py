"""Take back what a step has started: its lease and the jobs of its stage.

Called from a signal handler with half a second to live, and from the kill command
after that; both may run, in any order. Deleting what is gone is success. Knows
nothing of pipelines.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.errors import NanochatError
from nanochat.files import read_json, write_json
from nanochat_platform.kube import access
from nanochat_platform.kube.names import KINDS, lease_name, selector
from nanochat_platform.kube.resources import LEASES, Resource, name_of, of_kind
from nanochat_platform.kube.transport import Transport, Unreachable

_GONE = (200, 202, 404)


def state_file() -> Path:
    """Return where a step says what it is; one a container."""
    return Path(tempfile.gettempdir()) / "nanochat-step.json"


@dataclass(frozen=True, slots=True)
class State:
    """What a running step is about."""

    pid: int
    run: str
    stage: str
    kind: str
    namespace: str

    def write(self) -> None:
        """Say it to the kill command."""
        write_json(state_file(), asdict(self))

    @classmethod
    def read(cls) -> State | None:
        """Return what the step of this container said; None when it said nothing yet, or nothing whole."""
        try:
            return cls(**read_json(state_file()))
        except (NanochatError, OSError, TypeError):
            return None


def connect() -> Transport | None:
    """Return a connection to the API server of this pod's cluster; None where there is none."""
    try:
        return Transport(access.load())
    except NanochatError:
        return None


def cancel(state: State, *, timeout_s: float, transport: Transport | None = None) -> list[str]:
    """Delete the stage's lease and its jobs with their pods; returns what could not be done.

    The lease goes first: the guard beside the job takes its absence as the order to stop, so one
    request that arrives is enough. `timeout_s` bounds each of at most 2 + number of jobs requests.
    """
    transport = transport or connect()
    if transport is None:
        return ["no API server is known; the job ends with its lease"]
    problems = []
    lease = LEASES.path(state.namespace, lease_name(state.run, state.stage))
    jobs = of_kind(KINDS[state.kind])
    try:
        answer = transport.request("DELETE", lease, timeout_s=timeout_s)
        if answer.status not in _GONE:
            problems.append(f"cannot delete the lease: {answer.status}")
        for name in _names(transport, jobs, state, timeout_s):
            answer = transport.request(
                "DELETE",
                jobs.path(state.namespace, name),
                query={"propagationPolicy": "Background"},
                timeout_s=timeout_s,
            )
            if answer.status not in _GONE:
                problems.append(f"cannot delete {jobs.label} `{name}`: {answer.status}")
    except Unreachable as error:
        problems.append(f"the API server does not answer ({error}); the job ends with its lease")
    return problems


def _names(transport: Transport, jobs: Resource, state: State, timeout_s: float) -> list[str]:
    query = {"labelSelector": selector(state.run, state.stage)}
    answer = transport.request("GET", jobs.path(state.namespace), query=query, timeout_s=timeout_s)
    return [name_of(item) for item in answer.json().get("items") or []]

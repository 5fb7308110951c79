"""The pod that a step runs in: where it is, which Workflow owns it, and a note on it.

Knows the labels that Argo puts on its pods. Knows nothing of what the step does.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from nanochat.errors import UnavailableError
from nanochat.settings import environment
from nanochat_platform.kube.names import CAUSE, RUN
from nanochat_platform.kube.resources import PODS, Resource, label_of, meta
from nanochat_platform.kube.transport import Transport, Unreachable

WORKFLOWS = Resource("argoproj.io", "v1alpha1", "workflows")
_WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
_TIMEOUT_S = 10.0
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Pod:
    """This step's pod."""

    namespace: str
    name: str
    workflow: str | None = None
    """Its Workflow as `apiVersion/Kind/name/uid`; None where there is none or it may not be read."""
    transport: Transport | None = None

    @classmethod
    def own(cls, transport: Transport | None) -> Pod:
        """Return the pod that this process runs in.

        Raises:
            UnavailableError: there is no API server to submit to.
        """
        if transport is None:
            raise UnavailableError(
                "a pipeline step needs a cluster: there is no service account and no kubeconfig",
                hint="run it in a pod, or the pipeline on this machine: `nanochat pipeline run --local`",
            )
        namespace = transport.access.namespace
        name = environment().get("KFP_POD_NAME") or socket.gethostname()
        return cls(namespace, name, _workflow(transport, namespace, name), transport)

    def join(self, run: str) -> None:
        """Label the pod with the run, so that `nanochat explain` finds what it said last."""
        self._note({"labels": {RUN: run}})

    def annotate_cause(self, message: str) -> None:
        """Note on the pod why the step failed."""
        self._note({"annotations": {CAUSE: message}})

    def _note(self, metadata: dict[str, dict[str, str]]) -> None:
        """Change the pod's metadata; what is not allowed to is not done."""
        if self.transport is None:
            return
        # A connection of its own: the other one belongs to the handler of stop signals.
        own = Transport(self.transport.access)
        with contextlib.suppress(Unreachable):
            own.request(
                "PATCH",
                PODS.path(self.namespace, self.name),
                body={"metadata": metadata},
                content_type=_MERGE,
                timeout_s=_TIMEOUT_S,
            )
        own.close()


def _workflow(transport: Transport, namespace: str, name: str) -> str | None:
    """Return a pod's Workflow: the pod's own owner, else by its label."""
    try:
        pod = transport.request("GET", PODS.path(namespace, name), timeout_s=_TIMEOUT_S).json()
        for owner in meta(pod, "ownerReferences", []):
            if owner.get("kind") == "Workflow":
                return "/".join(owner[key] for key in ("apiVersion", "kind", "name", "uid"))
        workflow = label_of(pod, _WORKFLOW_LABEL)
        if not workflow:
            return None
        found = transport.request("GET", WORKFLOWS.path(namespace, workflow), timeout_s=_TIMEOUT_S).json()
    except Unreachable:
        return None
    uid = meta(found, "uid")
    return f"{WORKFLOWS.group}/{WORKFLOWS.version}/Workflow/{workflow}/{uid}" if uid else None

"""The pod that a step runs in: where it is, which Workflow owns it, and a note on it.

Knows the labels that Argo puts on its pods. Knows nothing of what the step does.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import Any

from nanochat.errors import UnavailableError
from nanochat_platform.kube.names import CAUSE
from nanochat_platform.kube.resources import PODS, Resource
from nanochat_platform.kube.transport import Transport, Unreachable

WORKFLOWS = Resource("argoproj.io", "v1alpha1", "workflows")
_WORKFLOW_LABEL = "workflows.argoproj.io/workflow"
_TIMEOUT_S = 10.0
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Pod:
    """This step's pod; `workflow` is an owner reference, None where there is none or it may not be read."""

    namespace: str
    name: str
    workflow: dict[str, Any] | None = None
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
        namespace, name = transport.access.namespace, os.environ.get("KFP_POD_NAME") or socket.gethostname()
        return cls(namespace, name, _workflow(transport, namespace, name), transport)

    def annotate_cause(self, message: str) -> None:
        """Note on the pod why the step failed; what is not allowed to is not done."""
        if self.transport is not None:
            note = {"metadata": {"annotations": {CAUSE: message}}}
            with contextlib.suppress(Unreachable):
                self.transport.request(
                    "PATCH",
                    PODS.path(self.namespace, self.name),
                    body=note,
                    content_type=_MERGE,
                    timeout_s=_TIMEOUT_S,
                )


def _workflow(transport: Transport, namespace: str, name: str) -> dict[str, Any] | None:
    """Return the owner reference of a pod's Workflow: the pod's own owner, else by its label."""
    try:
        pod = transport.request("GET", PODS.path(namespace, name), timeout_s=_TIMEOUT_S)
        metadata = pod.json().get("metadata") or {}
        for owner in metadata.get("ownerReferences") or []:
            if owner.get("kind") == "Workflow":
                return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
        workflow = (metadata.get("labels") or {}).get(_WORKFLOW_LABEL)
        if workflow is None:
            return None
        found = transport.request("GET", WORKFLOWS.path(namespace, workflow), timeout_s=_TIMEOUT_S)
        uid = (found.json().get("metadata") or {}).get("uid")
    except Unreachable:
        return None
    if uid is None:
        return None
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": workflow, "uid": uid}

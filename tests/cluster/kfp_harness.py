"""A pipeline backend for tests: runs a compiled pipeline's steps as real pods, as KFP 2.17 on Argo 4 does.

Reads the compiled file. Behaves as a stock installation was measured to: step after step, in the order
of the file; pods owned by a Workflow; `{{$}}` replaced by the ExecutorInput; input artifacts fetched before a
step starts and output artifacts collected after it; one attempt at a step that exits non-zero, whose code is
lost; a terminated run goes through CANCELING to FAILED, with the kill command run twice inside the container,
then SIGTERM with a broken stdout and 0.1 to 0.6 s to live. A retried run keeps its finished steps. Not here:
driver pods, MLMD, the cache.
"""

from __future__ import annotations

import base64
import json
import random
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nanochat_platform.pipeline.interpret import merge
from nanochat_platform.pipeline.ir import Key, Pipeline, Step, resolve

from tests.cluster import kfp_container
from tests.cluster.harness.access import Access
from tests.cluster.harness.host import poll

KILL_ANNOTATION = "workflows.argoproj.io/kill-cmd-main"
ARGO = "/var/run/argo"
OUTPUT_FILE = "/tmp/kfp_outputs/output_metadata.json"  # noqa: S108
ACCOUNT = "pipeline-runner"
FINISHED = ("Succeeded", "Failed")
WORKFLOW_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "workflows.argoproj.io"},
    "spec": {
        "group": "argoproj.io",
        "scope": "Namespaced",
        "names": {
            "plural": "workflows",
            "singular": "workflow",
            "kind": "Workflow",
            "listKind": "WorkflowList",
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}

State = Literal["PENDING", "RUNNING", "CANCELING", "SUCCEEDED", "FAILED"]
How = Literal["kill-command", "signal", "lost"]
"""With the step's own kill command; with Argo's, as if it had none; or the pod is gone without any signal."""


@dataclass
class Run:
    """One run of a pipeline on the test backend."""

    cluster: Access
    namespace: str
    pipeline: Pipeline
    values: dict[str, Any]
    states: list[State] = field(default_factory=list)
    tasks: dict[str, str] = field(default_factory=dict)
    """Step -> its state."""
    artifacts: dict[Key, dict[str, Any]] = field(default_factory=dict)
    store: dict[str, str] = field(default_factory=dict)
    """The object store: URI -> content, base64."""
    pods: dict[str, str] = field(default_factory=dict)
    """Step -> its newest pod."""
    workflow: dict[str, Any] = field(default_factory=dict)

    def submit(self) -> Run:
        """Make the Workflow that owns all pods."""
        self.states = ["PENDING"]
        name = f"{self.pipeline.name}-{secrets.token_hex(3)}"
        workflow = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": name},
            "spec": {},
        }
        self.cluster.create(workflow, namespace=self.namespace)
        self.workflow = self.cluster.get("workflows.argoproj.io", name, "-n", self.namespace)
        return self

    @property
    def uid(self) -> str:
        """The Workflow's uid."""
        return str(self.workflow["metadata"]["uid"])

    def steps_to_end(self, last: str | None = None, timeout: float = 300) -> State:
        """Run the steps that have not succeeded, in order, up to `last`; returns the run's state."""
        while True:
            step = self.start_next()
            if step is None:
                return self._become("SUCCEEDED")
            if self.finish(step, timeout) == "FAILED":
                return self._become("FAILED")
            if step.name == last:
                return self.states[-1]

    def start_next(self) -> Step | None:
        """Start the pod of the next step; None when all have succeeded."""
        step = next((s for s in self.pipeline.steps if self.tasks.get(s.name) != "SUCCEEDED"), None)
        if step is None:
            return None
        assert all(self.tasks.get(name) == "SUCCEEDED" for name in step.after), step.after
        assert not step.cached
        self._become("RUNNING")
        self._start(step)
        self.tasks[step.name] = "RUNNING"
        return step

    def finish(self, step: Step, timeout: float = 300) -> str:
        """Wait for a step's pod and collect what it left; returns the step's state."""
        pod = self.wait_pod(step.name, lambda p: p["status"].get("phase") in FINISHED, timeout)
        ended = pod["status"]["phase"] == "Succeeded"
        self.tasks[step.name] = "SUCCEEDED" if ended else "FAILED"
        if ended:
            line = next(
                line for line in self.log(step.name).splitlines() if line.startswith(kfp_container.MARK)
            )
            left = json.loads(line.removeprefix(kfp_container.MARK))
            self.store |= left["uploads"]
            given = self._executor_input(step)
            merged = merge(given, left["said"])
            self.artifacts |= {(step.name, name): artifact for name, artifact in merged.items()}
        return self.tasks[step.name]

    def terminate(self, step: Step, how: How) -> State:
        """Stop the run while `step` runs; returns once its container has ended."""
        self._become("CANCELING")
        if how == "lost":
            self.exec(step.name, "sh", "-c", "kill -KILL -1")  # all but process 1, which ends with them
            self.wait_pod(step.name, lambda p: p["status"].get("phase") in FINISHED, 30)
        else:
            command = [f"{ARGO}/argoexec", "kill", "%d", "1"]
            if how == "kill-command":
                command = json.loads(step.platform["podMetadata"]["annotations"][KILL_ANNOTATION])
            for _ in range(2):  # the second finds nothing left to do
                self.exec(step.name, *(part % 15 if "%d" in part else part for part in command))
            self.wait_pod(step.name, lambda p: p["status"].get("phase") in FINISHED, 30)
        self.tasks[step.name] = "FAILED"
        return self._become("FAILED")

    def exec(self, step: str, *command: str) -> str:
        """Run a command in a step's container; that it has ended meanwhile is no error."""
        done = self.cluster.kubectl(
            *("exec", self.pods[step], "-n", self.namespace, "-c", "main", "--", *command),
            check=False,
            timeout=60,
        )
        return done.stdout + done.stderr

    def log(self, step: str) -> str:
        """Return all that a step's container said."""
        return self.cluster.kubectl("logs", self.pods[step], "-n", self.namespace, "-c", "main").stdout

    def pod(self, step: str) -> dict[str, Any]:
        """Return a step's newest pod."""
        return self.cluster.get("pod", self.pods[step], "-n", self.namespace)

    def last_words(self, step: str) -> dict[str, Any]:
        """Return the JSON that a step left as its termination message."""
        status = self.pod(step)["status"]["containerStatuses"][0]
        found: dict[str, Any] = json.loads(status["state"]["terminated"]["message"])
        return found

    def why(self) -> str:
        """Return what the run's failed step said, for a test's message."""
        failed = next((name for name, state in self.tasks.items() if state == "FAILED"), None)
        return f"{self.tasks}" if failed is None else f"{failed}:\n{self.log_or_empty(failed)[-3000:]}"

    def last_words_or_none(self, step: str) -> dict[str, Any] | None:
        """Return a step's termination message, None where it left none."""
        status = self.pod(step)["status"]["containerStatuses"][0]
        return self.last_words(step) if status["state"]["terminated"].get("message") else None

    def log_or_empty(self, step: str) -> str:
        """Return what a step's container said so far; empty before it runs."""
        name = (self.pods[step], "-n", self.namespace, "-c", "main")
        return self.cluster.kubectl("logs", *name, check=False).stdout

    def wait_pod(
        self, step: str, condition: Callable[[dict[str, Any]], bool], timeout: float
    ) -> dict[str, Any]:
        """Return a step's pod once `condition` holds."""

        def look() -> dict[str, Any] | None:
            pod = self.pod(step)
            return pod if condition(pod) else None

        try:
            return poll(f"step {step}", look, timeout, interval=0.2)
        except TimeoutError:
            raise AssertionError(f"step {step} did not get there:\n{self.log(step)[-3000:]}") from None

    def content(self, step: str, output: str) -> bytes:
        """Return what the object store holds of an output artifact."""
        return base64.b64decode(self.store[self.artifacts[step, output]["uri"]])

    def _become(self, state: State) -> State:
        if self.states[-1:] != [state]:
            self.states.append(state)
        return state

    def _executor_input(self, step: Step) -> dict[str, Any]:
        root = f"minio://mlpipeline/v2/artifacts/{self.pipeline.name}/{self.uid}"
        return step.executor_input(
            self.values,
            self.artifacts,
            uri=lambda task, name: f"{root}/{task}/{name}",
            output_file=OUTPUT_FILE,
        )

    def _start(self, step: Step) -> None:
        given = self._executor_input(step)
        number = random.randrange(10**9, 10**10)
        name = self.pods[step.name] = f"{self.workflow['metadata']['name']}-system-container-impl-{number}"
        used = [a["uri"] for value in given["inputs"]["artifacts"].values() for a in value["artifacts"]]
        job = {
            "executor_input": given,
            "argv": step.argv(given),
            "store": {uri: self.store[uri] for uri in used if uri in self.store},
            "linger_s": random.uniform(0.1, 0.6),
        }
        files = {
            "job.json": json.dumps(job),
            "container.py": Path(kfp_container.__file__).read_text(),
            "argoexec": f'#!/bin/sh\nexec python {ARGO}/container.py kill "$2"\n',
        }
        owned = {"name": name, "ownerReferences": [self._owner()]}
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": owned, "data": files}
        self.cluster.create([config, self._pod(step, given, owned)], namespace=self.namespace)

    def _owner(self) -> dict[str, Any]:
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": self.workflow["metadata"]["name"],
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def _pod(self, step: Step, given: Mapping[str, Any], owned: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pod that Argo would make of the step and of its platform spec."""
        extra = step.platform["podMetadata"]
        volumes: list[dict[str, Any]] = [
            {"name": "argo", "configMap": {"name": owned["name"], "defaultMode": 0o755}},
            {"name": "minio-scratch", "emptyDir": {}},
        ]
        mounts = [{"name": "argo", "mountPath": ARGO}, {"name": "minio-scratch", "mountPath": "/minio"}]
        for mount in step.platform.get("pvcMount", ()):
            claim = given["inputs"]["parameterValues"][mount["pvcNameParameter"]["componentInputParameter"]]
            volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": claim, "mountPath": mount["mountPath"]})
        context = step.platform["securityContext"]
        resources = step.resources
        container = {
            "name": "main",
            "image": resolve(step.image, given),
            "command": ["python", f"{ARGO}/container.py", "emissary"],
            "env": [
                *({"name": name, "value": value} for name, value in step.env.items()),
                {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
            "resources": {
                "requests": {
                    "cpu": resources["resourceCpuRequest"],
                    "memory": resources["resourceMemoryRequest"],
                },
                "limits": {"cpu": resources["resourceCpuLimit"], "memory": resources["resourceMemoryLimit"]},
            },
            "securityContext": {
                "runAsUser": int(context["runAsUser"]),
                "runAsGroup": int(context["runAsGroup"]),
                "runAsNonRoot": context["runAsNonRoot"],
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": mounts,
        }
        labels = {
            "workflows.argoproj.io/workflow": self.workflow["metadata"]["name"],
            "workflows.argoproj.io/completed": "false",
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **owned,
                "labels": {**labels, **extra["labels"]},
                "annotations": dict(extra["annotations"]),
            },
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": ACCOUNT,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [container],
                "volumes": volumes,
            },
        }


def install(cluster: Access, namespace: str) -> None:
    """Give a namespace what a pipeline needs there: the Workflow type, accounts, roles, network policies.

    The repository's own manifests for the namespace of a pipeline, but for its volume and for what all
    namespaces share.
    """
    if "workflows.argoproj.io" not in cluster.crd_names():
        cluster.need_own("only there may a test install the Workflow type")
        cluster.create(WORKFLOW_CRD)
    cluster.wait("crd/workflows.argoproj.io", for_="condition=Established", timeout=30)
    rendered = cluster.kubectl("kustomize", str(Path(__file__).parents[2] / "manifests/overlays/kfp")).stdout
    kept = [
        document
        for document in re.split(
            r"^---$", rendered.replace("namespace: kubeflow", f"namespace: {namespace}"), flags=re.M
        )
        if re.search(r"^kind: (ServiceAccount|Role|RoleBinding|NetworkPolicy)$", document, flags=re.M)
    ]
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
    cluster.create(account, namespace=namespace)
    cluster.apply("\n---\n".join(kept), namespace=namespace)

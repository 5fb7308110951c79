"""Root causes from recorded job objects, pods and events; and what the server's refusals mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nanochat_platform.kube.cause import Cause
from nanochat_platform.kube.explain import Facts, explain
from nanochat_platform.kube.names import KINDS
from nanochat_platform.kube.refusals import error_of, is_missing, refusal
from nanochat_platform.kube.resources import NAMESPACES, PODS, Resource
from nanochat_platform.kube.transport import Answer

from nanochat.run.reason import LastWords

T0, T1, T2 = "2026-11-25T03:00:00Z", "2026-11-25T03:00:10Z", "2026-11-25T03:00:20Z"
NOW = 1795575700.0


def job(*conditions: tuple[str, str, str], kind: str = "PyTorchJob", **meta: Any) -> dict[str, Any]:
    """Return a job object; conditions are (type, reason, message)."""
    held = [{"type": t, "status": "True", "reason": r, "message": m} for t, r, m in conditions]
    metadata = {"name": "kt-base-train-1", "namespace": "chat", "creationTimestamp": T0, **meta}
    return {"kind": kind, "metadata": metadata, "status": {"conditions": held}}


def pod(rank: int = 0, **status: Any) -> dict[str, Any]:
    role, index = ("master", 0) if rank == 0 else ("worker", rank - 1)
    labels = {"training.kubeflow.org/replica-type": role, "training.kubeflow.org/replica-index": str(index)}
    return {
        "metadata": {
            "name": f"kt-base-train-1-{role}-{index}",
            "labels": labels,
            "creationTimestamp": T0,
        },
        "spec": {
            "nodeName": "gpu-1",
            "nodeSelector": {"nvidia.com/gpu.product": "H100"},
            "containers": [
                {
                    "name": "pytorch",
                    "resources": {"requests": {"nvidia.com/gpu": "8"}, "limits": {"memory": "64Gi"}},
                }
            ],
        },
        "status": {"phase": "Running", **status},
    }


def dead(
    rank: int = 0, *, code: int, at: str = T1, reason: str = "Error", message: str = "", **status: Any
) -> dict[str, Any]:
    ended = {"exitCode": code, "reason": reason, "finishedAt": at, "message": message}
    return pod(
        rank,
        phase="Failed",
        containerStatuses=[{"name": "pytorch", "state": {"terminated": ended}}],
        **status,
    )


def held(reason: str, message: str = "", *, image: str = "reg/train:1", init: bool = False) -> dict[str, Any]:
    container = {
        "name": "pytorch",
        "image": image,
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    group = "initContainerStatuses" if init else "containerStatuses"
    return pod(phase="Pending", **{group: [container]})


def unscheduled(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return pod(phase="Pending", conditions=[condition])


def event(reason: str, message: str, *, about: str = "kt-base-train-1", at: str = T1) -> dict[str, Any]:
    return {"reason": reason, "message": message, "involvedObject": {"name": about}, "lastTimestamp": at}


def words(code: int, message: str, hint: str | None = None) -> str:
    return LastWords(
        stage="base_train", run="kt", exit_code=code, status="failed", message=message, hint=hint
    ).line()


def disrupted(reason: str) -> dict[str, Any]:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    return dead(code=143, conditions=[condition])


FAILED = job(("Failed", "PyTorchJobFailed", "PyTorchJob is failed because 1 Worker replica(s) failed."))
RUNNING = job(("Running", "PyTorchJobRunning", ""))
PENDING = job(("Created", "PyTorchJobCreated", ""))
SECURITY = (
    'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": '
    "allowPrivilegeEscalation != false (container {} must set securityContext.allowPrivilegeEscalation=false)"
)
QUOTA = (
    'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, '
    "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=8"
)

CASES = {
    "out of memory": (
        FAILED,
        [dead(0, code=1, at=T0), dead(1, code=137, at=T1, reason="OOMKilled")],
        [],
        ("oom-killed", 137, "failed", "worker-0 was killed for memory at its limit of 64Gi"),
    ),
    "the launcher says why": (
        FAILED,
        [dead(code=70, message=words(70, "loss is nan at step 5", "lower the rate"))],
        [],
        ("diverged", 70, "failed", "loss is nan at step 5"),
    ),
    "a full volume": (
        FAILED,
        [dead(code=201, message=words(201, "cannot write `/data/x`: No space left on device"))],
        [],
        ("storage", 201, "failed", "No space left on device"),
    ),
    "the first of two that failed": (
        FAILED,
        [
            dead(0, code=70, at=T2, message=words(70, "late")),
            dead(1, code=65, at=T1, message=words(65, "early")),
        ],
        [],
        ("data", 65, "failed", "early"),
    ),
    "who was stopped is not the root": (
        FAILED,
        [dead(0, code=143, at=T0, message=words(143, "stopped")), dead(1, code=139, at=T1)],
        [],
        ("crashed", 139, "failed", "worker-0 ended with exit code 139"),
    ),
    "the last line of the log where there are no last words": (
        FAILED,
        [dead(code=1, message="Traceback\n  File x\nImportError: no module named torch\n")],
        [],
        ("failed", 1, "failed", "exit code 1: ImportError: no module named torch"),
    ),
    "no such command": (
        FAILED,
        [dead(code=128, reason="StartError", message='exec: "python": executable file not found in $PATH')],
        [],
        ("start", 64, "failed", "could not start its command"),
    ),
    "preempted": (
        FAILED,
        [disrupted("PreemptionByScheduler")],
        [],
        ("preempted", 143, "failed", "higher priority"),
    ),
    "drained": (
        FAILED,
        [disrupted("EvictionByEvictionAPI")],
        [],
        ("evicted", 143, "failed", "being drained"),
    ),
    "taint manager": (
        FAILED,
        [disrupted("DeletionByTaintManager")],
        [],
        ("node-lost", 137, "failed", "gpu-1"),
    ),
    "disk pressure": (
        FAILED,
        [pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage.")],
        [],
        ("evicted", 137, "failed", "low on resource: ephemeral-storage"),
    ),
    "deadline": (
        job(
            (
                "Failed",
                "PyTorchJobFailed",
                "Job kt has failed because it was active longer than specified deadline",
            )
        ),
        [dead(code=143)],
        [],
        ("deadline", 75, "failed", "reached its deadline"),
    ),
    "the pods are gone": (FAILED, [], [], ("pods-lost", 137, "failed", "its pods are gone")),
    "rendezvous": (
        FAILED,
        [
            pod(
                1,
                phase="Failed",
                initContainerStatuses=[
                    {"name": "init-pytorch", "state": {"terminated": {"exitCode": 1, "finishedAt": T1}}}
                ],
            )
        ],
        [],
        ("rendezvous", 137, "failed", "could not resolve the name of the first pod"),
    ),
    "no such image": (
        PENDING,
        [held("ImagePullBackOff", 'Back-off pulling image "reg/train:1"')],
        [
            event(
                "Failed",
                'Failed to pull image "reg/train:1": rpc error: code = NotFound desc = failed to pull and '
                'unpack image: failed to resolve reference "reg/train:1": reg/train:1: not found',
                about="kt-base-train-1-master-0",
            )
        ],
        ("image-missing", 64, "stuck", "image `reg/train:1` of pod kt-base-train-1-master-0 does not exist"),
    ),
    "a private image": (
        PENDING,
        [held("ErrImagePull", "rpc error: code = Unknown desc = pull access denied, unauthorized")],
        [],
        ("image-forbidden", 77, "stuck", "the registry refuses image `reg/train:1`"),
    ),
    "a registry that is away": (
        PENDING,
        [held("ErrImagePull", "rpc error: failed to do request: dial tcp 10.0.0.1:443: i/o timeout")],
        [],
        ("image-pull", 69, "waits", "cannot be pulled"),
    ),
    "a wrong image name": (
        PENDING,
        [held("InvalidImageName", "couldn't parse image reference")],
        [],
        ("image-missing", 64, "stuck", "is not a valid image name"),
    ),
    "a missing secret": (
        PENDING,
        [held("CreateContainerConfigError", 'secret "keys" not found')],
        [],
        ("container-config", 64, "stuck", 'secret "keys" not found'),
    ),
    "a user that is a name": (
        PENDING,
        [
            held(
                "CreateContainerConfigError",
                "container has runAsNonRoot and image has non-numeric user (app)",
            )
        ],
        [],
        ("container-config", 64, "stuck", "non-numeric user"),
    ),
    "no room": (
        PENDING,
        [unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes ...")],
        [],
        ("unschedulable", 75, "waits", "it wants nvidia.com/gpu 8, nvidia.com/gpu.product=H100): 0/3 nodes"),
    ),
    "no claim": (
        PENDING,
        [unscheduled('0/1 nodes are available: persistentvolumeclaim "nanochat-data" not found.')],
        [],
        ("claim-missing", 64, "stuck", "volume claim `nanochat-data` not found"),
    ),
    "an unbound claim": (
        PENDING,
        [unscheduled("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.")],
        [],
        ("claim-unbound", 69, "waits", "no storage class has bound"),
    ),
    "gated": (
        PENDING,
        [unscheduled("", "SchedulingGated")],
        [],
        ("queued", 75, "waits", "waits for its queue"),
    ),
    "mounted elsewhere": (
        PENDING,
        [pod(phase="Pending")],
        [
            event(
                "FailedAttachVolume",
                'Multi-Attach error for volume "pv" Volume is already used by pod(s) y',
                about="kt-base-train-1-master-0",
            )
        ],
        ("volume-busy", 64, "waits", "not ReadWriteMany"),
    ),
    "the operator's init container": (
        RUNNING,
        [pod()],
        [event("FailedCreatePod", SECURITY.format('"init-pytorch"'))],
        ("pod-security", 64, "stuck", "the training operator's own init container violates Pod Security"),
    ),
    "pods that the namespace refuses": (
        PENDING,
        [],
        [event("FailedCreate", SECURITY.format('"train"'))],
        ("pod-security", 64, "stuck", "the pods violate Pod Security `restricted`: allowPrivilegeEscalation"),
    ),
    "quota": (
        PENDING,
        [],
        [event("FailedCreate", QUOTA)],
        ("quota", 75, "waits", "quota `gpus` of namespace `chat` allows requests.nvidia.com/gpu=8"),
    ),
    "in Kueue's queue": (
        job(("Suspended", "PyTorchJobSuspended", "PyTorchJob is suspended.")),
        [],
        [],
        ("queued", 75, "waits", "queued: PyTorchJob is suspended."),
    ),
    "nobody takes the job up": (
        job(),
        [],
        [],
        ("no-operator", 69, "waits", "no controller has taken up the PyTorchJob"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_root_cause(case: str) -> None:
    value, pods, events, (kind, code, state, text) = CASES[case]
    cause = explain(Facts(job=value, kind=KINDS["pytorchjob"], pods=pods, events=events, now=NOW))
    assert cause is not None
    assert (cause.kind, cause.exit_code, cause.state) == (kind, code, state)
    assert text in cause.text
    assert "\n" not in cause.line()


def test_kueue_says_why_a_job_waits() -> None:
    waits = {"type": "QuotaReserved", "status": "False", "message": "insufficient quota for nvidia.com/gpu"}
    suspended = job(("Suspended", "Suspended", ""))
    facts = Facts(job=suspended, kind=KINDS["pytorchjob"], workload={"status": {"conditions": [waits]}})
    cause = explain(facts)
    assert cause is not None
    assert cause.text == "queued: insufficient quota for nvidia.com/gpu"


def test_a_silent_node_is_lost() -> None:
    ready = {"type": "Ready", "status": "False"}
    facts = Facts(
        job=RUNNING, kind=KINDS["pytorchjob"], pods=[pod(conditions=[ready])], lost_nodes={"gpu-1": T1}
    )
    cause = explain(facts)
    assert cause is not None
    assert (cause.kind, cause.exit_code) == ("node-lost", 137)
    assert cause.text == f"node `gpu-1` of pod kt-base-train-1-master-0 does not answer since {T1}"


@pytest.mark.parametrize(
    ("value", "pods", "events"),
    [
        (RUNNING, [pod(), pod(1)], []),
        (job(("Succeeded", "Done", "")), [dead(code=0)], []),
        (RUNNING, [pod(creationTimestamp=T2)], [event("FailedCreatePod", QUOTA, at="2026-11-25T02:00:00Z")]),
        (PENDING, [held("PodInitializing"), held("ContainerCreating")], []),
    ],
)
def test_nothing_is_wrong(value: Any, pods: Any, events: Any) -> None:
    assert explain(Facts(job=value, kind=KINDS["pytorchjob"], pods=pods, events=events, now=NOW)) is None


def test_what_was_decided_once_stays() -> None:
    kept = Cause(kind="diverged", text="loss is nan", exit_code=70, fix="lower the rate", retried=True)
    value = job(("Failed", "x", ""), annotations={"nanochat.dev/cause": kept.annotation()})
    assert explain(Facts(job=value, kind=KINDS["pytorchjob"], pods=[dead(code=1)])) == kept
    assert Cause.parse("not one") is None
    assert Cause.parse('{"kind": "x"}') is None


@pytest.mark.parametrize(
    ("code", "again"),
    [(1, False), (64, False), (70, False), (130, False), (137, True), (143, True), (201, True), (202, True)],
)
def test_only_codes_from_128_are_tried_again(code: int, again: bool) -> None:
    cause = Cause(kind="x", text="y", exit_code=code)
    assert cause.worth_retrying is again
    error = cause.error("stage `data`, attempt 1")
    assert (error.exit_code, error.message) == (code, "stage `data`, attempt 1: y")


def answer(code: int, message: str, *, reason: str = "", **details: Any) -> Answer:
    status = {"kind": "Status", "message": message, "reason": reason, "details": details}
    return Answer(code, json.dumps(status).encode(), "application/json")


TRAINJOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs")
REFUSALS = {
    "credentials": (answer(401, "Unauthorized"), 77, "does not accept these credentials"),
    "rights": (
        answer(
            403,
            'pods is forbidden: User "ann" cannot list resource "pods" in API group "" in the namespace "x"',
        ),
        77,
        "user `ann` may not list pods in namespace `chat`",
    ),
    "quota": (answer(403, QUOTA), 75, "quota `gpus` of namespace `chat`"),
    "kind": (
        Answer(404, b"404 page not found\n", "text/plain"),
        69,
        "this cluster has no `trainjobs.trainer",
    ),
    "namespace": (
        answer(404, 'namespaces "chat" not found', reason="NotFound", kind="namespaces", name="chat"),
        64,
        "namespace `chat` does not exist",
    ),
    "terminating": (
        answer(
            403,
            'pods "x" is forbidden: unable to create content in namespace x because it is being terminated',
        ),
        64,
        "namespace `chat` is being deleted",
    ),
    "conflict": (
        answer(
            409,
            "Apply failed with 1 conflict",
            reason="Conflict",
            causes=[{"reason": "FieldManagerConflict", "field": ".metadata.labels.nanochat.dev/spec-hash"}],
        ),
        66,
        "it exists with another spec; it differs in `.metadata.labels.nanochat.dev/spec-hash`",
    ),
    "exists": (answer(409, 'jobs "x" already exists', reason="AlreadyExists"), 66, "it exists already"),
    "webhook": (
        answer(400, 'admission webhook "v.kubeflow.org" denied the request: master must be 1'),
        64,
        "`v.kubeflow.org` refuses it: master must be 1",
    ),
    "a webhook that is away": (
        answer(
            500,
            'Internal error: failed calling webhook "v.kubeflow.org": Post: connect: connection refused',
        ),
        69,
        "webhook `v.kubeflow.org` does not answer: connection refused",
    ),
    "account": (
        answer(403, 'pods "x" is forbidden: error looking up service account chat/nanochat-train: not found'),
        64,
        "error looking up service account",
    ),
    "priority": (
        answer(403, "no PriorityClass with name high was found"),
        64,
        "no PriorityClass with name high",
    ),
    "schema": (answer(422, 'Job "x" is invalid: spec.completions: Invalid value'), 64, "spec.completions"),
    "broken": (answer(500, "etcdserver: request timed out"), 69, "answered 500"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(case: str) -> None:
    given, code, text = REFUSALS[case]
    error = error_of(given, what="create it", resource=TRAINJOBS, namespace="chat")
    assert error.exit_code == code
    assert text in error.message
    assert "\n" not in error.message


def test_a_missing_object_is_told_from_a_missing_kind_or_namespace() -> None:
    assert is_missing(answer(404, 'pods "x" not found', reason="NotFound", kind="pods", name="x"))
    assert not is_missing(REFUSALS["kind"][0])
    assert not is_missing(REFUSALS["namespace"][0])
    assert is_missing(REFUSALS["namespace"][0], NAMESPACES)
    assert PODS.label == "pods"
    assert refusal("odd", what="x", namespace="n", forbidden=True).exit_code == 77

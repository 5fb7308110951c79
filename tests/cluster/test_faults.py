"""Bad input and faults: each ends in one clear line with what mends it, its exit code, nothing half-made."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nanochat_platform.kube import names

from tests.cluster.client_side import User
from tests.cluster.cutting import Cutter
from tests.cluster.hands import wait_until
from tests.cluster.harness.access import Access
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.figures import figure
from tests.cluster.harness.images import BASE_TAG

LOOKING = ("status", "logs", "explain", "resume")


@pytest.fixture
def user(control_plane: Access, namespace: str, tmp_path: Path) -> Iterator[User]:
    found = User(control_plane, namespace, tmp_path)
    yield found
    found.close()


def assert_refused(
    user: User, *arguments: str | Path, code: int, error: str, hint: str, limit_s: float = 20
) -> None:
    """Run a command that must be refused, in one line and a hint, leaving nothing."""
    ran = user.run(*arguments, timeout=limit_s)
    assert ran.returncode == code, f"{ran.returncode}: {ran.stderr}"
    lines = [line for line in ran.stderr.splitlines() if line]
    assert re.match(f"error: .*{error}", lines[-2]), ran.stderr
    assert re.match(f"hint: .*{hint}", lines[-1]), ran.stderr
    assert ran.stdout == ""
    if user.kubeconfig is None:
        wait_until("what was made to be gone", lambda: user.left() == [], 10)


def assert_all_refused(user: User, commands: Iterable[Sequence[str | Path]], **expected: Any) -> None:
    """Run commands side by side, each of which must be refused like the others."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda command: assert_refused(user, *command, **expected), commands))


def test_no_cluster_answers(user: User, tmp_path: Path) -> None:
    user.kubeconfig = tmp_path / "config"
    values = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        "current-context": "c",
    }
    user.kubeconfig.write_text(json.dumps(values))
    expected = {
        "code": 69,
        "error": "API server https://127.0.0.1:9 does not answer",
        "hint": "it comes from context",
    }
    spec = user.spec()
    # Each tries for three seconds.
    assert_all_refused(user, (["status"], ["submit", "--spec", spec], ["cancel", "--run", "x"]), **expected)


def test_no_cluster_is_configured(user: User, tmp_path: Path) -> None:
    user.kubeconfig = tmp_path / "none"
    assert_refused(
        user,
        "status",
        code=64,
        error="KUBECONFIG names `.*none`, which does not exist",
        hint="set KUBECONFIG",
    )


def test_the_kind_is_not_served(user: User) -> None:
    """The real answer of a server that lacks a group: every operator's group is asked for by another name."""
    user.claim()
    with Cutter(
        user.access.kubeconfig, rewrite=lambda path: path.replace("kubeflow.org", "absent.org")
    ) as cutter:
        user.kubeconfig = cutter.kubeconfig(user.folder / "proxy.kubeconfig")
        for kind, title in (
            ("pytorchjob", "the Kubeflow training operator"),
            ("trainjob", "Kubeflow Trainer"),
        ):
            assert_refused(
                user,
                *("submit", "--spec", user.spec(kind=kind, nodes=2, stages=["base_train"])),
                code=69,
                error=f"this cluster has no `.*kubeflow.org`: {title} is not installed",
                hint=".*--kind job",
            )
        assert json.loads(user.ok("list", "-n", user.namespace, "--json")) == []
    assert user.left() == []


def test_the_namespace_does_not_exist(user: User) -> None:
    assert_refused(
        user,
        *("submit", "--spec", user.spec(namespace="nowhere")),
        code=64,
        error="namespace `nowhere` does not exist",
        hint="create it",
    )


def test_looking_into_a_namespace_that_does_not_exist(user: User) -> None:
    expected = {"code": 64, "error": "namespace `nowhere` does not exist", "hint": "choose another"}
    assert_all_refused(user, [(command, "-n", "nowhere") for command in LOOKING], **expected)


def test_an_account_without_rights(user: User) -> None:
    user.claim()
    spec = user.spec()
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}}
    user.access.create(account, namespace=user.namespace)
    nobody = User(user.access, user.namespace, user.folder)
    nobody.kubeconfig = user.access.account_kubeconfig(user.namespace, "nobody")
    who = f"system:serviceaccount:{user.namespace}:nobody"
    expected = {"code": 77, "error": f"user `{who}` may not list pytorchjobs", "hint": "bind the role"}
    status = ["status", "-n", user.namespace]
    assert_all_refused(nobody, (["submit", "--spec", spec], status, ["cancel", "--run", "kt"]), **expected)
    assert user.left() == []


@pytest.mark.parametrize(
    ("hard", "error"),
    [
        ({"pods": "1"}, "needs 2 of pods, and quota `team` of namespace `.*` allows 1"),
        ({"limits.memory": "5Gi"}, "needs 8Gi of limits.memory, and quota `team`"),
        ({"requests.cpu": "500m"}, "quota `team` of namespace `.*` allows requests.cpu=500m"),
        ({"count/jobs.batch": "0"}, "quota `team` of namespace `.*` allows count/jobs.batch=0"),
    ],
)
def test_the_quota_is_exceeded(user: User, hard: dict[str, str], error: str) -> None:
    user.claim()
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "team"},
        "spec": {"hard": hard},
    }
    user.access.create(quota, namespace=user.namespace)
    path = ("resourcequota", "team", "-n", user.namespace)
    wait_until("the quota's figures", lambda: user.access.get(*path).get("status", {}).get("used"))
    spec = user.spec(nodes=2, stages=["base_train"])
    assert_refused(user, "submit", "--spec", spec, code=75, error=error, hint="stop other runs")


def test_the_claim_is_missing_or_not_to_be_shared(user: User) -> None:
    spec = user.spec(nodes=2, stages=["base_train"])
    assert_refused(
        user,
        *("submit", "--spec", spec),
        code=64,
        error="volume claim `nanochat-data` does not exist in namespace",
        hint="create it .*, give `volume.size`",
    )
    user.claim("ReadWriteOnce")
    assert_refused(
        user,
        *("submit", "--spec", spec),
        code=64,
        error="2 nodes share volume claim `nanochat-data`, whose access modes are ReadWriteOnce",
        hint="use a claim with ReadWriteMany",
    )


def test_no_node_has_that_gpu(user: User) -> None:
    user.claim()
    name = f"small-{user.namespace}"
    user.access.create(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"unschedulable": True}}
    )
    try:
        spec = user.spec(preset="speedrun", hardware="8xh100", stages=["base_train"])
        assert_refused(
            user,
            *("submit", "--spec", spec),
            code=64,
            error="stage `base_train` needs a node with nvidia.com/gpu.product=.*, and the cluster has none",
            hint="choose another `hardware`",
        )
        user.ok("submit", "--spec", spec, "--wait-for-nodes", "--detach")
    finally:
        user.access.kubectl("delete", "node", name)


def test_names_and_accounts_that_do_not_exist(user: User) -> None:
    user.claim()
    assert_refused(
        user,
        "submit",
        "--spec",
        user.spec(run="r" * 64),
        code=64,
        error="run `r+` is not a valid name",
        hint="use 1 to 63",
    )
    assert_refused(
        user,
        *("submit", "--spec", user.spec(priority_class="nope")),
        code=64,
        error="no PriorityClass with name nope was found",
        hint="create it",
    )
    assert_refused(
        user,
        *("submit", "--spec", user.spec(), "--lease"),
        code=64,
        error="error looking up service account .*nanochat-train",
        hint="create the service accounts",
    )
    longest = user.spec(run="r" * 63, kind="job")
    user.ok("submit", "--spec", longest, "--detach")
    (name,) = user.jobs()
    assert len(name) <= names.JOB_NAME_MAX
    assert json.loads(user.ok("status", "-n", user.namespace, "--json"))["run"] == "r" * 63


def test_a_run_that_is_not_there(user: User) -> None:
    here = [(command, "-n", user.namespace) for command in LOOKING]
    assert_all_refused(user, here, code=64, error="has no run", hint="start one with")
    named = [(*command, "--run", "x") for command in here]
    assert_all_refused(user, named, code=64, error="no job|has no job", hint=".*nanochat submit")


# With a node: real containers


TALK = """
import signal, sys, time
print('start', flush=True)
for number in range({count}):
    print(f'line {{number}}', flush=True)
    time.sleep({pause})
print('end', flush=True)
"""
STOPPED = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path('/data/' + sys.argv[1]).write_text(str(time.time()))
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print('up', flush=True)
signal.pause()
"""


def job(
    run: str,
    stage: str,
    code: str,
    *,
    pods: int = 1,
    image: str = BASE_TAG,
    claim: str | None = None,
    **container: Any,
) -> dict[str, Any]:
    """Return a Job as ours, whose pods run `code` in the base image."""
    labels = names.labels(run=run, stage=stage, attempt=1, spec_hash="0" * 16)
    main: dict[str, Any] = {
        "name": "train",
        "image": image,
        "command": ["python3", "-c", code, "$(INDEX)"],
        "env": [
            {
                "name": "INDEX",
                "valueFrom": {
                    "fieldRef": {
                        "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
                    }
                },
            }
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **container,
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [main],
    }
    if claim:
        main["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        spec["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": names.job_name(run, stage, 1), "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def lines_by_pod(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        prefix, _, rest = line.partition(" | ")
        found.setdefault(prefix, []).append(rest)
    return found


def test_logs_of_all_pods_come_once_each_through_an_outage(user: User, own: Cluster, cluster: Access) -> None:
    user.access.create(job("kt", "data", TALK.format(count=120, pause=0.1), pods=2), namespace=user.namespace)
    process = user.start("logs", "-f", "--run", "kt", "--stage", "data", "-n", user.namespace)
    pods = ("pods", "-n", user.namespace)
    wait_until(
        "both pods to run",
        lambda: Counter(p["status"]["phase"] for p in cluster.items(*pods))["Running"] == 2,
    )
    first = cluster.items(*pods)[0]["metadata"]["name"]
    wait_until("some lines", lambda: "line 20" in cluster.kubectl("logs", first, "-n", user.namespace).stdout)
    own.kill_component("apiserver")
    own.start_component("apiserver")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    found = lines_by_pod(out)
    wanted = ["start", *(f"line {number}" for number in range(120)), "end"]
    assert sorted(prefix.rsplit("/", 1)[1] for prefix in found) == ["0", "1"]
    for prefix, lines in found.items():
        assert lines == wanted, prefix
    assert lines_by_pod(user.ok("logs", "--run", "kt", "-n", user.namespace)) == found
    tail = lines_by_pod(user.ok("logs", "--run", "kt", "-n", user.namespace, "--tail", "2"))
    assert list(tail.values()) == [["line 119", "end"]] * 2


def test_cancel_signals_every_container_at_once(user: User, cluster: Access) -> None:
    volume = cluster.volume(user.namespace, "data")
    user.access.create(job("kt", "data", STOPPED, pods=2, claim="data"), namespace=user.namespace)
    wait_until(
        "both pods to be up", lambda: user.ok("logs", "--run", "kt", "-n", user.namespace).count("| up") == 2
    )
    began = time.time()
    user.ok("cancel", "--run", "kt", "-n", user.namespace)
    gone_s = time.time() - began
    assert user.jobs() == {}
    wait_until("all to be gone", lambda: user.left() == [], 60)
    all_gone_s = time.time() - began
    if volume.path is not None:
        stopped = [float((volume.path / str(index)).read_text()) - began for index in range(2)]
        figure("cancel: job objects gone and every container signalled", max(gone_s, *stopped))
        figure("cancel: pods of the smoke run gone", all_gone_s)


def test_memory_that_ran_out_is_explained(user: User, cluster: Access) -> None:
    eat = "x = []\nwhile True: x.append(bytearray(8 << 20))"
    limits = {"resources": {"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi"}}}
    user.access.create(job("kt", "data", eat, **limits), namespace=user.namespace)
    user.access.wait("job/kt-data-1", "-n", user.namespace, for_="condition=Failed")
    told = json.loads(user.ok("explain", "-n", user.namespace, "--json"))
    assert (told["kind"], told["exit_code"]) == ("oom-killed", 137)
    assert told["text"].endswith("was killed for memory at its limit of 64Mi (OOMKilled)")


def test_a_command_that_is_not_in_the_image_is_explained(user: User, cluster: Access) -> None:
    user.access.create(job("kt", "data", "", command=["no-such-python"]), namespace=user.namespace)
    told: dict[str, Any] = wait_until(
        "a cause",
        lambda: (
            (found := json.loads(user.ok("explain", "-n", user.namespace, "--json")))["exit_code"] and found
        ),
    )
    assert (told["kind"], told["exit_code"]) == ("start", 64)
    assert "no-such-python" in told["text"]


def test_an_image_that_does_not_exist(user: User, own: Cluster, cluster: Access) -> None:
    volume = cluster.volume(user.namespace, "nanochat-data")
    assert volume.name
    # A registry that holds nothing: whatever is asked for, it answers 404.
    own.sandbox.spawn(
        "registry", ["/usr/bin/python3", "-m", "http.server", "5999", "--bind", "127.0.0.1"], {}
    )
    small = {"cpu": "100m", "memory": "128Mi"}
    spec = user.spec(image="127.0.0.1:5999/nanochat/train:none", resources=small)
    assert_refused(
        user,
        *("submit", "--spec", spec),
        code=64,
        error="stage `data`, attempt 1: image `127.0.0.1:5999/nanochat/train:none` of pod .* does not exist",
        hint="correct `image` in the spec",
        limit_s=90,
    )


def test_work_that_fits_nowhere_is_told_and_waits(user: User, cluster: Access) -> None:
    cluster.volume(user.namespace, "nanochat-data")
    spec = user.spec(resources={"cpu": "999"})
    assert_refused(
        user,
        "submit",
        "--spec",
        spec,
        code=64,
        error="and no node of the cluster has that much",
        hint="choose",
    )
    process = user.start("submit", "--spec", spec, "--wait-for-nodes")
    try:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "fits on no node" in line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert re.match(r"data: pod kt-data-1-0-\w+ fits on no node \(it wants cpu 999, .*\): 0/1 nodes", told)
    assert process.returncode == 143
    rows = json.loads(user.ok("status", "-n", user.namespace, "--json"))["stages"]
    assert (rows[0]["state"], rows[0]["cause"]["kind"]) == ("pending", "unschedulable")


def test_doctor_finds_what_is_wrong_and_what_is_not(
    user: User, cluster: Access, training_operator: None, tmp_path: Path
) -> None:
    spec = user.spec(kind="pytorchjob", nodes=2, stages=["base_train"], image=BASE_TAG)
    ran = user.run("doctor", "--spec", spec, "--json")
    found = {(f["check"], f["state"]): f for f in json.loads(ran.stdout)}
    assert ran.returncode == 69
    assert "claim `nanochat-data` does not exist" in found["volume", "error"]["text"]
    assert "volume.size" in found["volume", "error"]["fix"]
    assert ("api", "ok") in found
    assert ("rights", "ok") in found
    assert ("nodes", "ok") in found
    assert ("image", "ok") in found
    assert ("pipelines", "ok") in found
    # The namespace is restricted, and the operator of this cluster has a template that it admits.
    assert (
        "refuses the training operator's default init container" in found["init container", "unknown"]["text"]
    )
    probed = user.run("doctor", "--spec", spec, "--json", "--probe", timeout=90)
    real = [f for f in json.loads(probed.stdout) if f["check"] == "init container"]
    assert real[-1]["text"] == "the training operator makes workers here"
    assert real[-1]["state"] == "ok"
    left = user.access.kubectl("get", "pods,pytorchjobs", "-n", user.namespace, "-o", "name").stdout
    wait_until(
        "the probes to be gone", lambda: left == "" or user.access.items("pods", "-n", user.namespace) == []
    )


def test_the_time_of_status(user: User, cluster: Access) -> None:
    user.access.create(job("kt", "data", TALK.format(count=1, pause=0)), namespace=user.namespace)
    times = []
    for _ in range(5):
        began = time.monotonic()
        found = user.ok("status", "-n", user.namespace)
        times.append(time.monotonic() - began)
        assert "kt" in found
    figure("nanochat status, minimum of five", min(times))

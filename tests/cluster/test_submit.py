"""The submitter against the real API server and job controllers; only containers are played by hand."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from nanochat_platform.kube import follow as following
from nanochat_platform.kube.client import Client, Gone
from nanochat_platform.kube.facts import attempts
from nanochat_platform.kube.names import KINDS
from nanochat_platform.kube.resources import LEASES, PODS, name_of
from nanochat_platform.spec import RunSpec
from nanochat_platform.submit import Options, submit
from nanochat_platform.submit.attempt import create
from nanochat_platform.submit.objects import description

from nanochat.errors import RunLockedError
from tests.cluster.client_side import User
from tests.cluster.cut_files import Fork
from tests.cluster.cutting import Cutter, When
from tests.cluster.hands import RECORD, Hands, done, ended, failed, running, stage_config, wait_until
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.figures import figure
from tests.cluster.harness.host import say

STAGES = ["data", "tok_train", "tok_eval"]
JOBS = ["kt-data-1", "kt-tok-eval-1", "kt-tok-train-1"]


def hands(user: User, play: Any) -> Hands:
    return Hands(user.access.kubeconfig, play, namespace=user.namespace)


def test_stages_run_one_after_another_and_only_once(user: User) -> None:
    spec = user.spec(stages=STAGES)
    with hands(user, done):
        result = json.loads(user.ok("submit", "--spec", spec, "--json"))
    assert [(s["stage"], s["status"], s["attempt"]) for s in result["stages"]] == [
        (stage, "done", 1) for stage in STAGES
    ]
    assert {s["record"] for s in result["stages"]} == {RECORD}
    assert result["stages"][0]["metrics"] == {"loss": 2.5}
    assert sorted(user.jobs()) == JOBS
    again = json.loads(user.ok("submit", "--spec", spec, "--json"))
    assert [s["status"] for s in again["stages"]] == ["kept"] * 3
    assert sorted(user.jobs()) == JOBS


def test_dry_run_prints_what_is_then_sent(user: User) -> None:
    spec = user.spec(nodes=2, stages=["base_train"])
    printed = list(yaml.safe_load_all(user.ok("submit", "--spec", spec, "--dry-run")))
    assert user.left() == []
    user.ok("submit", "--spec", spec, "--detach")
    assert [value["kind"] for value in printed] == ["Service", "Job"]
    for value in printed:
        sent = user.access.get(value["kind"], value["metadata"]["name"], "-n", user.namespace)
        assert subset(value, sent) is None


def subset(wanted: Any, found: Any, where: str = "") -> str | None:
    """Return where `found` lacks something of `wanted`, None when it has all of it."""
    if isinstance(wanted, dict):
        return next(
            (miss for k, v in wanted.items() if (miss := subset(v, (found or {}).get(k), f"{where}.{k}"))),
            None,
        )
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(wanted) != len(found):
            return where
        return next((miss for w, f in zip(wanted, found, strict=True) if (miss := subset(w, f, where))), None)
    return None if wanted == found else f"{where}: {wanted!r} != {found!r}"


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "trainjob"])
def test_every_kind_starts_two_nodes_and_is_followed_to_its_end(
    user: User, kind: str, training_operator: None, trainer: None
) -> None:
    spec = user.spec(kind=kind, nodes=2, stages=["base_train"])
    began = time.monotonic()
    process = user.start("submit", "--spec", spec, "--json")
    pods = ("pods", "-n", user.namespace, "-l", "nanochat.dev/run=kt")
    try:
        wait_until("the first pod", lambda: user.access.items(*pods), 20)
        figure("submit to pod created", time.monotonic() - began)
        wait_until("both pods", lambda: len(user.access.items(*pods)) == 2, 20)
        with hands(user, done):
            out, err = process.communicate(timeout=60)
    finally:
        user.close()
    assert process.returncode == 0, err
    assert json.loads(out)["stages"][0]["record"] == RECORD
    plural = KINDS[kind].resource
    assert list(user.jobs(plural)) == ["kt-base-train-1"]
    user.ok("cancel", "--run", "kt")
    assert user.left() == []


class Kill:
    """Kills a process at its k-th request, before the server sees it or the process sees the answer."""

    def __init__(self, number: int, when: When) -> None:
        self.number, self.when = number, when
        self.victim: Fork | None = None
        self.started = threading.Event()

    def __call__(self, number: int, when: When, method: str, path: str) -> bool:
        if (number, when) != (self.number, self.when):
            return False
        self.started.wait(10)
        assert self.victim is not None
        self.victim.kill()
        return True


def repeated(user: User, client: Client, spec: Path, stages: Sequence[str]) -> list[str]:
    """Let a submitter finish what another began; returns the jobs that the run then has."""
    run = RunSpec.load(spec)
    result = submit(client, run, stages, Options(), lambda text: None)
    assert [stage.record for stage in result.stages] == [RECORD] * len(stages)
    return sorted(attempt.name for attempt in attempts(client, run.run_name))


def killed_at_request(user: User, client: Client, number: int, when: When) -> tuple[int, list[str]]:
    """Kill a submitter at one request and let another finish; returns the first's exit code, the jobs."""
    run = f"k{number}{when[0]}"
    spec = user.spec(f"{run}.yaml", run=run, stages=STAGES)
    kill = Kill(number, when)
    with Cutter(user.access.kubeconfig, kill) as cutter:
        kubeconfig = cutter.kubeconfig(user.folder / f"{run}.kubeconfig")
        kill.victim = Fork(None, "submit", "--spec", str(spec), "--kubeconfig", str(kubeconfig))
        kill.started.set()
        code = kill.victim.wait(100)
    return code, repeated(user, client, spec, STAGES)


@pytest.mark.timeout(400, func_only=True)
def test_a_submitter_killed_at_any_request_leaves_one_job_a_stage(user: User, client: Client) -> None:
    cases = list(itertools.product(range(1, 31), ("before", "after")))

    def run(case: tuple[int, When]) -> tuple[int, list[str]]:
        return killed_at_request(user, client, *case)

    began = time.monotonic()
    # They wait for the job controller, which looks once a second, far more than they work.
    with hands(user, done), ThreadPoolExecutor(len(cases)) as pool:
        results = dict(zip(cases, pool.map(run, cases), strict=True))
    say(f"{len(cases)} kills in {time.monotonic() - began:.0f} s")
    for (number, when), (code, jobs) in results.items():
        assert code == -signal.SIGKILL, f"request {number} was never sent"
        assert jobs == sorted(f"k{number}{when[0]}-{stage.replace('_', '-')}-1" for stage in STAGES)


def test_a_submitter_killed_at_any_file_operation_leaves_one_job_a_stage(user: User, client: Client) -> None:
    """Dying before operation k + 1 is dying after operation k."""

    def run(number: int) -> tuple[int, list[str]]:
        spec = user.spec(f"f{number}.yaml", run=f"f{number}")
        code = Fork(number, "submit", "--spec", str(spec), "--kubeconfig", str(user.own_context)).wait(100)
        return code, repeated(user, client, spec, ["data"])

    with hands(user, done), ThreadPoolExecutor(30) as pool:
        results = list(pool.map(run, range(1, 31)))
    assert [jobs for _, jobs in results] == [[f"f{number}-data-1"] for number in range(1, 31)]
    codes = [code for code, _ in results]
    killed = codes.count(-signal.SIGKILL)
    say(f"the submitter has {killed} file operations")
    assert killed > 2
    assert codes == [-signal.SIGKILL] * killed + [0] * (30 - killed)


def test_two_specs_at_once_never_overwrite_each_other(user: User, client: Client) -> None:
    specs = [RunSpec.load(user.spec(f"{seed}.yaml", overrides={"seed": seed})) for seed in range(6)]
    barrier = threading.Barrier(len(specs))

    def race(spec: RunSpec) -> str:
        barrier.wait()
        try:
            create(client, spec, description(spec, "data", 1))
        except RunLockedError:
            return "refused"
        return spec.config().model_dump_json()

    with ThreadPoolExecutor(len(specs)) as pool:
        results = list(pool.map(race, specs))
    winners = [r for r in results if r != "refused"]
    assert len(winners) == 1
    (job,) = user.jobs().values()
    env = {e["name"]: e.get("value") for e in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert json.loads(env["NANOCHAT_CONFIG"])["spec"] == json.loads(winners[0])


def test_a_changed_spec_does_not_touch_a_run_at_work(user: User) -> None:
    user.ok("submit", "--spec", user.spec(), "--detach")
    before = user.jobs()["kt-data-1"]
    changed = user.run("submit", "--spec", user.spec(overrides={"seed": 7}), "--detach")
    assert changed.returncode == 66
    assert "\nerror: stage `data` of run `kt` is at work with another spec" in changed.stderr
    assert "hint: wait for it, stop it with `nanochat cancel`" in changed.stderr
    assert user.jobs()["kt-data-1"]["metadata"]["uid"] == before["metadata"]["uid"]
    adopted = user.run("submit", "--spec", user.spec(), "--detach")
    assert adopted.returncode == 0
    assert "adopting job `kt-data-1`" in adopted.stderr


def sequence(*ends: Any) -> Any:
    """Return a play that ends the n-th pod it sees by the n-th of `ends`."""
    order: dict[str, Any] = {}
    rest = iter(ends)

    def play(pod: dict[str, Any]) -> Any:
        uid = pod["metadata"]["uid"]
        if uid not in order:
            order[uid] = next(rest)
        return order[uid](pod)

    return play


def test_a_lost_rank_is_tried_again_and_each_attempt_keeps_its_cause(user: User) -> None:
    lost = sequence(lambda pod: ended(pod, "", code=137), done)
    with hands(user, lost):
        result = json.loads(user.ok("submit", "--spec", user.spec(), "--json"))
    assert result["stages"][0]["attempt"] == 2
    jobs = user.jobs()
    assert sorted(jobs) == ["kt-data-1", "kt-data-2"]
    cause = json.loads(jobs["kt-data-1"]["metadata"]["annotations"]["nanochat.dev/cause"])
    assert (cause["kind"], cause["exit_code"], cause["retried"]) == ("killed", 137, True)


def test_divergence_is_not_tried_again_until_a_person_says_so(user: User) -> None:
    spec = user.spec()
    nan = sequence(lambda pod: failed(pod, 70, "loss is nan at step 12", "lower the learning rate"), done)
    with hands(user, nan):
        first = user.run("submit", "--spec", spec)
        assert first.returncode == 70
        assert first.stderr.splitlines()[-3:] == [
            "error: stage `data`, attempt 1: loss is nan at step 12",
            "",
            "hint: lower the learning rate",
        ]
        told = user.ok("explain", "--run", "kt")
        assert told == "data, attempt 1: loss is nan at step 12\nhint: lower the learning rate\n"
        result = json.loads(user.ok("resume", "--run", "kt", "--json"))
    assert result["stages"][0]["attempt"] == 2


def test_cancel_leaves_nothing_and_ends_the_submitter(user: User) -> None:
    spec = user.spec(nodes=2, stages=["base_train"])
    with hands(user, running):
        process = user.start("submit", "--spec", spec)
        wait_until("the pods to run", lambda: sum(p["status"]["phase"] == "Running" for p in pods(user)) == 2)
        began = time.monotonic()
        user.ok("cancel", "--run", "kt")
        took_s = time.monotonic() - began
        figure("cancel: the command itself", took_s)
        assert user.jobs() == {}
        assert all(pod["metadata"].get("deletionTimestamp") for pod in pods(user))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "run `kt` was cancelled" in err
    wait_until("nothing to be left", lambda: user.left() == [])
    assert user.ok("cancel", "--run", "kt") == ""


def pods(user: User) -> list[dict[str, Any]]:
    return user.access.items("pods", "-n", user.namespace, "-l", "nanochat.dev/run=kt")


def test_cancel_self_knows_run_and_stage_from_its_environment(user: User) -> None:
    user.ok("submit", "--spec", user.spec(), "--detach")
    user.ok("submit", "--spec", user.spec(run="other"), "--detach")
    user.extra_env = {"NANOCHAT_RUN": "kt", "NANOCHAT_STAGE": "data", "NANOCHAT_NAMESPACE": user.namespace}
    for _ in range(2):
        user.ok("cancel", "--self")
        assert list(user.jobs()) == ["other-data-1"]


def test_a_run_survives_the_api_servers_death(user: User, own: Cluster) -> None:
    spec = user.spec(stages=["data", "tok_train"])
    process = user.start("submit", "--spec", spec, "--json")
    wait_until("the first job", lambda: user.jobs())
    with hands(user, done):
        wait_until("the second job", lambda: len(user.jobs()) == 2)
        own.kill_component("apiserver")
        own.start_component("apiserver")
        out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert [s["record"] for s in json.loads(out)["stages"]] == [RECORD, RECORD]
    assert sorted(user.jobs()) == ["kt-data-1", "kt-tok-train-1"]


def test_an_expired_watch_is_answered_by_a_new_list(user: User, client: Client, tmp_path: Path) -> None:
    with pytest.raises(Gone):
        list(client.watch(PODS, "1"))
    seen = 0

    class Stale(Client):
        def watch(self, resource: Any, version: str, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            return super().watch(resource, "1" if seen % 2 else version, **options)

    stale = Stale(client.transport, user.namespace)
    changes = following.follow(stale, LEASES, window_s=lambda: 1.0)
    names: list[str] = []
    for change in changes:
        if change.kind == "tick" and len(names) < 3:
            lease = {"metadata": {"name": f"l{len(names)}"}, "spec": {}}
            client.create(LEASES, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease})
            names.append(f"l{len(names)}")
        if change.kind == "set" and change.name == "l2":
            break
    assert seen >= 2


def test_a_lost_node_ends_the_attempt_and_the_next_goes_on(user: User, client: Client) -> None:
    node: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"lost-{user.namespace}"},
        "spec": {"unschedulable": True},
    }
    user.access.create(node)
    first: list[str] = []

    def play(pod: dict[str, Any]) -> Any:
        uid = pod["metadata"]["uid"]
        if not first:
            first.append(uid)
            target = {"apiVersion": "v1", "kind": "Node", "name": node["metadata"]["name"]}
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name_of(pod), "namespace": user.namespace},
                "target": target,
            }
            path = PODS.path(user.namespace, name_of(pod), "binding")
            assert client.transport.request("POST", path, body=binding).status == 201
        if uid != first[0]:
            return done(pod)
        status = running(pod)
        status["conditions"][0]["status"] = "False"
        return status

    try:
        user.access.kubectl(
            *("patch", "node", node["metadata"]["name"], "--subresource=status", "--type=merge", "-p"),
            json.dumps({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
        )
        with hands(user, play):
            ran = user.run("submit", "--spec", user.spec(), "--json", "--wait-for-nodes")
        assert ran.returncode == 0, ran.stderr
        assert f"node `{node['metadata']['name']}` of pod kt-data-1-0-" in ran.stderr
        assert json.loads(ran.stdout)["stages"][0]["attempt"] == 2
    finally:
        user.access.kubectl("delete", "node", node["metadata"]["name"])


def test_a_stop_signal_detaches_but_with_a_lease_deletes(user: User) -> None:
    process = user.start("submit", "--spec", user.spec())
    wait_until("the job", lambda: user.jobs())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "what works in the cluster goes on" in err
    assert list(user.jobs()) == ["kt-data-1"]
    user.ok("cancel", "--run", "kt")

    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nanochat-train"}}
    user.access.create(account, namespace=user.namespace)
    leased = user.start("submit", "--spec", user.spec(), "--lease")
    wait_until("the job", lambda: user.jobs())
    lease = user.access.get("lease", "kt-data", "-n", user.namespace)
    assert lease["spec"]["leaseDurationSeconds"] == 60
    (job,) = user.jobs().values()
    (guard,) = job["spec"]["template"]["spec"]["initContainers"]
    assert guard["command"][-4:] == ["--lease", "kt-data", "--job", "jobs.batch/kt-data-1"]
    leased.terminate()
    _, err = leased.communicate(timeout=20)
    assert leased.returncode == 143
    assert user.jobs() == {}
    wait_until("nothing to be left", lambda: user.left() == [])


def test_status_list_and_resume_read_the_cluster_alone(user: User) -> None:
    spec = user.spec(stages=["data", "tok_train"])
    with hands(user, lambda pod: done(pod) if stage_config(pod).stage == "data" else running(pod)):
        process = user.start("submit", "--spec", spec)
        jobs = ("pods", "-n", user.namespace, "-l", "nanochat.dev/stage=tok_train")
        wait_until(
            "the second stage",
            lambda: [p for p in user.access.items(*jobs) if p["status"]["phase"] == "Running"],
        )
        process.kill()
        process.communicate(timeout=10)
        rows = json.loads(user.ok("status", "--namespace", user.namespace, "--json"))["stages"]
    assert [(row["stage"], row["state"]) for row in rows] == [("data", "succeeded"), ("tok_train", "running")]
    text = user.ok("status", "--namespace", user.namespace)
    assert text.splitlines()[2].split() == ["STAGE", "ATTEMPT", "STATE", "READY", "TIME", "JOB"]
    (listed,) = json.loads(user.ok("list", "--namespace", user.namespace, "--json"))
    assert (listed["run"], listed["stage"], listed["done"]) == ("kt", "tok_train", 1)
    nothing = user.ok("explain", "--namespace", user.namespace)
    assert nothing == "nothing is wrong with run `kt`: `tok_train` is running\n"
    with hands(user, done):
        result = json.loads(user.ok("resume", "--namespace", user.namespace, "--json"))
    assert [s["record"] for s in result["stages"]] == [RECORD, RECORD]
    assert sorted(user.jobs()) == ["kt-data-1", "kt-tok-train-1"]

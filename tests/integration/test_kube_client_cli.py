"""The cluster's commands from end to end in one process, over a loopback API."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from nanochat_platform.cli import app, cluster
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.names import KINDS

from tests.cluster.hands import done, failed, running
from tests.integration.loopback_api import LoopbackApi

SPEC = {
    "preset": "smoke",
    "run": "kt",
    "image": "reg/t:1",
    "namespace": "chat",
    "hardware": "cpu",
    "kind": "job",
}
JOBS = "/apis/batch/v1/namespaces/chat/jobs"
CLAIM = "/api/v1/namespaces/chat/persistentvolumeclaims/nanochat-data"


class Terminal:
    """The command line in this process, with what it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.api = LoopbackApi()
        claim = {"spec": {"accessModes": ["ReadWriteMany"]}, "metadata": {"name": "nanochat-data"}}
        self.api.put(CLAIM, claim)
        self.api.put("/api/v1/namespaces/chat", {"metadata": {"name": "chat"}})
        self.folder = folder
        self._capsys = capsys

    def spec(self, **changes: Any) -> str:
        path = self.folder / "run.yaml"
        values = {key: value for key, value in {**SPEC, **changes}.items() if value is not None}
        path.write_text(yaml.safe_dump(values))
        return str(path)

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        self._capsys.readouterr()
        found = app.run(arguments)
        out, err = self._capsys.readouterr()
        assert found == code, err
        return out, err


@pytest.fixture
def terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    made = Terminal(tmp_path, capsys)
    config = {
        "clusters": [{"name": "c", "cluster": {"server": made.api.url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "namespace": "chat"}}],
        "current-context": "c",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(cluster, "IDLE_S", 0.0)
    monkeypatch.setattr(Client, "load", classmethod(loaded(Client.load)))
    with made.api:
        yield made
    for client in CLIENTS:
        client.close()
    CLIENTS.clear()


CLIENTS: list[Client] = []


def loaded(load: Any) -> Any:
    """Return `Client.load` that remembers its clients, so that their sockets are closed."""

    def remember(cls: type[Client], *arguments: Any, **options: Any) -> Client:
        CLIENTS.append(load(*arguments, **options))
        return CLIENTS[-1]

    return remember


def test_a_run_from_its_spec_to_its_end(terminal: Terminal) -> None:
    terminal.api.play = done
    out, err = terminal("submit", "--spec", terminal.spec(stages=["data", "tok_train"]), "--json")
    result = json.loads(out)
    assert (result["run"], result["namespace"]) == ("kt", "chat")
    assert [stage["status"] for stage in result["stages"]] == ["done", "done"]
    assert "tok_train: started job `kt-tok-train-1`" in err
    out, _ = terminal("status")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["run", "kt", "in", "namespace", "chat"]
    assert [line[:4] for line in lines[3:]] == [
        ["data", "1", "succeeded", "0/1"],
        ["tok_train", "1", "succeeded", "0/1"],
    ]
    out, _ = terminal("list", "-A")
    assert out.splitlines()[1].split()[:5] == ["chat", "kt", "tok_train", "succeeded", "2"]
    assert terminal("explain")[0] == "nothing is wrong with run `kt`: all 2 stages are done\n"


def test_flags_go_over_the_spec_and_without_a_namespace_the_contexts_counts(terminal: Terminal) -> None:
    path = terminal.spec(namespace=None, stages=["base_train"])
    flags = ["--depth", "3", "--nodes", "2", "--claim", "other", "--source", "generated", "--memory", "3Gi"]
    out, err = terminal("submit", "--spec", path, *flags, "--dry-run")
    service, job = yaml.safe_load_all(out)
    assert service["kind"] == "Service"
    assert job["metadata"]["namespace"] == "chat"
    pod = job["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "other"
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "3Gi"}
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert json.loads(env["NANOCHAT_CONFIG"])["spec"]["depth"] == 3
    assert "has no digest" in err
    assert json.loads(terminal("submit", "--spec", path, "--dry-run", "--json")[0])[0]["kind"] == "Job"
    assert terminal.api.of("jobs") == {}


def test_a_dry_run_counts_the_attempts_that_were_made(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.api.play = running
    path = terminal.spec(stages=["data"])
    terminal("submit", "--spec", path, "--detach")
    owner = "argoproj.io/v1alpha1/Workflow/w/u-1"
    (job,) = yaml.safe_load_all(
        terminal("submit", "--spec", path, "--dry-run", "--lease", "--owner", owner)[0]
    )
    assert job["metadata"]["name"] == "kt-data-2"
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u-1"}
    ]
    assert job["spec"]["template"]["spec"]["initContainers"][0]["name"] == "guard"
    _, err = terminal("submit", "--spec", path, "--dry-run", "--owner", "w", code=64)
    assert "--owner is `w`" in err
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("HOME", str(terminal.folder))
    (first,) = yaml.safe_load_all(terminal("submit", "--spec", path, "--dry-run")[0])
    assert first["metadata"]["name"] == "kt-data-1"


def test_a_failure_is_shown_explained_and_resumed(terminal: Terminal) -> None:
    terminal.api.play = lambda pod: failed(pod, 65, "shard 3 is damaged", "fetch it again")
    _, err = terminal("submit", "--spec", terminal.spec(stages=["data"]), code=65)
    assert err.endswith("error: stage `data`, attempt 1: shard 3 is damaged\n\nhint: fetch it again\n")
    assert terminal("explain")[0] == "data, attempt 1: shard 3 is damaged\nhint: fetch it again\n"
    told = json.loads(terminal("explain", "--json")[0])
    assert (told["kind"], told["exit_code"], told["job"]) == ("data", 65, "kt-data-1")
    assert "shard 3 is damaged" in terminal("status")[0]
    terminal.api.play = done
    out, _ = terminal("resume", "--json")
    assert json.loads(out)["stages"][0]["attempt"] == 2
    terminal.api.put(
        f"{JOBS}/kt-data-2", {**terminal.api.objects[f"{JOBS}/kt-data-2"], "metadata": bare("kt-data-2")}
    )
    terminal.api.remove(f"{JOBS}/kt-data-1")
    assert "that keeps its spec" in terminal("resume", code=64)[1]


def bare(name: str) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/managed-by": "nanochat",
        "nanochat.dev/run": "kt",
        "nanochat.dev/attempt": "2",
    }
    return {"name": name, "labels": {**labels, "nanochat.dev/stage": "data"}}


def test_which_run_is_meant(terminal: Terminal) -> None:
    assert "namespace `chat` has no run" in terminal("status", code=64)[1]
    assert "namespace `nowhere` does not exist" in terminal("status", "-n", "nowhere", code=64)[1]
    assert terminal("list") == ("", "no runs\n")
    terminal.api.play = running
    for run in ("a", "b"):
        terminal("submit", "--spec", terminal.spec(stages=["data"]), "--run", run, "--detach")
    _, err = terminal("status", code=64)
    assert "namespace `chat` has 2 runs: `a`, `b`" in err
    assert json.loads(terminal("status", "--run", "a", "--json")[0])["stages"][0]["state"] == "running"
    assert (
        "there is no job of stage `tokenize` of run `a`"
        in terminal("status", "--run", "a", "--stage", "tokenize", code=64)[1]
    )


def test_logs_of_stages_pods_and_lines(terminal: Terminal) -> None:
    terminal.api.play = done
    terminal("submit", "--spec", terminal.spec(stages=["data", "tok_train"]))
    for job in ("kt-data-1", "kt-tok-train-1"):
        stamps = [f"2026-11-25T03:00:0{i}.00000000{i}Z {job} line {i}" for i in range(1, 4)]
        terminal.api.logs[f"{job}-0-abcde"] = stamps
    data = [f"kt-data-1-0-abcde/0 | kt-data-1 line {i}" for i in range(1, 4)]
    train = [f"kt-tok-train-1-0-abcde/0 | kt-tok-train-1 line {i}" for i in range(1, 4)]
    assert terminal("logs")[0].splitlines() == data + train
    assert terminal("logs", "--tail", "1", "--all-attempts")[0].splitlines() == [data[-1], train[-1]]
    assert terminal("logs", "-f", "--stage", "data")[0].splitlines() == data
    assert sorted(terminal("logs", "-f")[0].splitlines()) == sorted(data + train)


def test_a_leased_submission_prints_the_ranks_logs(terminal: Terminal) -> None:
    terminal.api.play = running
    terminal.api.logs["kt-data-1-0-abcde"] = ["2026-11-25T03:00:01.1Z loss 2.5"]

    def finish() -> None:
        path = "/api/v1/namespaces/chat/pods/kt-data-1-0-abcde"
        while path not in terminal.api.objects:
            time.sleep(0.01)
        pod = terminal.api.objects[path]
        terminal.api.put(path, {**pod, "status": done(pod)})
        terminal.api._end("kt-data-1", done(pod))

    worker = threading.Thread(target=finish)
    worker.start()
    out, err = terminal("submit", "--spec", terminal.spec(stages=["data"]), "--lease", "--json")
    worker.join()
    assert json.loads(out)["stages"][0]["status"] == "done"
    assert "kt-data-1-0-abcde/0 | loss 2.5" in err.splitlines()
    assert terminal.api.of("leases") == {}


# The signal may come between the making of a socket and its keeping; the process ends right after it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_leaves_the_job_at_work(terminal: Terminal, signum: signal.Signals) -> None:
    terminal.api.play = running

    def stop() -> None:
        while f"{JOBS}/kt-data-1" not in terminal.api.objects:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signum)

    worker = threading.Thread(target=stop)
    worker.start()
    _, err = terminal("submit", "--spec", terminal.spec(stages=["data"]), code=128 + signum)
    worker.join()
    assert "what works in the cluster goes on" in err
    assert list(terminal.api.of("jobs")) == ["kt-data-1"]


def test_cancel_by_name_and_by_environment(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.api.play = running
    terminal("submit", "--spec", terminal.spec(stages=["data"]), "--detach")
    out, _ = terminal("cancel", "--run", "kt", "--json")
    assert json.loads(out)["jobs"] == ["kt-data-1"]
    assert terminal("cancel", "--run", "kt")[1] == "run kt has nothing in namespace chat\n"
    terminal("submit", "--spec", terminal.spec(stages=["data"]), "--detach")
    for name, value in {"RUN": "kt", "STAGE": "data", "NAMESPACE": "chat"}.items():
        monkeypatch.setenv(f"NANOCHAT_{name}", value)
    assert terminal("cancel", "--self")[1].startswith("cancelled stage data of run kt: 1 jobs removed")
    assert terminal.api.of("jobs") == terminal.api.of("pods") == {}


def test_doctor_ends_with_what_stands_in_the_way(terminal: Terminal) -> None:
    out, err = terminal("doctor", "--spec", terminal.spec(), code=69)
    assert "api" in out
    assert err.startswith("error: ")
    assert "stands in the way of a run" in err or "stand in the way of a run" in err
    assert not [line for line in out.splitlines() if line.split(": ", 1)[-1] in err]
    _, err = terminal("doctor", "--spec", terminal.spec(), "--json", code=69)
    assert "; the first: " in err


def test_every_kind_names_its_pods() -> None:
    for kind in KINDS.values():
        assert "x" in kind.pod_selector("x")
        assert kind.first_pod_selector("x").startswith(kind.pod_selector("x"))

"""A pipeline's step as a process in a cluster: what it submits, tells and takes back.

The API server is a loopback server that keeps the requests, and `nanochat submit` a program that keeps its
arguments; the real ones are in `tests/cluster`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from fakes_run import ROOT, FakeHome, end
from nanochat_platform.pipeline import kill
from nanochat_platform.pipeline.cancel import State
from nanochat_platform.pipeline.ir import Pipeline

from nanochat.files import write_json

FILE = ROOT / "manifests" / "pipelines" / "speedrun.yaml"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/kubeflow/leases/smoke-data"
JOBS = "/apis/kubeflow.org/v1/namespaces/kubeflow/pytorchjobs"
POD = "/api/v1/namespaces/kubeflow/pods/step-pod"
OWNER = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "name": "w",
    "uid": "u-1",
    "controller": True,
}

SUBMIT = """
import json, os, pathlib, signal, sys, time
from nanochat.settings import home

def main():
    arguments = sys.argv[1:]
    spec = json.loads(pathlib.Path(arguments[arguments.index("--spec") + 1]).read_text())
    told = {"arguments": arguments, "spec": spec, "pid": os.getpid()}
    pathlib.Path(os.environ["SUBMITTED"]).write_text(json.dumps(told))
    %s
"""
DONE = 'print(json.dumps({"stages": [{"record": os.environ["RECORD"], "metrics": {"documents": 7}}]}))'
REFUSED = """
    print("error: early\\n\\nerror: quota `gpu` is used up\\n\\nhint: stop other runs", file=sys.stderr)
    sys.exit(75)
"""
STUBBORN = (
    'signal.signal(15, signal.SIG_IGN); print("submitted", file=sys.stderr, flush=True); time.sleep(600)'
)


class Handler(BaseHTTPRequestHandler):
    def do(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        parts = urlsplit(self.path)
        if self.command != "GET":
            self.server.writes.append((self.command, parts.path, body))
        if parts.path == POD:
            self.answer(self.server.pod)
        elif parts.path == JOBS:
            self.server.selectors.append(parse_qs(parts.query)["labelSelector"][0])
            self.answer({"items": [{"metadata": {"name": name}} for name in self.server.jobs]})
        elif self.command == "DELETE":
            self.answer({"kind": "Status"}, 404 if parts.path in self.server.deleted else 200)
            self.server.deleted.add(parts.path)
        else:
            self.answer({"kind": "Status", "reason": "NotFound"}, 404)

    do_GET = do_PATCH = do_DELETE = do

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def api(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.writes, server.selectors, server.deleted = [], [], set()
    server.jobs = ["smoke-data-1"]
    server.pod = {"metadata": {"name": "step-pod", "ownerReferences": [OWNER]}}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "namespace": "kubeflow"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


class StepProcess:
    """Starts the step module on a pipeline's first step."""

    def __init__(self, folder):
        self.fake = FakeHome(folder)
        self.folder = folder
        self.submitted = folder / "submitted.json"
        self.fake.env |= {
            "KUBECONFIG": str(folder / "kubeconfig"),
            "KFP_POD_NAME": "step-pod",
            "SUBMITTED": str(self.submitted),
            "TMPDIR": str(folder),
        }

    def start(self, submit, *, values=None, stage="data", **options):
        self.fake.module("nanochat_platform.cli.__main__", SUBMIT % submit + "\nmain()\n")
        pipeline = Pipeline.load(FILE)
        step = next(step for step in pipeline.steps if step.args[1] == stage)
        given = step.executor_input(
            pipeline.values({"preset": "smoke", **(values or {})}),
            {key: {"name": key[1], "uri": str(self.folder / key[1])} for key in step.artifacts.values()},
            uri=lambda task, name: str(self.folder / "out" / name),
            output_file=str(self.folder / "out" / "metadata.json"),
        )
        return self.fake.start(step.command[2], *step.argv(given)[3:], **options)

    def told(self):
        return json.loads(self.submitted.read_text())

    def last_words(self):
        return json.loads(self.fake.reason.read_text())


@pytest.fixture
def step(tmp_path, api):
    return StepProcess(tmp_path)


def wait_for(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def alive(pid):
    """Return whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_submits_its_stage_and_tells_the_record_on_the_volume(step, api):
    step.fake.finish("data", run="smoke")
    record = step.fake.finish("tok_train", run="smoke")
    code, _, err = end(step.start(DONE, stage="tok_train", env={"RECORD": record.hash}))
    assert code == 0, err
    told = step.told()
    arguments = told["arguments"]
    assert arguments[0] == "submit"
    assert arguments[arguments.index("--stage") + 1] == "tok_train"
    assert arguments[arguments.index("--owner") + 1] == "argoproj.io/v1alpha1/Workflow/w/u-1"
    assert {"--lease", "--json"} <= set(arguments)
    assert (told["spec"]["run"], told["spec"]["namespace"]) == ("smoke", "kubeflow")
    left = json.loads((step.folder / "out" / "metadata.json").read_text())["artifacts"]
    assert left["tokenizer"]["artifacts"][0]["metadata"]["record"] == record.hash
    card = json.loads((step.folder / "out" / "tokenizer").read_text())
    assert list(card["files"]) == ["runs/smoke/tok_train/out.txt"]
    assert ("PATCH", POD, {"metadata": {"labels": {"nanochat.dev/run": "smoke"}}}) in api.writes
    assert step.fake.reason.read_text() == ""


def test_the_first_step_has_no_volume_and_tells_what_the_job_said(step):
    code, _, err = end(step.start(DONE, env={"RECORD": "5" * 64}))
    assert code == 0, err
    left = json.loads((step.folder / "out" / "metadata.json").read_text())["artifacts"]
    assert left["metrics"]["artifacts"][0]["metadata"]["documents"] == 7
    card = json.loads((step.folder / "out" / "dataset").read_text())
    assert (card["record"], card["run"], card["files"]) == ("5" * 64, "smoke", {})


def test_jobs_in_another_namespace_have_no_owner_because_it_would_end_them(step):
    record = step.fake.finish("data", run="smoke")
    code, _, err = end(step.start(DONE, values={"namespace": "train"}, env={"RECORD": record.hash}))
    assert code == 0, err
    assert step.told()["spec"]["namespace"] == "train"
    assert "--owner" not in step.told()["arguments"]


def test_the_workflow_is_found_by_its_label_where_the_pod_has_no_owner(step, api):
    api.pod = {"metadata": {"name": "step-pod", "labels": {"workflows.argoproj.io/workflow": "w"}}}
    record = step.fake.finish("data", run="smoke")
    code, _, err = end(step.start(DONE, env={"RECORD": record.hash}))
    assert code == 0, err
    assert "--owner" not in step.told()["arguments"]  # it may not be read, or is gone: the lease remains


def test_why_submitting_failed_is_kept_where_kubernetes_and_explain_look(step, api):
    code, _, err = end(step.start(REFUSED))
    assert code == 75
    words = step.last_words()
    assert (words["exit_code"], words["stage"], words["run"]) == (75, "data", "smoke")
    assert (words["message"], words["hint"]) == ("quota `gpu` is used up", "stop other runs")
    note = {"metadata": {"annotations": {"nanochat.dev/cause": "quota `gpu` is used up"}}}
    assert ("PATCH", POD, note) in api.writes
    assert "Traceback" not in err


def test_without_a_cluster_it_says_so(step):
    (step.folder / "kubeconfig").write_text("{}")
    code, _, err = end(step.start(DONE))
    assert code == 69
    assert "pipeline run --local" in err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_kills_the_submitter_and_deletes_lease_and_jobs_at_once(step, api, signum):
    """Its stdout and stderr are broken pipes by then, as after a launcher's death."""
    api.jobs = ["smoke-data-1", "smoke-data-2"]
    process = step.start(STUBBORN)
    wait_for(step.submitted.exists)
    child = step.told()["pid"]
    process.stdout.close()
    process.stderr.close()
    began = time.monotonic()
    process.send_signal(signum)
    code = process.wait(20)
    took = time.monotonic() - began
    assert code == (130 if signum == signal.SIGINT else 143)
    assert took < 3, took
    assert not alive(child)
    deleted = [path for verb, path, _ in api.writes if verb == "DELETE"]
    assert deleted == [LEASE, f"{JOBS}/smoke-data-1", f"{JOBS}/smoke-data-2"]
    assert "nanochat.dev/run=smoke" in api.selectors[-1]
    assert "nanochat.dev/stage=data" in api.selectors[-1]
    words = step.last_words()
    assert words["exit_code"] == code
    assert "the jobs of stage `data` are deleted" in words["message"]


def test_a_stop_signal_while_the_cluster_is_away_says_that_the_lease_ends_the_job(step, api):
    process = step.start(STUBBORN)
    wait_for(step.submitted.exists)
    api.shutdown()
    api.server_close()
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process)
    assert code == 143
    assert "ends with its lease" in step.last_words()["message"]


def test_the_kill_command_stops_a_step_waits_for_it_and_may_be_repeated(step, api, tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(kill, "pass_on", passed.append)  # process 1 of this machine is not a container's
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    process = step.start(STUBBORN)
    wait_for(step.submitted.exists)
    reaped = threading.Thread(target=process.wait)
    reaped.start()
    assert kill.main(["15"]) == 0
    assert process.poll() == 143
    assert not alive(step.told()["pid"])
    first = [path for verb, path, _ in api.writes if verb == "DELETE"]
    assert set(first) == {LEASE, f"{JOBS}/smoke-data-1"}
    assert kill.main(["15"]) == 0
    assert passed == [15, 15]
    reaped.join(10)
    process.stdout.close()
    process.stderr.close()


def test_the_kill_command_cancels_for_a_step_that_is_dead_already(api, tmp_path, monkeypatch):
    monkeypatch.setattr(kill, "pass_on", lambda signum: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    State(pid=dead.pid, run="smoke", stage="data", kind="pytorchjob", namespace="kubeflow").write()
    assert kill.main(["15"]) == 0
    assert [path for verb, path, _ in api.writes if verb == "DELETE"] == [LEASE, f"{JOBS}/smoke-data-1"]
    write_json(tmp_path / "nanochat-step.json", {"pid": dead.pid})  # half a state is none
    assert kill.main(["15"]) == 0

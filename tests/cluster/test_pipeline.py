"""The compiled pipeline's steps as real pods: a whole run, runs that are terminated, runs that go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nanochat_platform.pipeline.ir import Pipeline, Step

from nanochat.errors import DataError
from nanochat.run.events import read_events
from nanochat.run.record import Record
from nanochat.run.stage import STAGES
from nanochat.settings import Home
from tests.cluster.harness.access import Access
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.figures import figure
from tests.cluster.harness.host import ROOT, poll, rung, say
from tests.cluster.kfp_container import MARK
from tests.cluster.kfp_harness import How, Run, install
from tests.cluster.own.images import submit_image, train_image

FILE = ROOT / "manifests" / "pipelines" / "speedrun.yaml"
CLAIM = "nanochat-data"
TRAIN = "base-train"
STEPS = 240
LEASE_S = 90.0
"""After a submitter is lost nothing of its job may be left for longer."""


@dataclass
class Place:
    """A namespace with a volume in which pipelines run."""

    cluster: Access
    namespace: str
    home: Home
    images: dict[str, str]

    def run(self, name: str, **values: Any) -> Run:
        """Submit a run of the compiled pipeline, as `kfp run create` would."""
        pipeline = Pipeline.load(FILE)
        small = {"cpu": "250m", "memory": "1536Mi", "claim": CLAIM, **self.images}
        given = pipeline.values({"preset": "smoke", "run": name, **small, **values})
        return Run(self.cluster, self.namespace, pipeline, given).submit()

    def jobs(self, run: str, stage: str = "base_train") -> list[dict[str, Any]]:
        """Return a stage's job objects."""
        return self._items("pytorchjobs.kubeflow.org", run, stage)

    def pods(self, run: str, stage: str = "base_train") -> list[dict[str, Any]]:
        """Return a stage's training pods."""
        return self._items("pods", run, stage)

    def nothing_left(self, run: str) -> bool:
        """Return whether the training stage has neither jobs nor pods."""
        return not self.jobs(run) and not self.pods(run)

    def checkpoints(self, run: str) -> list[int]:
        """Return the steps of the checkpoints of base training so far."""
        return [event["step"] for event in self.events(run, "base_train", "checkpoint")]

    def events(self, run: str, stage: str, *names: str) -> list[dict[str, Any]]:
        """Return what a stage has told so far; a line that is being written does not count."""
        try:
            return list(read_events(self.home.stage(run, stage) / "events.jsonl", *names))
        except (DataError, FileNotFoundError):
            return []

    def _items(self, what: str, run: str, stage: str) -> list[dict[str, Any]]:
        labels = f"nanochat.dev/run={run},nanochat.dev/stage={stage},app.kubernetes.io/component=train"
        return self.cluster.items(what, "-n", self.namespace, "-l", labels)


@pytest.fixture(scope="module")
def place(own: Cluster, cluster: Access, training_operator: None) -> Iterator[Place]:
    with rung("train and submit images"):
        images = {"image": train_image(), "submit_image": submit_image()}
        for image in images.values():
            own.import_image(image)
    with cluster.namespace("kfp") as namespace:
        install(cluster, namespace)
        volume = cluster.volume(namespace, CLAIM)
        assert volume.path is not None
        tags = {name: image.tag for name, image in images.items()}
        yield Place(cluster, namespace, Home(volume.path), tags)


@pytest.fixture(scope="module")
def trained(place: Place) -> Run:
    """A run whose tokens are ready: what is terminated is its base training, long enough for that."""
    run = place.run("smoke", steps=STEPS, checkpoint_every=10)
    with rung("pipeline up to the tokens"):
        assert run.steps_to_end(last="tokenize") == "RUNNING", run.why()
    return run


def started(place: Place, run: Run) -> Step:
    """Start base training, or go on with it; return its step once a new checkpoint is there."""
    before = len(place.checkpoints(run.values["run"]))
    step = run.start_next()
    assert step is not None
    assert step.name == TRAIN

    def more() -> bool:
        phase = run.pod(TRAIN)["status"].get("phase")
        assert phase not in ("Succeeded", "Failed"), run.log(TRAIN)[-3000:]
        return len(place.checkpoints(run.values["run"])) > before

    poll("a checkpoint of base training", more, timeout=150, interval=0.2)
    return step


def signal_training(place: Place, name: str) -> None:
    """Send a signal to all processes of base training but the first of each container."""
    for pod in place.pods("smoke"):
        container = pod["spec"]["containers"][0]["name"]
        kill = ("--", "sh", "-c", f"kill -{name} -1")
        place.cluster.kubectl("exec", pod["metadata"]["name"], "-n", place.namespace, "-c", container, *kill)


def gone(place: Place, run: Run, within: float) -> float:
    """Wait until nothing of base training is left; returns the seconds that took."""
    began = time.monotonic()
    poll("the jobs and pods to go", lambda: place.nothing_left(run.values["run"]), timeout=within)
    return time.monotonic() - began


@pytest.mark.parametrize("how", ["kill-command", "signal"])
def test_a_terminated_run_leaves_nothing_and_goes_on_when_it_is_retried(
    place: Place, trained: Run, how: How
) -> None:
    step = started(place, trained)
    reached = max(place.checkpoints("smoke"))
    trained.states = ["PENDING", "RUNNING"]
    assert trained.terminate(step, how) == "FAILED"
    assert trained.states == ["PENDING", "RUNNING", "CANCELING", "FAILED"]
    figure("jobs and pods gone after a terminated step's end", gone(place, trained, LEASE_S))
    words = trained.last_words(TRAIN)
    assert (words["status"], words["exit_code"]) == ("failed", 143)
    assert "SIGTERM" in words["message"]
    assert max(place.checkpoints("smoke")) >= reached
    assert "Traceback" not in trained.log(TRAIN)


def test_a_step_lost_without_a_signal_is_adopted_by_the_next(place: Place, trained: Run) -> None:
    step = started(place, trained)
    (before,) = place.jobs("smoke")
    signal_training(place, "STOP")  # or it might end before there is anything to adopt
    assert trained.terminate(step, "lost") == "FAILED"
    again = trained.start_next()
    assert again is not None
    trained.wait_pod(TRAIN, lambda pod: "adopting job" in trained.log_or_empty(TRAIN), 60)
    (after,) = place.jobs("smoke")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    signal_training(place, "CONT")
    trained.terminate(again, "kill-command")
    gone(place, trained, LEASE_S)


@pytest.mark.timeout(400, func_only=True)
def test_a_step_lost_without_a_signal_leaves_nothing_after_the_lease(place: Place, trained: Run) -> None:
    step = started(place, trained)
    signal_training(place, "STOP")  # or it might end before the lease does
    trained.terminate(step, "lost")
    lost = time.monotonic()
    poll("the job to be deleted", lambda: not place.jobs("smoke"), timeout=LEASE_S, interval=0.2)
    signal_training(place, "CONT")
    gone(place, trained, LEASE_S)
    figure("0 jobs and pods after a lost submitter", time.monotonic() - lost)
    assert "SIGTERM" in place.events("smoke", "base_train", "stage")[-1]["reason"]


@pytest.mark.timeout(900, func_only=True)
def test_a_run_that_was_stopped_so_often_ends_with_metrics_model_and_report(
    place: Place, trained: Run
) -> None:
    run = trained
    assert place.checkpoints("smoke"), "the tests before stopped it"
    with rung("smoke run as a pipeline, from base training on"):
        assert run.steps_to_end() == "SUCCEEDED", run.why()
    for name in run.tasks:
        told = run.log(name).splitlines()
        say("\n".join(f"{name}: {line}" for line in told if " | " not in line and MARK not in line))
    assert run.states[-2:] == ["RUNNING", "SUCCEEDED"]
    steps = [event["step"] for event in place.events("smoke", "base_train", "step")]
    assert max(steps) == STEPS
    assert place.events("smoke", "base_train", "restart")
    assert run.artifacts[TRAIN, "metrics"]["metadata"]["steps"] == STEPS
    assert run.artifacts[TRAIN, "metrics"]["metadata"]["attempts"] > 1
    for stage in STAGES:
        step = stage.name.replace("_", "-")
        record = Record.load(place.home.stage("smoke", stage.name))
        assert record is not None
        metrics = run.artifacts[step, "metrics"]
        assert metrics["type"]["schemaTitle"] == "system.Metrics"
        assert metrics["metadata"]["wall_s"] == record.wall_s
        numbers = {n: v for n, v in record.metrics.items() if type(v) in (int, float)}
        assert {n: metrics["metadata"][n] for n in numbers} == numbers
        assert run.last_words_or_none(step) is None
        (job,) = place.jobs("smoke", stage.name)
        assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [run.uid]
    model = run.artifacts["chat-sft", "model"]
    assert model["type"]["schemaTitle"] == "system.Model"
    card = json.loads(run.content("chat-sft", "model"))
    assert (place.home.root / Path(card["path"]).relative_to("/data") / "model.safetensors").exists()
    report = place.home.run("smoke") / "report"
    assert run.content("report", "report") == (report / "report.md").read_bytes()
    assert run.content("report", "page") == (report / "report.html").read_bytes()
    assert b"| Knows who it is " in run.content("chat-eval", "scores")
    say(run.content("chat-eval", "scores").decode())

    with rung("jobs after the Workflow is deleted"):
        name = run.workflow["metadata"]["name"]
        place.cluster.kubectl("delete", "workflows.argoproj.io", name, "-n", place.namespace)
        poll(
            "all jobs and pods to go with the Workflow",
            lambda: not any(place.jobs("smoke", s.name) or place.pods("smoke", s.name) for s in STAGES),
            timeout=60,
        )


def test_a_failing_step_has_one_attempt_and_leaves_its_cause(place: Place) -> None:
    run = place.run("wrong", device_batch_size=7)
    assert run.steps_to_end() == "FAILED"
    assert run.states == ["PENDING", "RUNNING", "FAILED"]
    assert run.tasks == {"data": "FAILED"}
    words = run.last_words("data")
    assert words["exit_code"] == 64
    assert "device_batch_size" in words["message"] or "device-batch-size" in words["message"]
    pod = run.pod("data")
    assert pod["metadata"]["annotations"]["nanochat.dev/cause"] == words["message"]
    assert (
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    )  # as the backend does
    assert place.jobs("wrong", "data") == []


@pytest.mark.timeout(3600, func_only=True)
def test_a_real_backend_runs_it(kfp_endpoint: str) -> None:
    """`KFP_ARGUMENTS`: NAME=VALUE parameters beside preset=smoke."""
    arguments = ["preset=smoke", *os.environ.get("KFP_ARGUMENTS", "").split()]
    kfp = Path(sys.executable).with_name("kfp")
    create = ["run", "create", "-e", "speedrun", "-f", str(FILE), "--watch", *arguments]
    done = subprocess.run(
        [str(kfp), "--endpoint", kfp_endpoint, "--output", "json", *create],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SUCCEEDED" in done.stdout + done.stderr  # `--watch` exits 0 for a failed run, too

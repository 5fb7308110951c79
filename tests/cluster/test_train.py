"""Real pods train: every stage of the smoke run, two nodes, a killed worker, three kinds of job."""

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
import yaml

from nanochat.errors import DataError
from nanochat.run.events import read_events
from nanochat.run.record import Record, missing_output
from nanochat.run.stage import STAGES
from nanochat.settings import Home
from tests.cluster.harness.access import Access
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.figures import figure
from tests.cluster.harness.host import poll, rung, say
from tests.cluster.own.images import train_image

pytestmark = pytest.mark.cluster
NANOCHAT = Path(sys.executable).with_name("nanochat")
CLAIM = "nanochat-data"
TRAINING = ("base_train", "mid_train", "chat_sft")


@dataclass(frozen=True)
class Place:
    """A namespace with a volume, and the command line as its user has it."""

    cluster: Access
    namespace: str
    home: Home
    spec: Path
    image: str

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = os.environ | {"KUBECONFIG": str(self.cluster.kubeconfig)}
        return subprocess.Popen(
            [NANOCHAT, *arguments], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *arguments: str, timeout: float = 240) -> str:
        """Return what the command printed."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{arguments}: {process.returncode}\n{err[-3000:]}"
        return out

    def submit(self, *arguments: str) -> dict[str, Any]:
        """Return the result of `nanochat submit` of this place's spec."""
        found: dict[str, Any] = json.loads(self.run("submit", "--spec", str(self.spec), "--json", *arguments))
        return found

    def record(self, run: str, stage: str) -> Record:
        """Return a stage's record, its outputs checked."""
        record = Record.load(self.home.stage(run, stage))
        assert record is not None, f"no record of {stage}"
        assert missing_output(record, self.home) is None
        return record

    def events(self, run: str, stage: str, *names: str) -> list[dict[str, Any]]:
        """Return what a stage has told so far; a line that is being written does not count."""
        try:
            return list(read_events(self.home.stage(run, stage) / "events.jsonl", *names))
        except (DataError, FileNotFoundError):
            return []

    def pods(self, *selector: str) -> list[dict[str, Any]]:
        return self.cluster.items("pods", "-n", self.namespace, "-l", ",".join(selector))


def spec(namespace: str, image: str, **fields: Any) -> dict[str, Any]:
    """Return the smoke run as a spec of the test cluster."""
    small = {"cpu": "250m", "memory": "1536Mi", "shm": "256Mi"}
    base: dict[str, Any] = {"preset": "smoke", "image": image, "namespace": namespace, "hardware": "cpu"}
    return base | {"volume": {"claim": CLAIM}, "resources": small, "grace_s": 30} | fields


@pytest.fixture(scope="module")
def image(own: Cluster, cluster: Access) -> str:
    with rung("train image"):
        built = train_image()
        own.import_image(built)
    return built.tag


@pytest.fixture(scope="module")
def place(
    own: Cluster, cluster: Access, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with cluster.namespace("train") as namespace:
        volume = cluster.volume(namespace, CLAIM)
        assert volume.path is not None
        path = tmp_path_factory.mktemp("spec") / "run.yaml"
        path.write_text(yaml.safe_dump(spec(namespace, image)))
        yield Place(cluster, namespace, Home(volume.path), path, image)


@pytest.fixture(scope="module")
def locally(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Seconds of `nanochat run STAGE` for every stage of the same run on this machine, process included."""
    home = tmp_path_factory.mktemp("home")
    took = {}
    for stage in STAGES:
        started = time.monotonic()
        subprocess.run(
            [NANOCHAT, "run", stage.name, "--run", "smoke", "--preset", "smoke"],
            env=os.environ | {"NANOCHAT_HOME": str(home), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=True,
        )
        took[stage.name] = time.monotonic() - started
    return took


def test_a_stage_runs_as_a_plain_job_without_any_operator(place: Place) -> None:
    with rung("plain indexed Job"):
        result = place.submit("--kind", "job", "--run", "plain", "--stage", "data")
    assert [stage["status"] for stage in result["stages"]] == ["done"]
    assert result["stages"][0]["record"] == place.record("plain", "data").hash
    job = place.cluster.get("job", "plain-data-1", "-n", place.namespace)
    assert job["status"]["succeeded"] == 1


def test_every_stage_of_the_smoke_run_runs_as_a_pytorchjob(
    place: Place, training_operator: None, locally: dict[str, float]
) -> None:
    """Two nodes over gloo; a worker is killed in the middle of base training and the run finishes."""
    arguments = ("--nodes", "2", "--device-batch-size", "4", "--checkpoint-every", "10", "--json")
    with rung("smoke run as PyTorchJobs"):
        process = place.start("submit", "--spec", str(place.spec), *arguments)

        def middle() -> bool:
            steps = [event["step"] for event in place.events("smoke", "base_train", "checkpoint")]
            assert process.poll() is None, process.communicate()[1][-3000:]
            return bool(steps) and max(steps) >= 20

        poll("a checkpoint in the middle of base training", middle, timeout=200)
        worker = next(
            p for p in place.pods("nanochat.dev/stage=base_train") if "worker" in p["metadata"]["name"]
        )
        place.cluster.kubectl(
            *("delete", "pod", worker["metadata"]["name"], "-n", place.namespace),
            *("--grace-period=0", "--force"),
        )
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err[-3000:]
    stages = {stage["stage"]: stage for stage in json.loads(out)["stages"]}
    assert list(stages) == [stage.name for stage in STAGES]
    assert stages["base_train"]["attempt"] == 2
    assert len(place.events("smoke", "base_train", "restart")) == 1
    for name, stage in stages.items():
        record = place.record("smoke", name)
        assert (stage["status"], stage["record"]) == ("done", record.hash)
        assert name == "base_train" or stage["attempt"] == 1
        say(f"stage {name}: {stage['wall_s']:.1f} s as a PyTorchJob, {locally[name]:.1f} s locally")
        if name != "base_train":  # its worker was killed
            figure("platform overhead of a stage", stage["wall_s"] - locally[name])
    steps = [event["step"] for event in place.events("smoke", "base_train", "step")]
    assert max(steps) == 120
    assert (place.home.run("smoke") / "report" / "report.html").exists()
    assert list(place.home.models("smoke").glob("chat_sft-*/model.safetensors"))
    assert (
        place.cluster.items("pods", "-n", place.namespace, "--field-selector", "status.phase=Running") == []
    )


def test_submitted_again_every_stage_is_kept(place: Place, training_operator: None) -> None:
    result = place.submit("--nodes", "2", "--device-batch-size", "4", "--checkpoint-every", "10")
    assert {stage["status"] for stage in result["stages"]} == {"kept"}


def test_a_stage_runs_as_a_trainjob(place: Place, trainer: None) -> None:
    with rung("TrainJob"):
        result = place.submit("--kind", "trainjob", "--run", "trainjob", "--stage", "data")
    assert result["stages"][0]["record"] == place.record("trainjob", "data").hash


def test_two_nodes_of_a_plain_job_find_each_other(place: Place, tmp_path: Path) -> None:
    stages = ["data", "tok_train", "tokenize", "base_train"]
    fields = {"kind": "job", "nodes": 2, "run": "pair", "stages": stages}
    overrides = {"device_batch_size": 4, "steps": 12}
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(spec(place.namespace, place.image, overrides=overrides, **fields)))
    with rung("indexed Job of two nodes"):
        result = json.loads(place.run("submit", "--spec", str(path), "--json"))
    assert [stage["stage"] for stage in result["stages"]] == stages
    assert [event["step"] for event in place.events("pair", "base_train", "step")][-1] == 12

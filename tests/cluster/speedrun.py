"""The smoke speedrun, trained once on the test cluster: training's tests look at it, the chart serves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanochat.errors import DataError
from nanochat.run.events import read_events
from nanochat.run.record import Record, missing_output
from nanochat.settings import Home
from tests.cluster.harness.access import Access
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.host import mortal, poll, rung
from tests.cluster.own.images import train_image

NANOCHAT = Path(sys.executable).with_name("nanochat")
CLAIM = "nanochat-data"
TWO_NODES = ("--nodes", "2", "--device-batch-size", "4", "--checkpoint-every", "10")


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
            [*mortal(), NANOCHAT, *arguments],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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


@pytest.fixture(scope="session")
def train_tag(own: Cluster, cluster: Access) -> str:
    with rung("train image"):
        built = train_image()
        own.import_image(built)
    return built.tag


@pytest.fixture(scope="session")
def training(
    own: Cluster, cluster: Access, train_tag: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with cluster.namespace("train") as namespace:
        volume = cluster.volume(namespace, CLAIM)
        assert volume.path is not None
        path = tmp_path_factory.mktemp("spec") / "run.yaml"
        path.write_text(yaml.safe_dump(spec(namespace, train_tag)))
        yield Place(cluster, namespace, Home(volume.path), path, train_tag)


@dataclass(frozen=True)
class Speedrun:
    """A finished run and what its submitter said."""

    place: Place
    stages: dict[str, dict[str, Any]]

    @property
    def models(self) -> Path:
        """The folder of its models."""
        return self.place.home.root / "models"


@pytest.fixture(scope="session")
def speedrun(training: Place, training_operator: None) -> Speedrun:
    """The smoke run as PyTorchJobs of two nodes over gloo, a worker killed in the middle of base training."""
    place = training
    with rung("smoke run as PyTorchJobs"):
        process = place.start("submit", "--spec", str(place.spec), *TWO_NODES, "--json")

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
    return Speedrun(place, {stage["stage"]: stage for stage in json.loads(out)["stages"]})

"""`make rehearsal`: what is too slow for every day.

The tiny speedrun on real text, every stage a PyTorchJob, as a user would start it: half an hour, as the test
image has no compiler and trains without torch.compile. The text is prepared beforehand, because nothing
leaves the test cluster. And Ray's autoscaler.
"""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest
import yaml

from nanochat.run.stage import STAGES
from tests.bench import bpb
from tests.cluster.harness.figures import figure
from tests.cluster.harness.host import rung, say
from tests.cluster.speedrun import NANOCHAT, spec
from tests.cluster.speedrun import Place as TrainingPlace
from tests.cluster.streams import streaming
from tests.cluster.test_chart import Place, place, ray_ready, tag

__all__ = ["place", "tag"]

UID = 10001


@pytest.mark.timeout(5400, func_only=True)
def test_the_tiny_speedrun_on_real_text(training: TrainingPlace, training_operator: None) -> None:
    with rung("real text onto the volume"):
        subprocess.run(
            [NANOCHAT, "data", "prepare", "--preset", "tiny"],
            env=os.environ | {"NANOCHAT_HOME": str(training.home.root)},
            check=True,
        )
        for path in training.home.root.rglob("*"):
            os.chown(path, UID, UID)
    resources = {"cpu": "1500m", "memory": "4Gi", "shm": "256Mi"}
    path = training.spec.with_name("rehearsal.yaml")
    path.write_text(
        yaml.safe_dump(spec(training.namespace, training.image, preset="tiny", resources=resources))
    )
    began = time.monotonic()
    with rung("tiny speedrun as PyTorchJobs"):
        result = json.loads(training.run("submit", "--spec", str(path), "--json", timeout=5000))
    figure("tiny as PyTorchJobs: in all", (time.monotonic() - began) / 60, "min")
    assert [stage["stage"] for stage in result["stages"]] == [stage.name for stage in STAGES]
    for stage in result["stages"]:
        record = training.record("tiny", stage["stage"])
        assert stage["record"] == record.hash
        say(f"stage {stage['stage']}: {stage['wall_s']:.1f} s, of it {stage['work_s']:.1f} s of work")
        figure("tiny as PyTorchJobs: platform overhead of a stage", stage["wall_s"] - stage["work_s"])
        if stage["stage"].endswith(("_train", "_sft")):
            say(f"  {json.dumps(record.metrics)[:300]}")
    report = training.home.run("tiny") / "report" / "report.md"
    say(report.read_text(encoding="utf-8"))
    model = bpb.base_model(training.home.root, "tiny")
    for scored in bpb.measure(model, training.home.root / "datasets" / "packages-cpu" / "heldout"):
        figure(f"tiny as PyTorchJobs: bits per byte, {scored.source}", scored.bits_per_byte, "bits per byte")


@pytest.mark.timeout(600, func_only=True)
def test_rays_autoscaler_adds_a_worker_under_load(place: Place, kuberay: None) -> None:
    scaling = {"enabled": True, "maxReplicas": 2, "targetRequests": 1}
    place.release.install(place.values(mode="rayservice", autoscaling=scaling))
    ray_ready(place)
    (head,) = place.cluster.items("pods", "-n", place.namespace, "-l", "ray.io/node-type=head")
    assert len(head["spec"]["containers"]) == 2
    assert all(status["ready"] for status in head["status"]["containerStatuses"])
    assert len(place.pods()) == 1
    url = place.url("chat-nanochat-serve-svc")
    with rung("chart, rayservice: a second worker under load"), streaming(url, clients=6) as tally:

        def two_ready() -> bool:
            statuses = [s for pod in place.pods() for s in pod["status"].get("containerStatuses", ())]
            return len(statuses) == 2 and all(status["ready"] for status in statuses)

        place.poll("a second worker", two_ready, timeout=200)
    assert tally.broken == []

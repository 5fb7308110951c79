"""The submitter's decisions, over a loopback API: what is adopted, tried again, believed and given up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nanochat_platform.cli.cluster import root_cause
from nanochat_platform.kube.access import Access
from nanochat_platform.kube.cancel import cancel
from nanochat_platform.kube.cause import Cause
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.jobs import OwnerReference
from nanochat_platform.kube.lease import Renewer
from nanochat_platform.kube.resources import LEASES
from nanochat_platform.kube.transport import Transport
from nanochat_platform.spec import RunSpec
from nanochat_platform.submit import Options, Result, submit
from nanochat_platform.submit.objects import RECORD as KEPT

from nanochat.errors import DataError, Interrupted, NanochatError, QuotaError, RunLockedError
from nanochat.run.record import Output, Record
from nanochat.run.signals import StopNow
from nanochat.settings import Home
from tests.cluster.hands import RECORD, done, ended, failed, running
from tests.integration.loopback_api import LoopbackApi

JOBS = "/apis/batch/v1/namespaces/chat/jobs"
CLAIM = "/api/v1/namespaces/chat/persistentvolumeclaims/nanochat-data"


class Bench:
    """One loopback cluster, a client, and how often and how long the submitter waited."""

    def __init__(self) -> None:
        self.api = LoopbackApi()
        self.api.put(
            CLAIM, {"metadata": {"name": "nanochat-data"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        )
        self.transport = Transport(Access(server=self.api.url, source="a test", namespace="chat"))
        self.client = Client(self.transport, "chat")
        self.waits: list[float] = []
        self.said: list[str] = []

    def run(self, *stages: str, options: Options | None = None, **changes: Any) -> Result:
        return submit(
            self.client,
            spec(**changes),
            stages or ("data",),
            options or Options(),
            self.said.append,
            wait=self.waits.append,
        )

    def job(self, name: str) -> dict[str, Any]:
        return self.api.objects[f"{JOBS}/{name}"]

    def causes(self) -> list[tuple[str, bool]]:
        found = [
            j["metadata"].get("annotations", {}).get("nanochat.dev/cause")
            for j in self.api.of("jobs").values()
        ]
        causes = [Cause.model_validate_json(text) for text in found if text]
        return [(cause.kind, cause.retried) for cause in causes]


def spec(**changes: Any) -> RunSpec:
    base = {"preset": "smoke", "run": "kt", "image": "reg/t:1", "namespace": "chat", "hardware": "cpu"}
    return RunSpec.model_validate({**base, "kind": "job", **changes})


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.api:
        yield made
    made.transport.close()


def plays(*plays_: Any) -> Any:
    """Return a play that gives the n-th pod the n-th status."""
    rest = iter(plays_)
    return lambda pod: next(rest)(pod)


def test_each_stage_is_one_job_and_the_second_time_none(bench: Bench) -> None:
    bench.api.play = done
    first = bench.run("data", "tok_train")
    assert [(s.stage, s.status, s.attempt, s.record) for s in first.stages] == [
        ("data", "done", 1, RECORD),
        ("tok_train", "done", 1, RECORD),
    ]
    assert bench.said == [
        "data: started job `kt-data-1`",
        "data: done",
        "tok_train: started job `kt-tok-train-1`",
        "tok_train: done",
    ]
    sent = len(bench.api.requests)
    second = bench.run("data", "tok_train")
    assert [s.status for s in second.stages] == ["kept", "kept"]
    assert {method for method, _ in bench.api.requests[sent:]} == {"GET"}
    assert json.loads(json.dumps(second.to_json()))["stages"][1]["metrics"] == {"loss": 2.5}


def test_an_image_of_a_newer_day_does_not_repeat_what_is_done(bench: Bench) -> None:
    bench.api.play = done
    bench.run()
    assert [s.status for s in bench.run(image="reg/t:2").stages] == ["kept"]
    assert [s.attempt for s in bench.run(overrides={"depth": 3}).stages] == [2]


def test_a_stage_done_anew_has_the_stages_after_it_judged_again(bench: Bench) -> None:
    bench.api.play = done
    bench.run("data", "tok_train")
    bench.api.remove(f"{JOBS}/kt-data-1")
    result = bench.run("data", "tok_train")
    assert [(s.stage, s.attempt) for s in result.stages] == [("data", 1), ("tok_train", 2)]


def test_waits_between_attempts_grow_and_causes_stay(bench: Bench) -> None:
    lost = [lambda pod: ended(pod, "", code=137)] * 3
    bench.api.play = plays(*lost, done)
    assert bench.run().stages[0].attempt == 4
    assert bench.waits == [1.0, 2.0, 4.0]
    assert bench.causes() == [("killed", True)] * 3


def test_the_count_goes_on_where_a_killed_self_left_it(bench: Bench) -> None:
    bench.api.play = lambda pod: ended(pod, "", code=139)

    def die(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(bench.client, spec(max_attempts=2), ("data",), Options(), bench.said.append, wait=die)
    with pytest.raises(NanochatError, match=r"attempt 2 \(the last of 2\)") as caught:
        bench.run(max_attempts=2)
    assert caught.value.exit_code == 139
    assert bench.causes() == [("crashed", True), ("crashed", False)]
    with pytest.raises(NanochatError, match=r"attempt 4 \(the last of 2\)"):  # a person began a new series
        bench.run(max_attempts=2)


def test_a_failure_that_nobody_dealt_with_is_dealt_with_first(bench: Bench) -> None:
    bench.api.play = lambda pod: failed(pod, 65, "shard 3 is damaged", "fetch it again")
    assert bench.run(options=Options(detach=True)).stages[0].status == "started"
    with pytest.raises(NanochatError, match="attempt 1: shard 3 is damaged") as caught:
        bench.run()
    assert (caught.value.exit_code, caught.value.hint) == (65, "fetch it again")
    assert list(bench.api.of("jobs")) == ["kt-data-1"]


def test_memory_twice_and_quota_codes_end_it(bench: Bench) -> None:
    bench.api.play = lambda pod: ended(pod, "", code=137, reason="OOMKilled")
    with pytest.raises(NanochatError, match=r"attempt 2 \(the same again\)"):
        bench.run()
    assert bench.waits == [1.0]


def test_a_success_without_a_record_is_asked_once_more(bench: Bench) -> None:
    bench.api.play = plays(lambda pod: ended(pod, "bye", code=0), done)
    assert bench.run().stages[0].attempt == 2
    bench.api.play = lambda pod: ended(pod, "bye", code=0)
    with pytest.raises(DataError, match="two jobs succeeded without saying which record they left"):
        bench.run("tok_train")


def test_another_spec_waits_for_a_person(bench: Bench) -> None:
    bench.api.play = running
    bench.run(options=Options(detach=True))
    with pytest.raises(RunLockedError, match="is at work with another spec"):
        bench.run(overrides={"seed": 1})
    assert list(bench.api.of("jobs")) == ["kt-data-1"]


def test_a_deleted_job_means_cancelled(bench: Bench) -> None:
    bench.api.play = running

    def take_away() -> None:
        while f"{JOBS}/kt-data-1" not in bench.api.objects:
            time.sleep(0.01)
        bench.api.remove(f"{JOBS}/kt-data-1")

    threading.Thread(target=take_away, daemon=True).start()
    with pytest.raises(Interrupted, match="run `kt` was cancelled: job `kt-data-1` was deleted") as caught:
        bench.run()
    assert caught.value.exit_code == 143


def test_a_run_cancelled_between_two_attempts_makes_no_third(bench: Bench) -> None:
    bench.api.play = lambda pod: ended(pod, "", code=137)

    def cancelled(seconds: float) -> None:
        bench.waits.append(seconds)
        if len(bench.waits) == 2:
            assert set(cancel(bench.client, "kt").jobs) == {"kt-data-1", "kt-data-2"}

    with pytest.raises(Interrupted, match="was cancelled"):
        submit(bench.client, spec(), ("data",), Options(), bench.said.append, wait=cancelled)
    assert bench.api.of("jobs") == bench.api.of("pods") == {}
    assert cancel(bench.client, "kt").jobs == ()


def test_two_owners_of_an_adopted_job(bench: Bench) -> None:
    def owner(uid: str) -> Options:
        reference = OwnerReference(api_version="argoproj.io/v1alpha1", kind="Workflow", name=uid, uid=uid)
        return Options(owner=reference, detach=True)

    bench.api.play = running
    for uid in ("a", "b", "b"):
        bench.run(options=owner(uid))
    owners = bench.job("kt-data-1")["metadata"]["ownerReferences"]
    assert [entry["uid"] for entry in owners] == ["a", "b"]


def test_a_stop_signal_deletes_what_is_leased(bench: Bench) -> None:
    bench.api.play = running

    def stop(text: str) -> None:
        if "started" in text:
            raise StopNow(15)

    with pytest.raises(StopNow):
        submit(bench.client, spec(), ("data",), Options(leased=True), stop)
    assert bench.api.of("jobs") == bench.api.of("leases") == {}
    with pytest.raises(StopNow):
        submit(bench.client, spec(), ("data",), Options(), stop)
    assert list(bench.api.of("jobs")) == ["kt-data-1"]


def test_a_lease_is_renewed_taken_over_and_not_made_again(bench: Bench) -> None:
    own = [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "a"}]
    other = [{"apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "b"}]
    with Renewer(bench.client, "kt-data", {"x": "y"}, owners=own):
        first = bench.client.get(LEASES, "kt-data")
    with Renewer(bench.client, "kt-data", {"x": "y"}, owners=other, every_s=0.01) as renewer:
        second = bench.client.get(LEASES, "kt-data")
        assert first is not None
        assert second is not None
        assert [o["uid"] for o in second["metadata"]["ownerReferences"]] == ["a", "b"]
        assert second["spec"]["renewTime"] > first["spec"]["renewTime"]
        while (bench.client.get(LEASES, "kt-data") or {})["spec"]["renewTime"] == second["spec"]["renewTime"]:
            time.sleep(0.01)
        bench.client.delete(LEASES, "kt-data")
        while not renewer.gone:
            time.sleep(0.01)
    assert bench.api.of("leases") == {}


def test_the_record_on_a_mounted_volume_must_be_the_one_that_was_told(bench: Bench, tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "out").write_text("12345")
    output = Output(sha256="0" * 64, bytes=5)
    record = Record(stage="data", config={}, config_hash="c", outputs={"out": output})

    def told(pod: dict[str, Any]) -> dict[str, Any]:
        status = done(pod)
        container = status["containerStatuses"][0]["state"]["terminated"]
        container["message"] = container["message"].replace(RECORD, record.hash)
        return status

    bench.api.play = told
    mounted = Options(home=home)
    with pytest.raises(DataError, match="holds none"):
        bench.run(options=mounted)
    assert len(bench.waits) == 60  # a network volume may lag for a minute
    record.save(home.stage("kt", "data"))
    assert bench.run(options=mounted).stages[0].record == record.hash
    (tmp_path / "out").write_text("123")
    with pytest.raises(DataError, match="`out` has 3 bytes, expected 5"):
        bench.run(options=mounted)
    Record(stage="data", config={}, config_hash="other").save(home.stage("kt", "data"))
    with pytest.raises(DataError, match=r"but .*record\.json` is "):
        bench.run(options=mounted)


def test_nothing_is_made_where_the_quota_has_no_room(bench: Bench) -> None:
    quota = {"metadata": {"name": "team"}, "spec": {}, "status": {"hard": {"pods": "0"}}}
    bench.api.put("/api/v1/namespaces/chat/resourcequotas/team", quota)
    with pytest.raises(QuotaError, match="needs 1 of pods"):
        bench.run()
    assert bench.api.of("jobs") == {}


def test_a_claim_with_a_size_is_made_first(bench: Bench) -> None:
    bench.api.remove(CLAIM)
    bench.api.play = done
    bench.run(volume={"size": "1Gi", "storage_class": "fast"})
    assert bench.api.objects[CLAIM]["spec"]["resources"] == {"requests": {"storage": "1Gi"}}
    made = [path for method, path in bench.api.requests if method == "PATCH"]
    assert made[0] == CLAIM


def test_what_beside_a_job_was_made_goes_when_the_job_is_refused(bench: Bench) -> None:
    real = bench.api._apply

    def refuse(path: str, manager: str, body: Any) -> tuple[int, Any]:
        if path.startswith(JOBS):
            return 422, {"message": "Job is invalid: spec.completions"}
        return real(path, manager, body)

    bench.api._apply = refuse  # type: ignore[method-assign]
    with pytest.raises(NanochatError, match=r"spec\.completions"):
        bench.run("base_train", nodes=2)
    assert bench.api.of("services") == {}


def test_the_service_of_two_nodes_belongs_to_the_job(bench: Bench) -> None:
    bench.api.play = running
    bench.run("base_train", nodes=2, options=Options(detach=True))
    (service,) = bench.api.of("services").values()
    assert service["metadata"]["ownerReferences"][0]["uid"] == bench.job("kt-base-train-1")["metadata"]["uid"]
    cancel(bench.client, "kt")
    assert bench.api.of("services") == {}


def test_what_was_found_is_kept_on_the_job_because_pods_do_not_stay(bench: Bench) -> None:
    bench.api.play = done
    bench.run()
    kept = json.loads(bench.job("kt-data-1")["metadata"]["annotations"][KEPT])
    assert kept["record"] == RECORD
    for name in bench.api.of("pods"):
        bench.api.remove(f"/api/v1/namespaces/chat/pods/{name}")
    assert bench.run().stages[0].record == RECORD


def test_explain_finds_what_a_pipeline_step_said_when_no_job_is_left(bench: Bench) -> None:
    words = failed(
        {"spec": {"containers": [container_of("chat_sft")]}}, 66, "another run is at work", "wait for it"
    )
    labels = {
        "nanochat.dev/run": "kt",
        "nanochat.dev/stage": "chat_sft",
        "app.kubernetes.io/component": "pipeline",
    }
    argo = {"name": "wait", "state": {"terminated": {"exitCode": 0, "message": ""}}}
    words["containerStatuses"].insert(0, argo)
    pod = {
        "metadata": {"name": "step", "labels": {**labels, "batch.kubernetes.io/job-name": "none"}},
        "status": words,
    }
    bench.api.put("/api/v1/namespaces/chat/pods/step", pod)
    told = root_cause(bench.client, "kt", None)
    assert (told["stage"], told["text"], told["exit_code"]) == ("chat_sft", "another run is at work", 66)
    assert told["fix"] == "wait for it"


def container_of(stage: str) -> dict[str, Any]:
    config = spec().stage_config(stage).model_dump_json()
    return {"name": "main", "image": "x", "env": [{"name": "NANOCHAT_CONFIG", "value": config}]}

"""Names, labels and the reading of a job's status."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nanochat_platform.kube import names
from nanochat_platform.kube.names import JOB_NAME_MAX, KINDS, job_name, kind_of, labels, lease_name, selector

from nanochat.run.stage import STAGE_NAMES
from nanochat.settings import check_name

DNS_1035 = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
RUNS = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True).filter(lambda r: ".." not in r)
# The longest of what the controllers append: a pod of the training operator, of a Job, of a JobSet.
SUFFIXES = ("-worker-999", "-999-abcde", "-node-0-999-abcde")


@pytest.mark.parametrize(
    ("run", "stage", "attempt", "name"),
    [
        ("speedrun", "base_train", 1, "speedrun-base-train-1"),
        ("classic-d20", "chat_sft", 12, "classic-d20-chat-sft-12"),
        ("my_run.v2", "data", 3, "my-run-v2-data-3"),
        ("26-layers", "data", 1, "nc-26-layers-data-1"),
        ("r" * 63, "base_train", 1, "r" * 37 + "-1c8b88df"),
    ],
)
def test_a_job_is_named_after_its_run_stage_and_attempt(run, stage, attempt, name):
    assert job_name(run, stage, attempt) == name


@given(run=RUNS, stage=st.sampled_from(STAGE_NAMES), attempt=st.integers(1, 999))
def test_any_run_has_a_name_that_every_controller_can_extend(run, stage, attempt):
    check_name("run", run)
    name = job_name(run, stage, attempt)
    assert DNS_1035.fullmatch(name)
    assert len(name) <= JOB_NAME_MAX
    assert all(len(name + suffix) <= 63 for suffix in SUFFIXES)
    assert DNS_1035.fullmatch(lease_name(run, stage))
    assert all(LABEL.fullmatch(value) for value in labels(run=run, stage=stage, attempt=attempt).values())


@given(run=st.text("ab-", min_size=41, max_size=60).filter(lambda r: r.strip("-") == r))
def test_long_names_of_two_attempts_or_stages_differ(run):
    found = {job_name(run, stage, attempt) for stage in ("data", "base_train") for attempt in range(1, 12)}
    assert len(found) == 22


def test_selectors_find_what_the_labels_mark():
    marked = labels(run="r", stage="data", attempt=2, spec_hash="0" * 16)
    for wanted in (selector(), selector("r"), selector("r", "data"), selector("r", "data", 2)):
        assert all(marked[k] == v for k, v in (pair.split("=") for pair in wanted.split(",")))
    assert "nanochat.dev/attempt=3" in selector("r", "data", 3)


def test_the_paths_are_those_of_the_api():
    paths = {kind.path("team", "x") for kind in KINDS.values()}
    assert paths == {
        "/apis/kubeflow.org/v1/namespaces/team/pytorchjobs/x",
        "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs/x",
        "/apis/batch/v1/namespaces/team/jobs/x",
    }
    assert KINDS["job"].path("team") == "/apis/batch/v1/namespaces/team/jobs"
    assert all(kind_of(kind.resource) is kind for kind in KINDS.values())


def condition(type_, status="True", **more):
    return {"type": type_, "status": status} | more


@pytest.mark.parametrize(
    ("kind", "status", "phase"),
    [
        ("pytorchjob", {}, "pending"),
        ("pytorchjob", {"conditions": [condition("Created")]}, "pending"),
        ("pytorchjob", {"conditions": [condition("Suspended")]}, "queued"),
        ("pytorchjob", {"conditions": [condition("Created"), condition("Running")]}, "running"),
        (
            "pytorchjob",
            {"conditions": [condition("Running", "False"), condition("Succeeded")]},
            "succeeded",
        ),
        ("pytorchjob", {"conditions": [condition("Running", "False"), condition("Failed")]}, "failed"),
        ("pytorchjob", {"conditions": [condition("Suspended", "False"), condition("Running")]}, "running"),
        ("job", {"active": 2, "ready": 0}, "pending"),
        ("job", {"active": 2, "ready": 1}, "running"),
        ("job", {"conditions": [condition("Suspended")]}, "queued"),
        ("job", {"conditions": [condition("SuccessCriteriaMet")], "ready": 1}, "running"),
        ("job", {"conditions": [condition("SuccessCriteriaMet"), condition("Complete")]}, "succeeded"),
        ("job", {"conditions": [condition("FailureTarget"), condition("Failed")]}, "failed"),
        ("trainjob", {"jobsStatus": [{"name": "node", "active": 1, "ready": 0}]}, "pending"),
        ("trainjob", {"jobsStatus": [{"name": "node", "active": 1, "ready": 1}]}, "running"),
        ("trainjob", {"conditions": [condition("Complete")]}, "succeeded"),
        ("trainjob", {"conditions": [condition("Failed", reason="DeadlineExceeded")]}, "failed"),
    ],
)
def test_the_status_of_each_kind_reads_in_one_vocabulary(kind, status, phase):
    found = KINDS[kind].phase({"status": status})
    assert found.name == phase
    assert found.finished == (phase in ("succeeded", "failed"))


def test_a_phase_says_why():
    failed = condition("Failed", reason="DeadlineExceeded", message="too long")
    found = KINDS["trainjob"].phase({"status": {"conditions": [failed]}})
    assert (found.reason, found.message) == ("DeadlineExceeded", "too long")
    assert KINDS["job"].phase({}).name == "pending"


def test_the_hash_sees_every_value_and_no_order():
    first = names.spec_hash({"a": 1, "b": {"c": [1, 2]}})
    assert first == names.spec_hash({"b": {"c": [1, 2]}, "a": 1})
    assert first != names.spec_hash({"a": 1, "b": {"c": [2, 1]}})
    assert re.fullmatch(r"[0-9a-f]{16}", first)

"""The plan of a run on a cluster: its objects, the quota they need, what more nodes cost, the budget."""

import pytest
from nanochat_platform.hardware import NODES, find, node, quantity
from nanochat_platform.kube.planned import plan_cluster, planned_objects
from nanochat_platform.plan import describe, make_plan
from nanochat_platform.spec import RunSpec

from nanochat.errors import ConfigError, QuotaError
from nanochat.run.stage import STAGES
from tests.kube_cases import ALL, LEAST, spec

GPU = LEAST | {"preset": "speedrun", "hardware": "8xh100"}


def test_the_objects_are_those_that_will_be_made_in_their_order():
    found = list(planned_objects(spec("all"), leased=True))
    assert (found[0].kind, found[0].name, found[0].stage) == ("PersistentVolumeClaim", "lake", None)
    assert [(o.kind, o.name) for o in found[1:3]] == [
        ("Lease", "friday-data"),
        ("PyTorchJob", "friday-data-1"),
    ]
    assert [o.stage for o in found if o.kind == "PyTorchJob"] == [stage.name for stage in STAGES]
    names = [(o.kind, o.name) for o in planned_objects(spec("cpu-2-nodes")) if o.stage == "base_train"]
    assert names == [("PyTorchJob", "smoke-base-train-1")]


@pytest.mark.parametrize(("kind", "beside"), [("job", "Service"), ("trainjob", "TrainingRuntime")])
def test_what_a_job_needs_beside_it_is_made_before_it(kind, beside):
    two = RunSpec.model_validate(LEAST | {"nodes": 2, "kind": kind})
    kinds = [o.kind for o in planned_objects(two) if o.stage == "base_train"]
    assert kinds == [beside, {"job": "Job", "trainjob": "TrainJob"}[kind]]


def test_the_quota_is_the_most_that_exists_at_one_time():
    plan = plan_cluster(RunSpec.model_validate(GPU | {"nodes": 2, "volume": {"size": "2Ti"}}))
    assert plan.quota == {
        "cpu": "160",
        "memory": "1024Gi",
        "nvidia.com/gpu": "16",
        "pods": "2",
        "rdma/rdma_shared_device_a": "2",
        "storage": "2048Gi",
    }


@pytest.mark.parametrize(("kind", "guards"), [("pytorchjob", 1), ("job", 2), ("trainjob", 2)])
def test_the_guard_counts_where_it_runs(kind, guards):
    two = RunSpec.model_validate(LEAST | {"nodes": 2, "kind": kind, "stages": ["base_train"]})
    plain, guarded = plan_cluster(two), plan_cluster(two, leased=True)
    more = quantity(guarded.quota["cpu"]) - quantity(plain.quota["cpu"])
    assert more == pytest.approx(guards * 0.010)


def test_two_nodes_take_half_the_time_and_the_same_money_to_train():
    one, two = (plan_cluster(RunSpec.model_validate(GPU | {"nodes": nodes})) for nodes in (1, 2))
    assert (one.ranks, two.ranks) == (8, 16)
    assert two.tok_per_s == pytest.approx(2 * one.tok_per_s)
    by_stage = {plan.nodes: {stage.stage: stage for stage in plan.stages} for plan in (one, two)}
    train, more = by_stage[1]["base_train"], by_stage[2]["base_train"]
    assert more.accumulation == train.accumulation // 2
    assert more.seconds - 90 == pytest.approx((train.seconds - 90) / 2)
    assert more.usd == pytest.approx(train.usd, rel=0.05)
    assert by_stage[2]["base_eval"].seconds == by_stage[1]["base_eval"].seconds
    assert by_stage[2]["base_eval"].usd == by_stage[1]["base_eval"].usd
    assert any("2 nodes" in warning for warning in two.warnings)
    assert one.model_dump(exclude={"objects", "quota"}) == make_plan(
        RunSpec.model_validate(GPU).config(), find("8xh100")
    ).model_dump(exclude={"objects", "quota"})


def test_fewer_gpus_of_a_node_are_planned_as_that_many():
    plan = plan_cluster(RunSpec.model_validate(GPU | {"gpus": 4}))
    assert (plan.hardware, plan.ranks) == ("4xh100", 4)


def test_a_plan_beyond_the_budget_is_refused_with_both_numbers():
    with pytest.raises(QuotaError, match=r"costs \$\d+.*budget is \$10.00") as caught:
        plan_cluster(RunSpec.model_validate(GPU | {"budget_usd": 10}))
    assert caught.value.exit_code == 75
    assert "budget_usd" in caught.value.hint
    assert plan_cluster(RunSpec.model_validate(GPU | {"budget_usd": 1000})).usd < 1000
    unknown = plan_cluster(RunSpec.model_validate(LEAST | {"budget_usd": 10}))
    assert any("$10.00 cannot be checked" in warning for warning in unknown.warnings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware": "8xh100", "nodes": 3}, "on 24 ranks"),
        ({"hardware": "1xh100", "overrides": {"depth": 80}}, "depth 80"),
        ({"hardware": "cpu", "resources": {"memory": "1Gi"}}, "has 0.9 GiB to use"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_made(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_cluster(RunSpec.model_validate(GPU | changes))


def test_an_image_by_tag_is_a_warning():
    tagged = plan_cluster(RunSpec.model_validate(LEAST | {"image": "nanochat/train:0.1.0"}))
    assert any("`nanochat/train:0.1.0` has no digest" in warning for warning in tagged.warnings)
    assert not plan_cluster(RunSpec.model_validate(LEAST)).warnings


def test_the_text_names_every_object_and_the_quota():
    text = describe(plan_cluster(RunSpec.model_validate(ALL)))
    for name in (
        "PersistentVolumeClaim/lake",
        "PyTorchJob/friday-base-train-1",
        "quota needed at one time: cpu 160",
    ):
        assert name in text


def test_every_profile_is_known_to_the_plan_and_to_the_cluster():
    for profile in ("8xh100", "8xa100", "1xh100", "cpu"):
        assert find(profile, memory_bytes=2**34)
        assert node(profile) in NODES.values()
    with pytest.raises(ConfigError, match="`8xh200` is not known in a cluster"):
        node("8xh200")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", 0.5),
        ("8", 8),
        ("1.5", 1.5),
        ("4Gi", 2**32),
        ("16393204Ki", 16393204 * 1024),
        ("1e3", 1000),
        ("12E", 12e18),
        ("3Ei", 3 * 2**60),
        ("250u", 250e-6),
    ],
)
def test_quantities_read_as_kubernetes_writes_them(text, value):
    assert quantity(text) == pytest.approx(value)


def test_what_is_no_quantity_is_refused():
    for text in ("", "lots", "1 Gi", "-1", "1Xi"):
        with pytest.raises(ConfigError, match="not a quantity"):
            quantity(text)

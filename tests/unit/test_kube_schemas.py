"""The offline judge of objects, on mistakes that people make: it has to find each, and say where."""

import pytest

from tests.kube_cases import rendered
from tests.pod_security import put
from tests.schemas import load_all, needs_crds, validate

pytestmark = [needs_crds, pytest.mark.rung_a]
MASTER = "spec.pytorchReplicaSpecs.Master"
POD = f"{MASTER}.template.spec"


def pytorchjob():
    return rendered("least", "pytorchjob", "base_train", guarded=False)[0]


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("spec.nprocPerNode", 8, ".spec.nprocPerNode: 8 is no string"),
        ("spec.runPolicy.backofLimit", 0, ".spec.runPolicy.backofLimit: unknown field"),
        ("spec.runPolicy.backoffLimit", "0", ".spec.runPolicy.backoffLimit: '0' is no integer"),
        ("spec.runPolicy.backoffLimit", True, ".spec.runPolicy.backoffLimit: True is no integer"),
        ("spec.runPolicy.backoffLimit", 2**31, "is not between"),
        ("spec.runPolicy", None, ".spec.runPolicy: null"),
        ("spec", {}, ".spec.pytorchReplicaSpecs: not given"),
        (f"{POD}.hostNetwork", "yes", "is no boolean"),
        (f"{POD}.containers", [{"image": "i"}], "name: not given"),
        (f"{POD}.containers", {}, "is no array"),
        (f"{POD}.volumes", [], "no volume `data`"),
        (f"{POD}.volumes", [{"name": "data"}] * 2, "is given twice"),
        (f"{POD}.nodeSelector", {"a b": "c"}, "`a b: c` is no label"),
        ("metadata.labels", {"app": "x" * 64}, "is no label"),
        ("metadata.labels", {"app": 1}, "1 is not of type"),
        ("metadata.lables", {}, "'lables' was unexpected"),
        ("metadata.name", "Job_1", "is no name of an object"),
        ("apiVersion", "kubeflow.org/v2", "is not served"),
        ("kind", "PyTorchJobs", "no schema for kubeflow.org/v1 PyTorchJobs"),
        ("kind", None, "kind: not given"),
    ],
)
def test_a_mistake_in_a_custom_resource_is_found(path, value, error):
    job = pytorchjob()
    assert validate(job) == []
    put(job, path, value)
    assert any(error in found for found in validate(job)), validate(job)


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("spec.completionModes", "Indexed", "'completionModes' was unexpected"),
        ("spec.completions", "2", "is not of type"),
        ("spec.template.spec.containers", [], "no volume"),
        ("spec.template.spec.container", [], "'container' was unexpected"),
        ("apiVersion", "batch/v2", "no schema for batch/v2 Job"),
    ],
)
def test_a_mistake_in_a_core_object_is_found(path, value, error):
    job = rendered("least", "job", "base_train", guarded=False)[0]
    assert validate(job) == []
    put(job, path, value)
    if path.endswith("containers"):
        job["spec"]["template"]["spec"]["containers"] = [
            {"name": "c", "volumeMounts": [{"name": "none", "mountPath": "/x"}]}
        ]
    assert any(error in found for found in validate(job)), validate(job)


def test_a_value_outside_an_enumeration_is_found():
    runtime = rendered("least", "trainjob", "base_train", guarded=False)[1]
    put(runtime, "spec.template.spec.failurePolicy.restartStrategy", "Recreated")
    (found,) = validate(runtime)
    assert "'Recreated' is not one of ['Recreate', " in found


def test_names_that_must_differ_are_compared():
    job = rendered("least", "job", "base_train", guarded=False)[0]
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "HOME", "value": "/"})
    container["volumeMounts"].append({"name": "tmp", "mountPath": "/data"})
    container["resources"]["requests"]["memory"] = "4 GiB"
    found = "\n".join(validate(job))
    for part in (
        "env: `HOME` is there twice",
        "volumeMounts: `/data` is there twice",
        "'4 GiB' is no quantity",
    ):
        assert part in found


@pytest.mark.parametrize("document", [None, [], "text", {}, {"kind": "Pod"}])
def test_what_is_no_object_is_refused(document):
    assert validate(document)


def test_yaml_reads_as_kubernetes_reads_it():
    (found,) = load_all("a: =\nb: 2026-01-01\nc: yes\n---\n---\n")
    assert found == {"a": "=", "b": "2026-01-01", "c": True}

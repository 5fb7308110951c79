"""Every pod passes the `restricted` standard, and nothing can be taken from it that the standard asks for."""

import copy

import pytest

from tests.kube_cases import CASES, rendered
from tests.pod_security import CONTROLS, containers, get, mutants, pod_templates, violations

pytestmark = pytest.mark.rung_a


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pod_is_admitted(case):
    name, kind, stage, guarded = case
    found = list(pod_templates(*rendered(name, kind, stage, guarded=guarded)))
    assert found
    for path, template in found:
        assert violations(template) == [], path


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_control_broken_in_any_container_is_refused(case):
    """Every control of the standard x every pod template x every container of it."""
    name, kind, stage, guarded = case
    for path, template in pod_templates(*rendered(name, kind, stage, guarded=guarded)):
        before = copy.deepcopy(template)
        broken = list(mutants(template))
        assert template == before
        wheres = {"pod", *(container["name"] for _, container in containers(template["spec"]))}
        assert {mutant.where for mutant in broken} == wheres, path
        assert {mutant.control for mutant in broken} == {control.name for control in CONTROLS}, path
        for mutant in broken:
            found = {violation.split(":")[0] for violation in violations(mutant.template)}
            assert mutant.control in found, f"{path}: {mutant}"
            # What a change breaks besides is another side of the same thing.
            assert found <= {mutant.control, "privilege escalation"}, f"{path}: {mutant}"


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in ("least", "all")], ids=str)
def test_beyond_the_standard_no_container_can_write_its_root_or_is_unlimited(case):
    name, kind, stage, guarded = case
    for _, template in pod_templates(*rendered(name, kind, stage, guarded=guarded)):
        pod = template["spec"]
        assert get(pod, "securityContext.runAsUser") == get(pod, "securityContext.fsGroup") == 10001
        assert pod["automountServiceAccountToken"] is False
        for _, container in containers(pod):
            assert get(container, "securityContext.readOnlyRootFilesystem") is True
            assert {"cpu", "memory"} <= set(get(container, "resources.requests"))
            assert get(container, "resources.limits.memory") == get(container, "resources.requests.memory")


def test_a_context_of_the_container_wins_over_the_pod_s():
    pod = {
        "spec": {
            "securityContext": {"runAsNonRoot": False, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "c",
                    "securityContext": {
                        "runAsNonRoot": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                        "seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"},
                    },
                }
            ],
        }
    }
    assert violations(pod) == []
    pod["spec"]["ephemeralContainers"] = [{"name": "debug"}]
    assert {violation.split(": ")[1] for violation in violations(pod)} == {"container debug"}


def test_an_old_apparmor_annotation_counts():
    pod = {
        "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}},
        "spec": {"containers": []},
    }
    assert violations(pod) == ["AppArmor: pod"]
    pod["metadata"]["annotations"] = {"container.apparmor.security.beta.kubernetes.io/c": "runtime/default"}
    assert violations(pod) == []

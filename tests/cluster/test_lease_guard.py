"""The lease guard against the real API server, with the rights that its account has in a pod."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from nanochat_platform.kube.client import Client
from nanochat_platform.kube.resources import LEASES

from tests.cluster.client_side import User
from tests.cluster.hands import wait_until
from tests.cluster.harness.host import ROOT


def account_folder(user: User, account: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a service account's mount as a pod has it, and the variables that go with it."""
    kubeconfig = yaml.safe_load(user.access.account_kubeconfig(user.namespace, account).read_text())
    cluster = kubeconfig["clusters"][0]["cluster"]
    folder.mkdir()
    (folder / "token").write_text(kubeconfig["users"][0]["user"]["token"])
    (folder / "namespace").write_text(user.namespace)
    (folder / "ca.crt").write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    server = urlsplit(cluster["server"])
    return folder, {
        "KUBERNETES_SERVICE_HOST": str(server.hostname),
        "KUBERNETES_SERVICE_PORT": str(server.port),
    }


GUARD_ROLE = [
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "guard"}},
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "guard"},
        "rules": [
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["delete"]},
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "guard"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "guard"},
        "subjects": [{"kind": "ServiceAccount", "name": "guard"}],
    },
]


@pytest.mark.parametrize("end", ["silent", "deleted"])
def test_the_guard_deletes_its_job_when_nobody_renews(
    user: User, client: Client, tmp_path: Path, end: str
) -> None:
    user.access.create(GUARD_ROLE, namespace=user.namespace)
    user.ok("submit", "--spec", user.spec(), "--detach")
    spec = {"leaseDurationSeconds": 2, "renewTime": "2026-01-01T00:00:00.000000Z", "holderIdentity": "x"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "kt-data"}}
    client.create(LEASES, {**lease, "spec": spec})
    folder, env = account_folder(user, "guard", tmp_path / "account")
    code = (
        "import pathlib, sys; from nanochat_platform.kube import guard;"
        "sys.exit(guard.main(sys.argv[2:], account=pathlib.Path(sys.argv[1])))"
    )
    arguments = ["--lease", "kt-data", "--job", "jobs.batch/kt-data-1", "--look-s", "0.2"]
    guard = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *arguments],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", **env},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for renewal in range(4):  # as long as somebody renews, nothing happens
            time.sleep(0.7)
            client.patch(LEASES, "kt-data", {"spec": {"renewTime": f"2026-01-01T00:00:0{renewal}.500000Z"}})
            assert guard.poll() is None
        assert list(user.jobs()) == ["kt-data-1"]
        if end == "deleted":
            client.delete(LEASES, "kt-data")
        wait_until("the job to be deleted", lambda: user.jobs() == {}, 10)
        assert guard.poll() is None  # leaving would only have its container restarted
    finally:
        guard.terminate()
    _, err = guard.communicate(timeout=10)
    assert guard.returncode == 0
    assert ("nobody renewed its lease" if end == "silent" else "its lease is gone") in err

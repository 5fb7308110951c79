"""The client without a cluster: patience, retries, log cursors, the guard's judgement, kubeconfigs."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from nanochat_platform.kube import access
from nanochat_platform.kube.client import FIRST_PATIENCE_S, Client
from nanochat_platform.kube.follow import follow
from nanochat_platform.kube.guard import Watch, guard
from nanochat_platform.kube.logs import Cursor
from nanochat_platform.kube.resources import PODS
from nanochat_platform.kube.transport import Answer, Stream, Unreachable

from nanochat.errors import ConfigError, ForbiddenError, NanochatError, UnavailableError

AWAY = Unreachable("Connection refused")
OK = Answer(200, b'{"items": [], "metadata": {"resourceVersion": "7"}}', "application/json")
FORBIDDEN = Answer(
    403,
    b'{"reason": "Forbidden", "message": "pods is forbidden: User \\"a\\" cannot list resource \\"pods\\""}',
)


class Scripted:
    """A transport that answers from a list, and a clock that only its waits move."""

    def __init__(self, *answers: Answer | Unreachable) -> None:
        self.access = access.Access(server="https://c:6443", source="a test")
        self.answers = list(answers)
        self.now = 0.0
        self.sent: list[tuple[str, str]] = []

    def request(self, method: str, path: str, **_: Any) -> Answer:
        self.sent.append((method, path))
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Unreachable):
            raise found
        return found

    def stream(self, path: str, **_: Any) -> Stream:
        raise AWAY

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def client(self, patience_s: float = 60.0) -> Client:
        return Client(self, "chat", patience_s=patience_s, clock=lambda: self.now, wait=self.wait)  # type: ignore[arg-type]


def test_a_server_that_never_answered_is_given_up_soon() -> None:
    server = Scripted(AWAY)
    with pytest.raises(
        UnavailableError, match=r"API server https://c:6443 does not answer: Connection refused"
    ) as caught:
        server.client().items(PODS)
    assert caught.value.hint == "it comes from a test; is the cluster up, and is this the right one?"
    assert server.now == pytest.approx(FIRST_PATIENCE_S)


def test_a_server_that_answered_before_is_waited_for() -> None:
    server = Scripted(OK, *[AWAY] * 20, OK)
    client = server.client()
    client.items(PODS)
    assert client.items(PODS) == []
    assert FIRST_PATIENCE_S < server.now < 60


def test_a_refusal_right_after_an_outage_is_not_believed_at_once() -> None:
    server = Scripted(OK, AWAY, FORBIDDEN, FORBIDDEN, OK)
    client = server.client()
    client.items(PODS)
    assert client.items(PODS) == []


def test_a_refusal_without_an_outage_is_believed() -> None:
    server = Scripted(FORBIDDEN)
    with pytest.raises(ForbiddenError):
        server.client().items(PODS)
    assert len(server.sent) == 1


def test_too_many_requests_waits_as_long_as_it_is_told() -> None:
    server = Scripted(Answer(429, b"{}", retry_after_s=7.0), OK)
    assert server.client().items(PODS) == []
    assert server.now == 7.0


def test_a_watch_that_breaks_is_answered_by_a_list_and_its_differences() -> None:
    def listed(*names: str) -> Answer:
        items = [{"metadata": {"name": n, "uid": n, "resourceVersion": "1"}} for n in names]
        return Answer(200, json.dumps({"items": items, "metadata": {"resourceVersion": "9"}}).encode())

    server = Scripted(listed("a", "b"), listed("b", "c"), listed("b", "c"))
    changes = follow(server.client(), PODS)
    seen = [(change.kind, change.name) for change, _ in zip(changes, range(6), strict=False)]
    assert seen == [("set", "a"), ("set", "b"), ("tick", ""), ("gone", "a"), ("set", "c"), ("tick", "")]


LINES = [
    "2026-11-25T03:00:00.1Z one",
    "2026-11-25T03:00:00.12Z two",
    "2026-11-25T03:00:00.12Z two again",
    "2026-11-25T03:00:01Z three",
    "2026-11-25T03:00:01.000000001Z four",
]


@pytest.mark.parametrize("broken_after", range(len(LINES) + 1))
def test_no_line_is_lost_or_doubled_wherever_a_stream_breaks(broken_after: int) -> None:
    cursor = Cursor()
    cursor.reopen()
    shown = [cursor.take(line) for line in LINES[:broken_after]]
    since = cursor.reopen()
    second = "" if since is None else since[:19]  # the server cuts the time to whole seconds
    shown += [cursor.take(line) for line in LINES if line[:19] >= second]
    assert [text for text in shown if text is not None] == ["one", "two", "two again", "three", "four"]


class Lease:
    """A lease as the guard sees it, on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watch = Watch(lambda: self.now)

    def look(self, renewed: str | None, *, after: float = 5.0) -> str | None:
        self.now += after
        if renewed is None:
            return self.watch.seen(Answer(404, b"{}"))
        spec = {"leaseDurationSeconds": 60, "renewTime": renewed}
        return self.watch.seen(Answer(200, json.dumps({"spec": spec}).encode()))


def test_the_guard_counts_from_the_last_renewal_that_it_saw() -> None:
    lease = Lease()
    assert [lease.look(str(i // 3)) for i in range(30)] == [None] * 30
    assert [lease.look("last") for _ in range(12)] == [None] * 12
    assert lease.look("last") == "nobody renewed its lease for 60 s"


def test_time_without_the_api_does_not_count() -> None:
    lease = Lease()
    lease.look("a")
    for _ in range(100):
        lease.now += 5
        lease.watch.unseen()
    assert [lease.look("a") for _ in range(11)] == [None] * 11
    assert lease.watch.seen(Answer(503, b"{}")) is None
    assert [lease.look("a") for _ in range(11)] == [None] * 11
    assert lease.look("a") is not None


def test_a_lease_that_is_gone_twice_ends_the_job() -> None:
    lease = Lease()
    assert lease.look("a") is None
    assert lease.look(None) is None
    assert lease.look("a") is None
    assert lease.look(None) is None
    assert lease.look(None) == "its lease is gone"


def test_the_guard_deletes_until_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    gone, refused, done = Answer(404, b"{}"), Answer(500, b"{}"), Answer(200, b"{}")
    server = Scripted(gone, gone, AWAY, refused, done)

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return False

    reason = guard(server, "chat", "kt-data", "pytorchjobs.kubeflow.org/kt-data-1", Stop())  # type: ignore[arg-type]
    assert reason == "its lease is gone"
    path = "/apis/kubeflow.org/v1/namespaces/chat/pytorchjobs/kt-data-1"
    assert server.sent[2:] == [("DELETE", path)] * 3
    assert "deleting pytorchjobs.kubeflow.org/kt-data-1" in capsys.readouterr().err


def kubeconfig(path: Path, user: dict[str, Any], cluster: dict[str, Any] | None = None, **top: Any) -> Path:
    values = {
        "clusters": [{"name": "c", "cluster": {"server": "https://c:6443/", **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "chat"}}],
        "current-context": "x",
        **top,
    }
    path.write_text(yaml.safe_dump(values))
    return path


PLUGIN = """#!/bin/sh
echo "$KUBERNETES_EXEC_INFO" > {folder}/asked
echo '{{"kind": "ExecCredential", "status": {{"token": "t'$(wc -l < {folder}/count)'"}}}}'
echo >> {folder}/count
"""


def test_users_of_every_sort(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    plugin = tmp_path / "plugin"
    plugin.write_text(PLUGIN.format(folder=tmp_path))
    plugin.chmod(0o755)
    (tmp_path / "count").write_text("")
    sorts: list[tuple[dict[str, Any], str | None]] = [
        ({"token": "abc"}, "Bearer abc"),
        ({"username": "a", "password": "b"}, "Basic " + base64.b64encode(b"a:b").decode()),
        ({"tokenFile": "token"}, "Bearer first"),
        ({"exec": {"command": str(plugin), "apiVersion": "client.authentication.k8s.io/v1"}}, "Bearer t0"),
        ({}, None),
    ]
    for user, header in sorts:
        found = access.load(kubeconfig(tmp_path / "config", user))
        assert (found.server, found.namespace) == ("https://c:6443", "chat")
        assert found.credentials.header() == header
    token.write_text("second\n")
    assert (
        access.load(kubeconfig(tmp_path / "config", {"tokenFile": "token"})).credentials.header()
        == "Bearer second"
    )
    assert json.loads((tmp_path / "asked").read_text())["kind"] == "ExecCredential"
    found = access.load(kubeconfig(tmp_path / "config", {"exec": {"command": str(plugin)}}))
    assert found.credentials.header() == found.credentials.header() == "Bearer t1"
    assert found.credentials.header(refresh=True) == "Bearer t2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": {"auth-provider": {"name": "oidc"}}}, "uses an `auth-provider`"),
        ({"user": {"exec": {"command": "/no/such/plugin"}}}, "is not installed"),
        ({"user": {}, "current-context": ""}, "has no current context"),
        ({"user": {}, "current-context": "y"}, "has no context `y`"),
        ({"user": {}, "cluster": {"certificate-authority": "missing.pem"}}, "missing.pem"),
        (
            {"user": {}, "cluster": {"certificate-authority-data": base64.b64encode(b"no").decode()}},
            "does not load",
        ),
    ],
)
def test_a_wrong_kubeconfig_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = kubeconfig(tmp_path / "config", change.pop("user"), change.pop("cluster", None), **change)
    with pytest.raises(NanochatError, match=message):
        access.load(path).credentials.header()


def test_which_configuration_counts(tmp_path: Path) -> None:
    first = kubeconfig(tmp_path / "a", {"token": "a"})
    second = kubeconfig(tmp_path / "b", {"token": "b"}, {"server": "https://b:1"})
    both = {"KUBECONFIG": f"{first}:{second}", "HOME": str(tmp_path)}
    assert access.load(env=both).server == "https://c:6443"
    assert access.load(second, env=both).server == "https://b:1"
    with pytest.raises(ConfigError, match="does not exist"):
        access.load(tmp_path / "none", env={})
    with pytest.raises(ConfigError, match="KUBECONFIG names"):
        access.load(env={"KUBECONFIG": str(tmp_path / "none")})
    with pytest.raises(UnavailableError, match="no cluster is configured"):
        access.load(env={"HOME": str(tmp_path)})


def test_proxies_as_the_environment_says() -> None:
    env = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.1,.inner.example"}
    assert access._env_proxy("https://10.0.0.2:6443", env) == "http://proxy:3128"
    assert access._env_proxy("https://10.0.0.1:6443", env) is None
    assert access._env_proxy("https://k.inner.example:6443", env) is None
    assert access._env_proxy("https://10.0.0.2:6443", {}) is None


def test_a_step_knows_itself_from_its_environment() -> None:
    env = {"NANOCHAT_RUN": "kt", "NANOCHAT_STAGE": "data"}
    assert access.own_identity(env) == ("kt", "data", None)
    with pytest.raises(ConfigError, match="NANOCHAT_RUN is not set"):
        access.own_identity({})

"""What a node does to pods, by hand, where the test's cluster has only a control plane.

The API server, the job controllers and the submitter are real; only the containers are not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat_platform.kube.client import Client
from nanochat_platform.kube.names import selector
from nanochat_platform.kube.resources import PODS, meta, name_of

from nanochat.errors import NanochatError
from nanochat.run.config import StageConfig
from nanochat.run.reason import LastWords

RECORD = "5" * 64


def stamp() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stage_config(pod: dict[str, Any]) -> StageConfig:
    """Return what a pod's launcher is given."""
    env = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
    return StageConfig.model_validate_json(env["NANOCHAT_CONFIG"])


def running(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the status of a pod whose container works."""
    container = pod["spec"]["containers"][0]
    shown = {"name": container["name"], "image": container["image"], "imageID": "", "ready": True}
    return {
        "phase": "Running",
        "startTime": stamp(),
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": stamp()}],
        "containerStatuses": [{**shown, "restartCount": 0, "state": {"running": {"startedAt": stamp()}}}],
    }


def ended(
    pod: dict[str, Any], words: LastWords | str, *, code: int | None = None, reason: str | None = None
) -> dict[str, Any]:
    """Return the status of a pod whose container ended with these last words."""
    exit_code = code if code is not None else words.exit_code if isinstance(words, LastWords) else 0
    status = running(pod)
    container = status["containerStatuses"][0]
    container["ready"] = False
    container["state"] = {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": words.line() if isinstance(words, LastWords) else words,
            "startedAt": stamp(),
            "finishedAt": stamp(),
        }
    }
    status["phase"] = "Succeeded" if exit_code == 0 else "Failed"
    status["conditions"][0]["status"] = "False"
    return status


def done(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the status of a pod that completed its stage."""
    config = stage_config(pod)
    words = LastWords(
        stage=config.stage,
        run=config.spec.run,
        exit_code=0,
        status="done",
        record=RECORD,
        config=config.hash,
        wall_s=1.5,
        metrics={"loss": 2.5},
    )
    return ended(pod, words)


def failed(pod: dict[str, Any], code: int, message: str, hint: str | None = None) -> dict[str, Any]:
    """Return the status of a pod whose launcher failed and said why."""
    config = stage_config(pod)
    words = LastWords(
        stage=config.stage, run=config.spec.run, exit_code=code, status="failed", message=message, hint=hint
    )
    return ended(pod, words)


Play = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Takes a pod that is Pending or Running; returns its next status, None to leave it alone."""


class Hands:
    """Plays the node for the pods of this platform, in one namespace or in all."""

    def __init__(self, kubeconfig: Path, play: Play, *, namespace: str | None = None) -> None:
        self.client = Client.load(kubeconfig, namespace=namespace or "default", patience_s=60.0)
        self.play = play
        self._all = namespace is None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._told: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Hands:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=10)
        self.client.close()

    def _loop(self) -> None:
        while not self._done.wait(0.05):
            with contextlib.suppress(NanochatError):
                self._look()

    def _look(self) -> None:
        where = None if self._all else self.client.namespace
        unfinished = "status.phase!=Succeeded,status.phase!=Failed"
        for pod in self.client.items(PODS, selector=selector(), fields=unfinished, namespace=where):
            if meta(pod, "deletionTimestamp"):
                continue
            status = self.play(pod)
            uid = str(meta(pod, "uid"))
            if status is not None and self._told.get(uid) != status:
                self._told[uid] = status
                self.set_status(pod, status)

    def set_status(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        """Write a pod's status, as its kubelet would."""
        client = Client(self.client.transport, str(meta(pod, "namespace")), patience_s=60.0)
        client.patch(PODS, name_of(pod), {"status": status}, sub="status")


def wait_until(what: str, condition: Callable[[], Any], timeout: float = 30.0) -> Any:
    """Return the first true value of `condition`; fail when none comes."""
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {timeout:.0f} s")

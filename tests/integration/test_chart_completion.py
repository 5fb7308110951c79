"""What `helm test` runs, against real servers: it passes where it should and fails where it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "charts" / "nanochat" / "files" / "completion.py"
ALPHA = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"  # sha256 of "alpha"


@pytest.fixture
def url(request, tmp_path):
    """The URL of a stub server; indirect parameters are its further arguments."""
    (tmp_path / "keys").write_text(ALPHA)
    arguments = [str(tmp_path / "keys") if word == "KEYS" else word for word in getattr(request, "param", ())]
    command = [sys.executable, "-m", "nanochat.serve.stub", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def complete(url, **env):
    settings = {"URL": url, "MODEL": "stub", "PROMPT": "hello", "TIMEOUT_S": "20", "LOCKED": "", **env}
    return subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT.read_text()],
        env=settings,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_server_that_answers_passes(url):
    done = complete(url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stub answered, whole and streamed: 'You said: hello" in done.stdout


def test_another_model_s_name_fails(url):
    done = complete(url, MODEL="other")
    assert done.returncode != 0
    assert "404" in done.stderr


def test_a_server_that_is_not_there_fails_with_its_url():
    done = complete("http://127.0.0.1:9", TIMEOUT_S="0")
    assert done.returncode == 1
    assert done.stderr.startswith("http://127.0.0.1:9/ready did not answer 200 in time")


@pytest.mark.parametrize("url", [("--api-keys", "KEYS")], indirect=True)
def test_a_locked_server_passes_with_a_key_and_says_so_without(url):
    done = complete(url, LOCKED="1", API_KEY="alpha")
    assert done.returncode == 0
    assert "refused with 401" in done.stdout
    assert "stub answered" in done.stdout
    done = complete(url, LOCKED="1")
    assert done.returncode == 0
    assert "no completion was tried" in done.stdout
    assert complete(url, LOCKED="1", API_KEY="wrong").returncode != 0


def test_a_server_that_should_be_locked_and_is_open_fails(url):
    done = complete(url, LOCKED="1", API_KEY="alpha")
    assert done.returncode == 1
    assert "answered a request without one" in done.stderr


@pytest.mark.parametrize("url", [("--step-ms", "200", "--limits", '{"stuck_s": 60}')], indirect=True)
def test_a_server_too_slow_for_the_deadline_fails(url):
    done = complete(url, TIMEOUT_S="1", PROMPT="tell me a long story about the sea and the sky " * 4)
    assert done.returncode != 0

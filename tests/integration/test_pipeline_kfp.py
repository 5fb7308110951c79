"""The compiled pipeline and the real `kfp` command line, against a server that speaks the backend's protocol.

The server answers what `kfp run create` asks and keeps what it posts; nothing is run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from nanochat_platform.pipeline.ir import Pipeline
from nanochat_platform.pipeline.parameters import Parameters

FILE = Path(__file__).parents[2] / "manifests" / "pipelines" / "speedrun.yaml"
PREFIX = "/apis/v2beta1"


class Handler(BaseHTTPRequestHandler):
    """Health, experiments and runs of the v2beta1 API."""

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.asked.append(("GET", path))
        if path == f"{PREFIX}/healthz":
            self.answer({"multi_user": False})
        elif path == f"{PREFIX}/experiments":
            self.answer({"experiments": [], "total_size": 0})
        elif path == f"{PREFIX}/runs/run-1":
            self.answer(self.server.run)
        else:
            self.answer({"error": "not found"}, 404)

    def do_POST(self):
        path = urlsplit(self.path).path
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(("POST", path))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if path == f"{PREFIX}/experiments":
            self.answer({"experiment_id": "exp-1", "created_at": now, **body})
        elif path == f"{PREFIX}/runs":
            self.server.posted.append(body)
            times = {"created_at": now, "scheduled_at": now, "finished_at": now}
            self.server.run = {**body, **times, "run_id": "run-1", "state": "PENDING"}
            self.answer(self.server.run)
        else:
            self.answer({"error": "not found"}, 404)

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.posted = [], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join(10)
    made.server_close()


def kfp(server, tmp_path, *arguments):
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    env |= {"HOME": str(tmp_path), "NO_PROXY": "*"}
    program = "import sys; from kfp.cli.__main__ import main; sys.exit(main())"  # the console script's
    command = [sys.executable, "-c", program, "--endpoint", f"http://127.0.0.1:{server.server_port}"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=env, check=False, timeout=110
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("verb", ["create", "submit"])
def test_run_create_and_its_old_alias_post_the_file_and_the_parameters(server, tmp_path, verb):
    arguments = ["preset=tiny", "depth=4", "deterministic=true", "checkpoint_minutes=1.5", 'env={"A": "b"}']
    done = kfp(server, tmp_path, "run", verb, "-e", "speedrun", "-f", str(FILE), *arguments)
    assert done.returncode == 0, done.stderr
    assert ("deprecated" in done.stdout + done.stderr) == (verb == "submit")
    assert [request for request in server.asked if request[0] == "POST"] == [
        ("POST", f"{PREFIX}/experiments"),
        ("POST", f"{PREFIX}/runs"),
    ]
    (posted,) = server.posted
    assert posted["experiment_id"] == "exp-1"
    assert posted["display_name"] == "speedrun"
    spec, platform = yaml.safe_load_all(FILE.read_text())
    assert posted["pipeline_spec"] == {"pipeline_spec": spec, "platform_spec": platform}
    given = posted["runtime_config"]["parameters"]
    assert given == {
        "preset": "tiny",
        "depth": 4,
        "deterministic": True,
        "checkpoint_minutes": 1.5,
        "env": {"A": "b"},
    }
    found = Parameters.of(Pipeline.load(FILE).values(given))
    assert (found.preset, found.depth, found.deterministic, found.env) == ("tiny", 4, True, {"A": "b"})

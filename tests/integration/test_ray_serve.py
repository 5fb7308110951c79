"""The chat deployment on a real Ray with Serve and HAProxy, deployed the way KubeRay does it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from nanochat_platform.ray_serve import ENVIRONMENT

from nanochat.checkpoint.models import export_model
from nanochat.gpt import GPT
from nanochat.settings import Home
from nanochat.shape import Shape
from nanochat.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = ["the quick brown fox jumps over the lazy dog and says hello to the sea"] * 20
LIMITS = {"max_waiting": 6}
LONG = {"max_tokens": 1500, "ignore_eos": True, "stream": True}
pytestmark = pytest.mark.timeout(180)


def export(home):
    """Export three models that differ in their weights; the last one is damaged afterwards."""
    tokenizer = Tokenizer.train(TEXT, 300)
    path = home.root / "tokenizer.json"
    tokenizer.save(path)
    shape = Shape(
        depth=4, width=128, heads=2, kv_heads=2, head_dim=64, vocab_size=tokenizer.vocab_size, seq_len=2048
    )
    for step in (7, 8, 9):
        model = GPT(shape)
        model.init_weights(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        folder = export_model(
            home,
            "r",
            "chat_sft",
            step,
            model_state=model.state_dict(),
            shape_json=shape.to_json(),
            tokenizer_path=path,
        )
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(condition, seconds=120):
    """Return the condition's first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not true within {seconds} s")


def alive(pid):
    """Return whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


class Ray:
    """The driver's process, and Serve behind it."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        base = 21000 + os.getpid() % 4000
        haproxy = {
            "CONFIG_FILE_LOC": "haproxy.cfg",
            "SOCKET_PATH": "admin.sock",
            "METRICS_SOCKET_PATH": "metrics.sock",
            "SERVER_STATE_BASE": "",
            "SERVER_STATE_FILE": "state",
        }
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "HOME": str(folder),
            "NANOCHAT_HOME": str(folder),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base + 100),
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "2",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            **{f"RAY_SERVE_HAPROXY_{name}": str(folder / "h" / file) for name, file in haproxy.items()},
        }
        options = {"temp": str(folder / "ray"), "port": self.port}
        self.errors = (folder / "driver.err").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "ray_driver.py"), json.dumps(options)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )

    def started(self):
        """Wait until Serve runs; returns the cluster."""
        assert self._answer() == "ready"
        return self

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise AssertionError(f"the driver ended: {self.errors.read()[-3000:]}")
        return json.loads(line)

    def do(self, command, **arguments):
        """Let the driver do one thing and return what it answers."""
        print(json.dumps({"do": command, **arguments}), file=self.process.stdin, flush=True)
        return self._answer()

    def deploy(self, model="r/chat_sft-7", **fields):
        """Ask for a model and return at once."""
        user_config = {"model": model, "name": "chat", "max_running": 4, "limits": LIMITS, **fields}
        self.do(
            "deploy", user_config=user_config, health_check_period_s=0.5, ray_actor_options={"num_cpus": 1}
        )

    def running(self):
        """Return whether the application runs; a failure to start it is told at once."""
        status = self.do("status") or [None, None]
        assert status[0] != "DEPLOY_FAILED", status
        return status[0] == "RUNNING"

    @contextlib.contextmanager
    def slowed(self):
        """Let the engine make at most ten steps a second while the block runs: its streams outlast it."""
        self.do("slow")
        try:
            yield
        finally:
            self.do("go")

    def pid(self):
        (replica,) = self.do("replicas")
        return replica[0]

    def haproxy(self):
        """Return the process id that HAProxy tells on its admin socket."""
        (path,) = self.folder.glob("h/*/admin.sock")
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(path))
            admin.sendall(b"show info\n")
            told = b""
            while chunk := admin.recv(65536):
                told += chunk
        assert b"Name: HAProxy" in told
        return int(re.search(rb"^Pid: (\d+)", told, re.M)[1])

    def end(self):
        """Shut Serve and Ray down; what does not end is killed."""
        try:
            self.process.stdin.close()
            return self.process.wait(60)
        finally:
            self.process.stdout.close()
            self.errors.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def ray():
    folder = Path(tempfile.mkdtemp(prefix="nc-ray-", dir="/tmp"))
    export(Home(folder))
    cluster = Ray(folder)
    try:
        yield cluster.started()
    finally:
        cluster.end()
        shutil.rmtree(folder)


@pytest.fixture
def api(ray):
    """A client of an application that serves `r/chat_sft-7`, whatever the test before left."""
    ray.deploy()
    wait_for(ray.running)
    with httpx.Client(base_url=ray.url, timeout=60) as client:
        wait_for(lambda: ready(client) == {"status": "ready", "model": "r/chat_sft-7"})
        yield client


def ready(client):
    answer = client.get("/ready")
    return answer.json() if answer.status_code == 200 else None


def chat(client, **fields):
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **fields}
    return client.post("/v1/chat/completions", json=body)


def metric(client, name):
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), 0.0)


class Stream(threading.Thread):
    """One streamed completion on a connection of its own."""

    def __init__(self, url):
        super().__init__()
        self.url = url
        self.begun = threading.Event()
        self.data = b""
        self.status = None
        self.error = None
        self.start()

    def running(self):
        """Wait for the first token; returns the stream."""
        assert self.begun.wait(60)
        return self

    def run(self):
        body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **LONG}
        try:
            with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as answer:
                self.status = answer.status_code
                for chunk in answer.iter_bytes():
                    self.data += chunk
                    if b'"content":' in self.data:
                        self.begun.set()
        except httpx.HTTPError as error:
            self.error = error
        self.begun.set()

    def events(self):
        """Return the parsed events; the stream must have ended as a whole one does."""
        self.join(60)
        assert (self.status, self.error) == (200, None)
        assert self.data.endswith(b"data: [DONE]\n\n")
        lines = self.data.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_a_completion_streams_through_haproxy(ray, api):
    assert alive(ray.haproxy())
    fields = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **LONG, "max_tokens": 60}
    body = json.dumps(fields)
    line = ["curl", "-sSN", "-i", f"{ray.url}/v1/chat/completions", "-d", body]
    headers = ["-H", "content-type: application/json", "-H", "x-request-id: mine-1"]
    told = subprocess.run([*line, *headers], capture_output=True, text=True, timeout=60, check=True).stdout
    head, _, events = told.replace("\r", "").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head
    assert head.count("x-request-id") == 1
    assert "x-request-id: mine-1" in head
    chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert {chunk["model"] for chunk in chunks} == {"r/chat_sft-7"}
    assert events.endswith("data: [DONE]\n\n")


def test_all_of_it_fits_into_a_small_pod(ray, api):
    assert chat(api).status_code == 200
    assert ray.do("memory") < 1.5 * (1 << 30)


def test_the_model_is_known_by_its_id_and_its_name(api):
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == ["r/chat_sft-7", "chat"]
    for name in ("r/chat_sft-7", "chat"):
        assert chat(api, model=name).json()["model"] == "r/chat_sft-7"
    refused = chat(api, model="gpt-4")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_what_is_too_much_is_refused_by_the_server_and_not_by_serve(ray, api):
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **LONG, "n": 8}
    url = f"{ray.url}/v1/chat/completions"
    with ray.slowed(), httpx.stream("POST", url, json=body, timeout=60) as answer:
        next(answer.iter_bytes())
        refused = chat(api, n=4)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
    wait_for(lambda: chat(api, n=8).status_code == 200)


def test_a_client_that_never_finishes_its_head_is_cut_off_and_a_slow_answer_is_not(ray, api):
    with ThreadPoolExecutor(1) as pool:
        with ray.slowed():
            whole = pool.submit(chat, api, max_tokens=1000, ignore_eos=True)
            wait_for(lambda: metric(api, "nanochat_requests_running") == 1)
            with socket.create_connection(("127.0.0.1", ray.port), timeout=30) as slow:
                slow.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\nx-slow: ")
                assert slow.recv(100).startswith(b"HTTP/1.1 408")
            assert not whole.done()
        assert whole.result(60).status_code == 200


def test_a_client_that_leaves_frees_its_slot(ray, api):
    left = 'nanochat_http_requests_total{route="chat",status="499"}'
    before = metric(api, left)
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **LONG}
    url = f"{ray.url}/v1/chat/completions"
    with ray.slowed():
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            next(answer.iter_bytes())
            wait_for(lambda: metric(api, "nanochat_requests_running") == 1)
        wait_for(lambda: metric(api, "nanochat_requests_running") == 0)
    wait_for(lambda: metric(api, left) >= before + 1)
    assert metric(api, left) == before + 1


def test_a_change_of_the_model_drops_no_stream_and_keeps_the_process(ray, api):
    pid = ray.pid()
    seen = []

    def changed():
        answer = api.get("/ready")
        seen.append(answer.status_code)
        return answer.json().get("model") == "r/chat_sft-8"

    with ray.slowed():
        old = [stream.running() for stream in [Stream(ray.url) for _ in range(3)]]
        ray.deploy("r/chat_sft-8")
        wait_for(changed)
        assert all(stream.is_alive() for stream in old)
    assert set(seen) == {200}
    assert chat(api).json()["model"] == "r/chat_sft-8"
    for stream in old:
        events = stream.events()
        assert {event["model"] for event in events} == {"r/chat_sft-7"}
        assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert ray.pid() == pid
    wait_for(lambda: ray.do("models") == [1])
    assert metric(api, 'nanochat_model_swaps_total{outcome="taken"}') >= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": "r/chat_sft-8"}, "unknown field `modle`"),
        ({"model": "r/chat_sft-88"}, "did you mean `r/chat_sft-8`?"),
        ({"model": "r/chat_sft-9"}, "model.safetensors"),
        ({"api_keys": "/nowhere"}, "/nowhere"),
        ({"max_running": 2000}, "max_running"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused_and_the_model_stays(ray, api, change, words):
    pid = ray.pid()
    ray.deploy(**change)
    refused = wait_for(lambda: ready(api).get("refused"))
    assert words in refused
    assert ready(api)["model"] == "r/chat_sft-7"
    assert chat(api).status_code == 200
    assert ray.pid() == pid
    assert metric(api, 'nanochat_model_swaps_total{outcome="refused"}') >= 1


def test_keys_come_into_force_without_a_restart(ray, api):
    pid = ray.pid()
    keys = ray.folder / "keys"
    keys.write_text("8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8")  # of "alpha"
    ray.deploy(api_keys=str(keys))
    refused = wait_for(lambda: (answer := chat(api)).status_code == 401 and answer)
    assert refused.json()["error"]["code"] == "invalid_api_key"
    api.headers["authorization"] = "Bearer alpha"
    assert chat(api).status_code == 200
    assert ray.pid() == pid


def test_a_hung_engine_is_replaced(ray, api):
    taken = 'nanochat_model_swaps_total{outcome="taken"}'
    pid, before = ray.pid(), metric(api, taken)
    ray.deploy(limits={**LIMITS, "stuck_s": 1.0})
    wait_for(lambda: metric(api, taken) > before)
    ray.do("hang")
    victim = Stream(ray.url)
    wait_for(lambda: not alive(pid))
    victim.join(60)
    assert b"[DONE]" not in victim.data
    wait_for(lambda: ray.running() and ready(api))
    assert ray.pid() != pid
    assert chat(api).status_code == 200


def test_a_replica_that_stops_finishes_its_streams_and_takes_no_others(ray, api):
    ((pid, own_port),) = ray.do("replicas")

    def closed():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", own_port)) != 0

    with ray.slowed():
        stream = Stream(ray.url).running()
        ray.do("delete")
        wait_for(closed)
        assert stream.is_alive()
        assert alive(pid)
    assert stream.events()[-1]["choices"][0]["finish_reason"] == "length"
    wait_for(lambda: not alive(pid))


def test_nothing_is_left_after_the_end(ray):
    haproxy, driver = ray.haproxy(), ray.process.pid
    assert ray.end() == 0
    assert not alive(haproxy)
    assert not alive(driver)

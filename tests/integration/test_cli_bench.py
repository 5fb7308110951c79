"""`nanochat bench` against the stub server: a real socket, no model."""

from __future__ import annotations

import json
import signal

from fakes_run import FakeHome, end


def test_a_bench_counts_every_token_and_times_every_chat(tmp_path):
    fake = FakeHome(tmp_path)
    server = fake.start("nanochat.serve.stub")
    try:
        url = json.loads(server.stdout.readline())["url"]
        options = ("--requests", "12", "--concurrency", "4", "--max-tokens", "5", "--json")
        code, out, err = fake.cli("bench", "--url", url, *options)
    finally:
        server.send_signal(signal.SIGTERM)
        end(server)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["requests"] == 12
    assert facts["tokens"] == 60
    assert facts["model"] == "stub"
    assert 0 < facts["first_token_p50_ms"] <= facts["chat_p50_ms"] <= facts["chat_p95_ms"]

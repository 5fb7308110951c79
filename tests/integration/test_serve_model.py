"""`nanochat serve` and `nanochat chat` on an exported model: random weights, real tokenizer, real engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from nanochat.checkpoint.models import export_model
from nanochat.gpt import GPT
from nanochat.serve.main import bind
from nanochat.settings import Home
from nanochat.shape import Shape
from nanochat.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = [
    "the quick brown fox jumps over the lazy dog and says hello to the sea",
    "numbers 1 2 3 and café 数字",
] * 20


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with one exported model, `r/chat_sft-7`."""
    made = Home(tmp_path_factory.mktemp("home"))
    tokenizer = Tokenizer.train(TEXT, 300)
    path = made.root / "tokenizer.json"
    tokenizer.save(path)
    shape = Shape(
        depth=2, width=64, heads=1, kv_heads=1, head_dim=64, vocab_size=tokenizer.vocab_size, seq_len=128
    )
    torch.manual_seed(0)
    model = GPT(shape)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    export_model(
        made,
        "r",
        "chat_sft",
        7,
        model_state=model.state_dict(),
        shape_json=shape.to_json(),
        tokenizer_path=path,
    )
    return made


def command(*arguments):
    return [sys.executable, "-m", "nanochat_platform.cli", *arguments]


def environment(home):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    return {**os.environ, "NANOCHAT_HOME": str(home.root), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def run(home, *arguments):
    return subprocess.run(
        command(*arguments), env=environment(home), capture_output=True, text=True, timeout=50, check=False
    )


@pytest.fixture(scope="module")
def api(home):
    line = command("serve", "--run", "r", "--name", "nick", "--port", "0", "--json")
    with subprocess.Popen(line, env=environment(home), stdout=subprocess.PIPE, text=True) as process:
        told = json.loads(process.stdout.readline())
        assert told["model"] == "r/chat_sft-7"
        with httpx.Client(base_url=told["url"], timeout=30) as client:
            yield client
        process.terminate()
        assert process.wait(30) == 0


def chat(api, **fields):
    body = {
        "model": "r/chat_sft-7",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 24,
        **fields,
    }
    return api.post("/v1/chat/completions", json=body)


def test_a_model_answers_the_same_whole_and_streamed(api):
    for fields in ({"temperature": 0}, {"seed": 11, "top_k": 20}):
        whole = chat(api, **fields).json()
        streamed = chat(api, stream=True, stream_options={"include_usage": True}, **fields).text
        chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
        assert text == whole["choices"][0]["message"]["content"]
        assert chunks[-1]["usage"] == whole["usage"]
        assert whole["usage"]["completion_tokens"] >= 1


def test_choices_differ_by_seed_and_repeat_with_it(api):
    first, second = (chat(api, n=4, seed=5).json()["choices"] for _ in range(2))
    texts = [choice["message"]["content"] for choice in first]
    assert texts == [choice["message"]["content"] for choice in second]
    assert len(set(texts)) > 1


def test_logprobs_of_a_model_are_finite_and_ordered(api):
    content = chat(api, logprobs=True, top_logprobs=3, ignore_eos=True).json()["choices"][0]["logprobs"][
        "content"
    ]
    assert content
    for token in content:
        tops = [top["logprob"] for top in token["top_logprobs"]]
        assert tops == sorted(tops, reverse=True)
        assert -9999 <= token["logprob"] <= 0


def test_the_context_ends_an_answer_and_refuses_a_longer_prompt(api):
    assert chat(api, max_tokens=5000, ignore_eos=True).json()["choices"][0]["finish_reason"] == "length"
    refused = chat(api, messages=[{"role": "user", "content": "x y " * 200}])
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "messages"


def test_the_model_of_a_run_has_a_name_with_a_slash(api):
    assert api.get("/v1/models").json()["data"][0]["id"] == "r/chat_sft-7"
    assert api.get("/v1/models/r/chat_sft-7").status_code == 200
    assert api.get("/v1/models/r%2Fchat_sft-7").status_code == 200


def test_the_model_answers_to_the_name_it_was_given_and_to_its_own(api):
    answers = [chat(api, model=name, temperature=0).json() for name in ("nick", "r/chat_sft-7")]
    assert [answer["model"] for answer in answers] == ["r/chat_sft-7"] * 2
    assert answers[0]["choices"] == answers[1]["choices"]
    assert chat(api, model="nik").status_code == 404


def test_text_completions_start_a_document(api):
    body = {"model": "r/chat_sft-7", "prompt": ["the", [1, 2, 3]], "max_tokens": 3}
    answer = api.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_metrics_show_an_intact_kv_pool(api):
    chat(api)
    text = api.get("/metrics").text
    assert "nanochat_kv_intact 1.0" in text
    assert "nanochat_kv_tokens_used 0.0" in text


def test_one_shot_chat_prints_the_answer_and_nothing_else(home):
    one, two = (run(home, "chat", "--run", "r", "-p", "hello", "--temperature", "0") for _ in range(2))
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("serve", "--run", "nope", "--port", "0"), 64, "nope"),
        (("chat", "--run", "nope", "-p", "hi"), 64, "nope"),
        (("chat", "--run", "r", "-p", "x " * 500), 64, "context"),
        (("chat", "--run", "r", "-p", "hi", "--temperature", "nan"), 64, "temperature"),
        (("serve", "--run", "r", "--port", "99999"), 64, "99999"),
        (("serve", "--run", "r", "--api-keys", "/nowhere"), 64, "/nowhere"),
    ],
)
def test_mistakes_end_with_their_exit_code_and_one_error(home, arguments, code, words):
    done = run(home, *arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_ends_with_73(home):
    taken = bind("127.0.0.1", 0)
    with taken.sock:
        done = run(home, "serve", "--run", "r", "--port", str(taken.port))
    assert done.returncode == 73
    assert str(taken.port) in done.stderr
    assert "hint: " in done.stderr


def test_damaged_weights_are_named_and_never_served(home, tmp_path):
    copy = Home(tmp_path)
    shutil.copytree(home.root / "models", copy.root / "models")
    weights = copy.root / "models" / "r" / "chat_sft-7" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    done = run(copy, "serve", "--run", "r", "--port", "0")
    assert done.returncode == 65
    assert "model.safetensors" in done.stderr

"""The evaluation stages and the report on a small untrained model: records, events and files they leave."""

from __future__ import annotations

import json
import math

import pytest

from nanochat.checkpoint.models import export_model
from nanochat.data.prepare import prepare
from nanochat.data.shards import iter_documents, read_texts
from nanochat.errors import ConfigError, DataError
from nanochat.evals.bpb import bits_per_byte
from nanochat.evals.model import load_model, model_folder
from nanochat.files import write_json
from nanochat.gpt import GPT
from nanochat.report import stage as report
from nanochat.report.markdown import summary_table
from nanochat.run.config import RunConfig, StageConfig
from nanochat.run.context import StageContext
from nanochat.run.events import EventLog, read_events
from nanochat.run.record import Record, hash_outputs
from nanochat.settings import Home
from nanochat.shape import Shape
from nanochat.tasks import mixture
from nanochat.tasks.multiple_choice import ask
from nanochat.tasks.problem import questions
from nanochat.tasks.stable import normalise
from nanochat.tokenizer import Tokenizer
from nanochat.train.stages import base_eval, chat_eval, tok_eval
from tests.bench import bpb as bench

SPEC = RunConfig(run="small", preset="smoke", source="generated", max_problems=12)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with the generated dataset, a tokenizer and an untrained model of two stages."""
    where = Home(tmp_path_factory.mktemp("home"))
    dataset = prepare(where, source="generated", report=lambda *_: None)
    write_json(where.run("small") / "spec.json", SPEC.model_dump(mode="json"))
    path = where.stage("small", "tok_train") / "tokenizer.json"
    tokenizer = Tokenizer.train(iter_documents(dataset, "train"), 400)
    tokenizer.save(path)
    save_record(where, "data", [dataset / "manifest.json"])
    save_record(where, "tok_train", [path])
    shape = Shape.from_depth(2, vocab_size=tokenizer.vocab_size, seq_len=128)
    model = GPT(shape)
    for number, stage in enumerate(("base_train", "chat_sft")):
        model.init_weights(number)
        folder = export_model(
            where,
            "small",
            stage,
            10,
            model_state=dict(model.state_dict()),
            shape_json=shape.to_json(),
            tokenizer_path=path,
        )
        save_record(where, stage, [folder])
    return where


def save_record(home, stage, outputs, metrics=None):
    Record(
        stage=stage,
        config={},
        config_hash="0" * 64,
        outputs=hash_outputs(outputs, home),
        metrics=metrics or {},
        wall_s=1.0,
        started=1_700_000_000.0,
    ).save(home.stage("small", stage))


def run(home, module, name, *reads):
    """Run a stage as the worker does and save its record; returns (metrics, events)."""
    folder = home.stage("small", name)
    inputs = {read: Record.load(home.stage("small", read)) for read in reads}
    with EventLog(folder / "events.jsonl") as events:
        config = StageConfig(stage=name, spec=SPEC)
        result = module.run(StageContext(config, home, folder, events, inputs=inputs))
    save_record(home, name, result.outputs, result.metrics)
    json.dumps(result.metrics, allow_nan=False)
    return result.metrics, list(read_events(folder / "events.jsonl"))


def test_every_stage_leaves_scores_that_the_report_shows(home):
    made, events = run(home, tok_eval, "tok_eval", "data", "tok_train")
    assert made["round_trip"] is True
    assert {row["text"] for row in made["compression"]} >= {"code", "Chinese"}
    assert made["compared_with"].startswith("nothing")

    made, events = run(home, base_eval, "base_eval", "data", "base_train")
    held_out = sorted((home.dataset("generated") / "heldout").glob("*.parquet"))
    assert [score["name"] for score in made["scores"]] == [f"bpb/{path.stem}" for path in held_out]
    assert all(2 < score["value"] < 12 for score in made["scores"])
    assert sum(event["event"] == "sample" for event in events) == 4

    made, events = run(home, chat_eval, "chat_eval", "data", "chat_sft")
    assert made["model"] == "small/chat_sft-10"
    scores = {score["name"]: score for score in made["scores"]}
    assert {"generated_mc", "spelling", "arithmetic", "identity", "ends_turn"} <= scores.keys()
    assert not {"arc_easy", "mmlu", "chatcore"} & scores.keys()
    assert scores["generated_mc"]["n"] == 12
    assert 0 <= scores["generated_mc"]["low"] <= scores["generated_mc"]["value"] <= 1
    told = {event["name"] for event in events if event["event"] == "eval"}
    assert told == scores.keys()

    run(home, report, "report", "data")
    table = summary_table(home.run("small"))
    assert "| Generated multiple choice" in table
    assert (home.stage("small", "report") / "report.html").stat().st_size > 5000


def test_bits_per_byte_agree_with_the_independent_script(home):
    loaded = load_model(home, Record.load(home.stage("small", "base_train")))
    model, tokenizer = bench.load(model_folder(home, Record.load(home.stage("small", "base_train"))).path)
    held_out = home.dataset("generated") / "heldout"
    for figure in bench.measure(
        model_folder(home, Record.load(home.stage("small", "base_train"))).path, held_out
    ):
        texts = list(read_texts(held_out / f"{figure.source}.parquet"))
        ours = bits_per_byte(model, tokenizer, texts, seq_len=loaded.seq_len)
        assert ours.utf8_bytes == figure.utf8_bytes
        assert ours.value == pytest.approx(figure.bits_per_byte, rel=1e-5)
        assert math.isfinite(figure.xz)
    assert bench.base_model(home.root, "small").name == "base_train-10"


def test_a_stage_evaluates_no_other_stages_model(home):
    config = StageConfig(stage="base_eval", spec=SPEC)
    context = StageContext(config, home, home.stage("small", "x"), EventLog(None))
    with pytest.raises(ConfigError, match="does not evaluate a chat model"):
        chat_eval.run(context)
    with pytest.raises(DataError, match="lists 0 exported models"):
        load_model(home, Record.load(home.stage("small", "tok_train")))


@pytest.mark.parametrize("preset", ["smoke", "tiny"])
def test_no_question_of_the_generated_evaluation_is_trained(home, preset):
    dataset = home.dataset("generated")
    held = mixture.held_out(dataset, limit=None)
    asked = {normalise(ask(problem)) for problems in held.choice.values() for problem in problems}
    asked |= {normalise(problem.question) for problems in held.generative.values() for problem in problems}
    spec = SPEC.model_copy(update={"preset": preset})
    for make in (mixture.mid_conversations, mixture.sft_conversations):
        chats = make(dataset, seed=42, spec=spec)
        assert len(chats) > 500
        assert not asked & {normalise(question) for chat in chats for question in questions(chat)}

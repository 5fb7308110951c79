"""The report card of a hand-made run: table, curves, page, and what a missing stage or strange text does."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from nanochat.errors import DataError, StorageError
from nanochat.files import write_json
from nanochat.report import facts, stage, svg
from nanochat.report.collect import collect
from nanochat.report.markdown import markdown, quote, summary_table
from nanochat.report.page import page
from nanochat.run.config import RunConfig, StageConfig
from nanochat.run.context import StageContext
from nanochat.run.events import EventLog
from nanochat.run.record import Record
from nanochat.settings import Home

HARDWARE = {"system": "Linux x86_64", "processor": "Example CPU", "cores": 2, "memory_bytes": 8 * 2**30}
WALL = {
    "data": 20,
    "tok_train": 5.2,
    "tok_eval": 4,
    "base_train": 330,
    "base_eval": 31,
    "mid_train": 60,
    "chat_sft": 58,
    "report": 1,
}


def accuracy(name, value, n, chance=0.0):
    return {
        "name": name,
        "value": value,
        "unit": "accuracy",
        "n": n,
        "chance": chance,
        "low": max(0.0, value - 0.05),
        "high": min(1.0, value + 0.05),
    }


SCORES = {
    "base_eval": [{"name": "bpb/wiki", "value": 1.8123, "unit": "bits per byte"}],
    "mid_eval": [accuracy("arc_easy", 0.26, 100, 0.25), accuracy("arithmetic", 0.61, 100)],
    "chat_eval": [accuracy("arc_easy", 0.28, 100, 0.25), accuracy("arithmetic", 0.74, 100)],
}


COMPRESSION = {
    "compression": [{"text": "wiki", "utf8_bytes": 9000, "bytes_per_token": {"ours": 3.4, "GPT-2": 4.5}}]
}


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    spec = RunConfig(run="tiny", preset="tiny", source="packages/cpu")
    write_json(folder / "spec.json", spec.model_dump(mode="json"))
    for index, (name, wall_s) in enumerate((WALL | {"mid_eval": 20, "chat_eval": 22}).items()):
        Record(
            stage=name,
            config={},
            config_hash="0" * 64,
            revision="abc123",
            wall_s=wall_s,
            started=1_700_000_000.0 + index,
            hardware=HARDWARE,
            metrics={"scores": SCORES[name]}
            if name in SCORES
            else {"tokens": 1234567, "loss": 3.21, **COMPRESSION},
        ).save(folder / name)
    for name, steps in (("base_train", 300), ("mid_train", 40)):
        with EventLog(folder / name / "events.jsonl") as events:
            for step in range(steps):
                events.emit("step", step=step, steps=steps, unit="step", loss=3 + 5 * math.exp(-step / 60))
                if step % 50 == 49:
                    events.emit(
                        "eval",
                        name="val_bpb",
                        value=2 + math.exp(-step / 80),
                        step=step,
                        unit="bits per byte",
                    )
            events.emit("step", step=7, steps=steps, unit="step", loss=9.5)  # again, after a restart
            events.emit("sample", step=100, prompt="Old", text="old")
            events.emit(
                "sample",
                step=steps,
                prompt="The <b>sea",
                text="is & ```was``` </pre><script>alert(1)</script>",
            )
    return folder


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in ("circle",):
            assert self.open.pop() == tag


def test_the_summary_has_one_column_a_stage_and_a_dash_for_what_is_missing(run_dir):
    lines = summary_table(run_dir).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:-2]]
    assert cells[0] == ["Metric", "n", "chance", "BASE", "MID", "SFT", "RL"]
    assert cells[2] == ["bits per byte, encyclopedia", "", "", "1.8123", "-", "-", "-"]
    assert cells[3] == ["ARC-Easy", "100 of 2,376", "25.0%", "-", "26.0%", "28.0%", "-"]
    assert cells[4] == ["Arithmetic with the calculator", "100", "0.0%", "-", "61.0%", "74.0%", "-"]
    assert lines[-1] == "Total wall time: 9 min 10 s"
    assert len({len(line) for line in lines[:-2]}) == 1


def test_curves_count_a_repeated_step_once_and_the_last_attempt_wins(run_dir):
    loss = next(c for c in collect(run_dir).curves if (c.stage, c.name) == ("base_train", "train loss"))
    assert [x for x, _ in loss.points] == list(range(300))
    assert loss.points[7][1] == 9.5
    assert [(s.stage, s.prompt) for s in collect(run_dir).samples] == [
        ("base_train", "The <b>sea"),
        ("mid_train", "The <b>sea"),
    ]


def test_the_page_is_whole_needs_nothing_else_and_escapes_what_a_model_wrote(run_dir):
    text = page(collect(run_dir))
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.seen}
    assert not re.findall(r"https?:|url\(|@import", text)
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<svg") == 4  # base: loss and bits per byte; mid: loss; accuracies
    for shown in ("9 min 10 s", "Example CPU, 2 cores, 8 GiB", "abc123", "optimizer steps", "nats per token"):
        assert shown in text
    assert "prefers-color-scheme: dark" in text


def test_markdown_holds_header_stages_intervals_and_unbroken_samples(run_dir):
    text = markdown(collect(run_dir))
    assert "| Wall time" in text
    assert "1,234,567 tokens, loss 3.210" in text
    assert "21.0% to 31.0%" in text
    assert re.search(r"\| encyclopedia +\| 9,000 \| +3\.40 \| +4\.50 \|", text)
    assert quote("a ``` b").startswith("````text\n")
    assert "NaN" not in text


def test_a_run_without_evaluations_still_has_a_report(tmp_path):
    spec = RunConfig(run="new", preset="smoke", source="generated")
    write_json(tmp_path / "new" / "spec.json", spec.model_dump(mode="json"))
    run = collect(tmp_path / "new")
    assert "No evaluation has finished yet" in page(run)
    assert "Total wall time: 0.0 s" in markdown(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a run"):
        summary_table(tmp_path)


def context(run_dir):
    spec = RunConfig(run="tiny", preset="tiny", source="packages/cpu")
    folder = run_dir / "report"
    config = StageConfig(stage="report", spec=spec)
    return StageContext(config, Home(run_dir.parents[1]), folder, EventLog(folder / "events.jsonl"))


def test_the_stage_writes_both_files(run_dir):
    result = stage.run(context(run_dir))
    assert [path.name for path in result.outputs] == ["report.md", "report.html"]
    assert all(path.stat().st_size > 1000 for path in result.outputs)
    assert {"stage": "chat_eval", "name": "arc_easy"}.items() <= result.metrics["scores"][-2].items()
    json.dumps(result.metrics, allow_nan=False)


def test_a_report_that_cannot_be_written_is_a_storage_error(run_dir, monkeypatch):
    made = context(run_dir)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"report\.md"):
        stage.run(made)
    assert not (run_dir / "report" / "report.md").exists()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (1.79, 2.31), (0, 1680), (3, 3), (0, 0), (-2, 5), (0.00012, 0.00019), (0, 5_000_000)],
)
def test_ticks_are_round_and_cover_the_range(low, high):
    made = svg.ticks(low, high)
    assert made[0] <= low <= high <= made[-1]
    assert 2 <= len(made) <= 9
    assert made == sorted(set(made))


def test_thinning_keeps_the_last_point_and_the_mean():
    points = [(float(i), float(i % 2)) for i in range(10_001)]
    thinned = svg.thin(points)
    assert len(thinned) <= svg.MAX_POINTS
    assert thinned[-1] == points[-1]
    assert 0.4 < thinned[10][1] < 0.6


def test_smoothing_is_a_running_mean():
    assert svg.smooth([(0, 2.0), (1, 4.0), (2, 6.0)], 2) == [(0, 2.0), (1, 3.0), (2, 5.0)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.14, "3.1 s"), (42, "42 s"), (59.7, "60 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds, text):
    assert facts.duration(seconds) == text


def test_a_rented_gpu_has_a_cost_and_an_unknown_one_says_so(run_dir):
    run = collect(run_dir)
    assert "no rented accelerator" in facts.cost(run)
    for gpus, expected in ((["NVIDIA H100 80GB HBM3"] * 8, "3.67 USD"), (["Other 9000"], "not known")):
        run.records["base_train"] = run.records["base_train"].model_copy(update={"hardware": {"gpus": gpus}})
        assert expected in facts.cost(run)

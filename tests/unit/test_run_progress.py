"""Progress: lines that grep understands, and a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from nanochat.run.progress import Bar, Lines, duration, facts, line, progress, sentence

STEP = {
    "event": "step",
    "time": 1.0,
    "step": 3,
    "steps": 10,
    "unit": "step",
    "loss": 2.34567,
    "tok_per_s": 12345.6,
    "eta_s": 70.0,
    "tokens": 9,
}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (STEP, "step stage=base_train step=3/10 unit=step loss=2.346 tok_per_s=12346 eta_s=70"),
        (
            {"event": "eval", "time": 1, "name": "bpb/a", "value": 1.5},
            "eval stage=base_train name=bpb/a value=1.5",
        ),
        (
            {"event": "sample", "time": 1, "prompt": "a b", "text": "x\ny"},
            'sample stage=base_train prompt="a b" text="x\\ny"',
        ),
        (
            {"event": "stage", "time": 1, "stage": "data", "status": "skip", "reason": None},
            "stage stage=data status=skip",
        ),
    ],
)
def test_an_event_is_one_line_of_keys_and_values(event, expected):
    assert line("base_train", event) == expected


def test_steps_are_shown_at_intervals_and_the_last_one_always():
    out, now = io.StringIO(), 0.0
    lines = Lines(out, "data", every_s=5.0, clock=lambda: now)
    for step in range(1, 101):
        now = step * 0.1
        lines({"event": "step", "step": step, "steps": 100, "unit": "file"})
    shown = [text.split("step=")[1].split()[0] for text in out.getvalue().splitlines()]
    assert shown == ["1/100", "51/100", "100/100"]


def test_a_terminal_gets_a_bar_and_everything_else_lines():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert isinstance(progress(io.StringIO(), "data"), Lines)
    out = Terminal()
    bar = progress(out, "base_train")
    assert isinstance(bar, Bar)
    bar(STEP)
    bar({"event": "eval", "name": "bpb", "value": 1.25})
    bar({**STEP, "step": 10})
    bar.close()
    assert "loss 2.346" in out.getvalue()
    assert "  bpb 1.25" in out.getvalue()
    assert "10/10" in out.getvalue()


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"event": "eval", "name": "val_bpb", "value": 1.5, "step": 40}, "  val_bpb 1.5 at step 40"),
        (
            {"event": "eval", "name": "mmlu", "value": 0.3, "n": 16, "low": 0.1, "chance": 0.25},
            "  mmlu 0.3 of 16, chance 0.25",
        ),
        ({"event": "sample", "prompt": "Hi", "text": "there\n you"}, "  Hi > there you"),
        ({"event": "record", "hash": "x", "wall_s": 80.0}, "base_train finished in 1m 20s"),
        ({"event": "restart", "after": "it was killed"}, "base_train continues: it was killed"),
        ({"event": "checkpoint", "step": 3, "bytes": 9}, None),
        ({"event": "checkpoint", "step": 3, "error": "full"}, "  checkpoint of step 3 failed: full"),
        ({"event": "stage", "status": "start"}, None),
    ],
)
def test_a_person_at_a_terminal_reads_sentences(event, text):
    assert sentence("base_train", event) == text


def test_facts_show_only_what_is_known():
    assert facts(STEP) == "loss 2.346  12,346 tok/s  1m 10s left"
    assert facts({"event": "step", "step": 1}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (80, "1m 20s"), (3599.6, "1h 00m"), (7500, "2h 05m")]
)
def test_durations_read_like_a_person_says_them(seconds, text):
    assert duration(seconds) == text

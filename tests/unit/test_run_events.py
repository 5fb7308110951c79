"""Events: appended whole, read despite a torn line, never fatal."""

from __future__ import annotations

import json
import os

import pytest

from nanochat.run.events import EVENTS, EventLog, read_events, spent_s


def test_events_come_back_in_order_with_their_time(tmp_path):
    with EventLog(tmp_path / "e.jsonl", clock=lambda: 12.5) as log:
        log.emit("step", step=1, steps=2, unit="step", loss=2.5)
        log.emit("sample", step=1, prompt="a", text='line\nbreak "é"')
    assert list(read_events(tmp_path / "e.jsonl")) == [
        {"event": "step", "time": 12.5, "step": 1, "steps": 2, "unit": "step", "loss": 2.5},
        {"event": "sample", "time": 12.5, "step": 1, "prompt": "a", "text": 'line\nbreak "é"'},
    ]


def test_only_the_closed_list_of_names_is_accepted():
    with pytest.raises(ValueError, match="progress"):
        EventLog(None).emit("progress")
    assert EVENTS == ("run", "stage", "step", "eval", "sample", "checkpoint", "restart", "record")


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_torn_by_a_crash_costs_itself_alone(tmp_path, cut):
    path = tmp_path / "e.jsonl"
    with EventLog(path) as log:
        log.emit("step", step=1, steps=3)
        log.emit("step", step=2, steps=3)
    os.truncate(path, path.stat().st_size - cut)
    assert [event["step"] for event in read_events(path)] in ([1], [1, 2])
    with EventLog(path) as log:
        log.emit("step", step=3, steps=3)
    steps = [event["step"] for event in read_events(path)]
    assert (steps[0], steps[-1]) == (1, 3)


def test_what_is_not_finite_becomes_null(tmp_path):
    with EventLog(tmp_path / "e.jsonl") as log:
        log.emit("step", step=1, steps=1, loss=float("nan"), more={"x": [float("inf")]})
    line = (tmp_path / "e.jsonl").read_text()
    assert json.loads(line)["loss"] is None
    assert json.loads(line)["more"] == {"x": [None]}


def test_listeners_hear_every_event_and_are_closed(tmp_path):
    class Listener:
        heard: list[str] = []  # noqa: RUF012
        closed = False

        def __call__(self, event):
            self.heard.append(event["event"])

        def close(self):
            self.closed = True

    listener = Listener()
    with EventLog(None, [listener]) as log:
        log.emit("step", step=1, steps=1)
    assert listener.heard == ["step"]
    assert listener.closed


def test_a_full_volume_loses_telemetry_not_the_run():
    log = EventLog(None)
    log._fd = os.open("/dev/full", os.O_WRONLY)
    log.emit("step", step=1, steps=1)
    assert log.dropped == 1
    log.close()


def test_names_filter_what_is_read(tmp_path):
    with EventLog(tmp_path / "e.jsonl") as log:
        log.emit("step", step=1, steps=1)
        log.emit("eval", name="bpb", value=1.5)
    assert [event["name"] for event in read_events(tmp_path / "e.jsonl", "eval")] == ["bpb"]
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_time_between_attempts_is_not_work():
    events = [
        {"event": "run", "time": 10.0},
        {"event": "step", "time": 14.0},
        {"event": "run", "time": 100.0},
        {"event": "step", "time": 103.0},
    ]
    assert spent_s(events) == 7.0
    assert spent_s([]) == 0.0
    assert spent_s([{"event": "run", "time": 10.0}, {"event": "step", "time": 4.0}]) == 0.0

"""Reasons of ranks and last words of launchers."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from nanochat.run.reason import LAST_WORDS_BYTES, LastWords, flat_numbers, parse_last_words, write_last_words

DONE = LastWords(
    stage="base_train",
    run="r",
    exit_code=0,
    status="done",
    record="ab" * 32,
    config="cd" * 32,
    wall_s=12.5,
    metrics={"loss": 2.25},
)


def test_last_words_are_one_json_line_without_what_is_not_known(tmp_path):
    write_last_words(DONE, tmp_path / "log")
    text = (tmp_path / "log").read_text()
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "stage": "base_train",
        "run": "r",
        "exit_code": 0,
        "status": "done",
        "record": "ab" * 32,
        "config": "cd" * 32,
        "wall_s": 12.5,
        "metrics": {"loss": 2.25},
    }
    assert parse_last_words(text) == DONE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback (most recent call last):",
        "null",
        "[]",
        "{}",
        '{"stage": "data", "run": "r", "exit_code": 0, "status": "done", "more": 1}',
        '{"stage": "data", "run": "r", "exit_code": 0, "status": "fine"}',
        '{"stage": "data", "run": "r", "exit_code": 256, "status": "failed"}',
        DONE.line()[:-1],
    ],
)
def test_what_is_not_a_launcher_s_last_words_is_none(text):
    assert parse_last_words(text) is None


def test_last_words_are_closed():
    with pytest.raises(ValidationError):
        LastWords(exit_code=0, status="done", recrod="x")


@pytest.mark.parametrize(
    "words",
    [
        DONE.model_copy(update={"metrics": {f"figure/{index}": index / 7 for index in range(2000)}}),
        LastWords(exit_code=64, status="failed", message="é" * 9000, hint="h" * 9000),
        LastWords(exit_code=64, status="failed", message='"\\' * 9000),
        LastWords(exit_code=1, status="failed", message="\udcff" * 9000),
    ],
)
def test_last_words_fit_and_still_parse(words):
    line = words.line()
    assert len(line.encode()) < LAST_WORDS_BYTES
    parsed = parse_last_words(line)
    assert parsed is not None
    assert (parsed.exit_code, parsed.status, parsed.record) == (words.exit_code, words.status, words.record)
    assert parsed.metrics is None or set(parsed.metrics) < set(words.metrics)
    assert parsed.message is None or parsed.message.startswith(words.message[:50].replace("\udcff", "?"))


def test_figures_become_flat_finite_numbers():
    values = {
        "a": 1,
        "b": {"c": 2.5, "d": {"e": 3}},
        "text": "x",
        "flag": True,
        "nan": float("nan"),
        "no": None,
    }
    assert flat_numbers(values) == {"a": 1, "b/c": 2.5, "b/d/e": 3}


def test_a_place_that_cannot_be_written_is_no_error(tmp_path):
    write_last_words(DONE, tmp_path / "no" / "log")
    assert not (tmp_path / "no").exists()

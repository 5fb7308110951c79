"""The terminal chat over the stub engine: commands, streaming, errors in words."""

from __future__ import annotations

import pytest

from nanochat.engine.request import SamplingParams
from nanochat.serve.stub import StubEngine, StubPrompts
from nanochat.serve.terminal import Session, converse


@pytest.fixture
def engine():
    made = StubEngine(context=64)
    made.run_thread()
    yield made
    made.close()


@pytest.fixture
def session(engine):
    made = Session(
        engine, StubPrompts(), SamplingParams(max_tokens=20), out=lambda text: None, note=lambda text: None
    )
    made.written, made.notes = [], []
    made.out, made.note = made.written.append, made.notes.append
    return made


def lines(*given):
    rest = iter(given)

    def read():
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return read


def test_answers_stream_and_the_conversation_is_kept(session):
    converse(session, lines("hi there", "", "and you"))
    assert "".join(session.written) == "You said: hi there\nYou said: and you\n"
    assert len(session.written) > 4
    assert [turn["role"] for turn in session.turns] == ["user", "assistant"] * 2


def test_commands_change_parameters_and_forget(session):
    converse(session, lines("hi", "/temperature 0.2", "/topk 7", "/clear", "/help", "/quit", "never read"))
    assert (session.params.temperature, session.params.top_k) == (0.2, 7)
    assert session.turns == []
    assert "".join(session.written) == "You said: hi\n"
    assert any("/temperature" in note for note in session.notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/temperature hot", "not a number"),
        ("/temperature nan", "must be a number from 0 to 2"),
        ("/temperature 3", "must be a number from 0 to 2"),
        ("/topk -1", "must be 0"),
        ("/topk", "not a number"),
        ("/temprature 1", "did you mean `/temperature`"),
    ],
)
def test_a_wrong_command_is_told_in_words_and_changes_nothing(session, line, words):
    before = session.params
    assert session.command(line)
    assert session.params == before
    assert words in session.notes[-1]


def test_the_calculator_is_shown_beside_the_answer(session):
    assert session.say("12 + 30") == "12+30 is 42."
    assert session.notes == ["[dim]calculator: 12+30 = 42[/]"]


def test_a_conversation_that_outgrew_the_context_says_how_to_go_on(session):
    converse(session, lines("x" * 100))
    assert "context" in session.notes[0]
    assert "/clear" in session.notes[1]
    assert session.turns == []


def test_ctrl_c_stops_the_answer_and_keeps_what_came(session):
    def interrupt(text):
        session.written.append(text)
        raise KeyboardInterrupt

    session.out = interrupt
    session.params = SamplingParams(max_tokens=40, ignore_eos=True)
    answer = session.say("hi")
    assert answer.startswith("You")
    assert session.notes == ["\n[dim](stopped)[/]"]

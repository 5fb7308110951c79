"""Drawn tokens become text, tool calls and ends."""

from __future__ import annotations

import pytest

from nanochat.engine.output import OutputFactory
from nanochat.engine.request import Sampled
from nanochat.tools.calculator import evaluate
from tests.engine_fakes import ByteTokenizer, request

TOKENIZER = ByteTokenizer(extra=("中".encode()[:2], "中".encode()[2:] + b"x"))
HALF, REST = 265, 266
S = TOKENIZER.specials


def play(*drawn, max_tokens=100, **params):
    """Feed tokens (ids, texts or `Sampled`) until the request ends; return it and its deltas."""
    r = request(max_tokens=max_tokens, **params)
    output = OutputFactory(TOKENIZER, evaluate).start(r.params)
    tokens = []
    for item in drawn:
        tokens += list(item.encode()) if isinstance(item, str) else [item]
    deltas = []
    for token in tokens:
        deltas.append(output.accept(r, token if isinstance(token, Sampled) else Sampled(token)))
        if r.finish_reason:
            break
    return r, deltas, output


def text(deltas):
    return "".join(d.text for d in deltas)


CALL = (S["python_start"], "6*7", S["python_end"])


@pytest.mark.parametrize("name", ["assistant_end", "bos"])
def test_end_tokens_stop_and_are_not_text(name):
    r, deltas, _ = play("hi", S[name], "more")
    assert (text(deltas), r.finish_reason, deltas[-1].completion_tokens) == ("hi", "stop", 3)
    assert deltas[-1].token_ids == [S[name]]


def test_end_tokens_are_passed_over_when_asked():
    r, deltas, _ = play("hi", S["assistant_end"], S["bos"], "more", ignore_eos=True, max_tokens=8)
    assert (text(deltas), r.finish_reason) == ("himore", "length")


def test_the_length_limit_counts_every_token():
    r, deltas, _ = play("abcdef", max_tokens=4)
    assert (text(deltas), r.finish_reason, r.completion_tokens) == ("abcd", "length", 4)


@pytest.mark.parametrize("name", ["user_start", "user_end", "assistant_start", "output_end", "python_end"])
def test_special_tokens_never_appear_in_text(name):
    _, deltas, _ = play("a", S[name], "b", S["assistant_end"])
    assert text(deltas) == "ab"


def test_a_character_split_over_tokens_comes_out_whole():
    _, deltas, _ = play("a", HALF, REST, S["assistant_end"])
    assert [d.text for d in deltas] == ["a", "", "中x", ""]


@pytest.mark.parametrize("end", [S["assistant_end"], S["user_end"], S["python_start"]])
def test_an_unfinished_character_is_replaced_where_its_part_ends(end):
    _, deltas, _ = play("a", HALF, end)
    assert text(deltas) == "a\ufffd"


def test_a_call_forces_its_answer_and_is_reported_apart_from_text():
    r, deltas, _ = play("is ", *CALL, " ok", S["assistant_end"])
    assert text(deltas) == "is  ok"
    calls = [c for d in deltas for c in d.tool_calls]
    assert [tuple(c) for c in calls] == [("6*7", "42")]
    forced = [S["output_start"], *b"42", S["output_end"]]
    step = next(d for d in deltas if d.tool_calls)
    assert step.token_ids == [S["python_end"], *forced]
    assert [r.tokens[i] for i in r.forced] == forced
    assert deltas[-1].completion_tokens == len(r.tokens) - r.prompt_tokens


@pytest.mark.parametrize("expression", ["2**9", "import os", "", "1/0"])
def test_a_refused_expression_forces_nothing(expression):
    r, deltas, _ = play(S["python_start"], expression, S["python_end"], "x", S["assistant_end"])
    assert r.forced == []
    assert [tuple(c) for d in deltas for c in d.tool_calls] == [(expression, None)]
    assert text(deltas) == "x"


def test_tools_can_be_switched_off():
    r, deltas, _ = play(*CALL, "x", S["assistant_end"], tools=False)
    assert (r.forced, text(deltas)) == ([], "x")
    assert [c.result for d in deltas for c in d.tool_calls] == [None]


def test_an_answer_that_the_model_invents_is_not_text():
    _, deltas, _ = play("a", S["output_start"], "99", S["output_end"], "b", S["assistant_end"])
    assert text(deltas) == "ab"
    assert not [c for d in deltas for c in d.tool_calls]


def test_two_calls_in_one_answer_do_not_mix():
    _, deltas, _ = play(*CALL, "then ", S["python_start"], "1+1", S["python_end"], S["assistant_end"])
    assert [tuple(c) for d in deltas for c in d.tool_calls] == [("6*7", "42"), ("1+1", "2")]


def test_a_call_that_never_ends_stays_hidden():
    r, deltas, _ = play("a", S["python_start"], "1+1+1", max_tokens=5)
    assert (text(deltas), r.finish_reason) == ("a", "length")
    r, deltas, _ = play("a", S["python_start"], "1+1", S["assistant_end"])
    assert (text(deltas), r.finish_reason) == ("a", "stop")


def test_forced_tokens_do_not_exceed_the_limit():
    r, deltas, _ = play(*CALL, max_tokens=7)
    assert (r.completion_tokens, r.finish_reason, len(r.forced)) == (7, "length", 2)
    assert deltas[-1].tool_calls


def test_a_stop_string_split_across_tokens_ends_the_request_and_never_leaks():
    r, deltas, _ = play("one EN", "D two", stop=("END",))
    assert (text(deltas), r.finish_reason) == ("one ", "stop")


def test_text_held_for_a_stop_string_comes_out_at_the_end():
    _, deltas, _ = play("one EN", S["assistant_end"], stop=("END",))
    assert text(deltas) == "one EN"
    assert deltas[-1].text == "EN"


@pytest.mark.parametrize("at_end", [S["assistant_end"], None])
def test_a_stop_string_that_the_end_completes_is_cut(at_end):
    r, deltas, _ = play(
        "a", HALF, *([at_end] if at_end else []), stop=("\ufffd",), max_tokens=3 if at_end else 2
    )
    assert text(deltas) == "a"
    assert r.finish_reason == "stop"
    r, deltas, _ = play("a", HALF, S["user_end"], "b", stop=("\ufffd",))
    assert (text(deltas), r.finish_reason, r.completion_tokens) == ("a", "stop", 3)


def scored(characters):
    return [Sampled(ord(c), -0.5, [(ord(c), -0.5), (65, -1.0)]) for c in characters]


def test_log_probabilities_cover_the_text_and_only_the_text():
    _, deltas, _ = play(*scored("ab"), *CALL, *scored("c"), Sampled(S["assistant_end"], -0.1), logprobs=2)
    entries = [e for d in deltas for e in d.logprobs]
    assert b"".join(e.data for e in entries).decode() == text(deltas) == "abc"
    assert entries[0] == (97, b"a", -0.5, ((97, b"a", -0.5), (65, b"A", -1.0)))


def test_log_probabilities_wait_for_held_text_and_leave_out_the_stop_string():
    _, deltas, _ = play(*scored("one ENxEND"), logprobs=0, stop=("END",))
    for n in range(len(deltas)):
        so_far = b"".join(e.data for d in deltas[: n + 1] for e in d.logprobs).decode()
        assert so_far == text(deltas[: n + 1])
    assert text(deltas) == "one ENx"


def test_log_probabilities_of_a_split_character_come_with_it():
    _, deltas, _ = play(Sampled(HALF, -1.0), Sampled(REST, -2.0), S["assistant_end"], logprobs=0)
    assert [[e.token for e in d.logprobs] for d in deltas] == [[], [HALF, REST], []]


def test_ending_from_outside_sends_what_was_held():
    r, _, output = play("one EN", stop=("END",))
    last = output.end(r, "cancelled")
    assert (last.text, last.finish_reason, last.token_ids, r.finish_reason) == (
        "EN",
        "cancelled",
        [],
        "cancelled",
    )


def test_a_tokenizer_without_tool_tokens_works():
    plain = ByteTokenizer()
    plain.specials = {"bos": 256}
    r = request(max_tokens=5)
    output = OutputFactory(plain, evaluate).start(r.params)
    assert output.accept(r, Sampled(97)).text == "a"
    assert output.accept(r, Sampled(257)).text == ""
    assert output.accept(r, Sampled(256)).finish_reason == "stop"

"""Streams give whole characters and never a piece of a stop string, at any cut of the bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.detokenizer import TextStream

SOME_TEXT = st.text(st.sampled_from("ab cé中🙂\n"), max_size=24)


def cut(data, cuts):
    bounds = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@given(st.binary(max_size=40) | SOME_TEXT.map(str.encode), st.lists(st.integers(0, 40)))
def test_pieces_are_together_what_decoding_at_once_gives(data, cuts):
    stream = TextStream()
    pieces = [stream.push(piece) for piece in cut(data, cuts)]
    assert "".join(pieces) + stream.finish() == data.decode("utf-8", "replace")


@given(SOME_TEXT, st.lists(st.integers(0, 96)))
def test_no_piece_of_valid_text_holds_a_replacement_character(text, cuts):
    stream = TextStream()
    assert all("\ufffd" not in stream.push(piece) for piece in cut(text.encode(), cuts))


@pytest.mark.parametrize(
    ("pieces", "sent", "rest"),
    [
        ([b"\xe4", b"\xb8", b"\xad"], ["", "", "中"], ""),
        ([b"a\xf0\x9f", b"\x99\x82b"], ["a", "🙂b"], ""),
        ([b"a\xf0\x9f"], ["a"], "\ufffd"),
        ([b"\xff", b"a"], ["\ufffd", "a"], ""),
        ([b"\xe4\xb8", b"a"], ["", "\ufffda"], ""),
    ],
)
def test_unfinished_characters_wait_and_are_replaced_at_the_end_only(pieces, sent, rest):
    stream = TextStream()
    assert [stream.push(piece) for piece in pieces] == sent
    assert stream.finish() == rest


def expected(text, stops):
    """The text up to the first stop string that is complete, one character at a time."""
    for end in range(1, len(text) + 1):
        if starts := [end - len(s) for s in stops if text[:end].endswith(s)]:
            return text[: min(starts)], True
    return text, False


@given(
    SOME_TEXT,
    st.lists(st.text(st.sampled_from("ab c中"), min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 96)),
)
def test_stop_strings_cut_at_the_same_place_whatever_the_pieces(text, stops, cuts):
    stream = TextStream(tuple(stops))
    sent = "".join(stream.push(piece) for piece in cut(text.encode(), cuts)) + stream.finish()
    assert (sent, stream.stopped) == expected(text, stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "sent"),
    [
        (("END",), ["aE", "N", "D", "x"], ["a", "", "", ""]),
        (("END",), ["aE", "Nb"], ["a", "ENb"]),
        (("END",), ["abc"], ["abc"]),
        (("\n\n",), ["a\n", "b\n", "\n"], ["a", "\nb", ""]),
        (("aab",), ["aa", "ab"], ["", "a"]),
        (("abc", "b"), ["a", "b"], ["", "a"]),
    ],
)
def test_only_text_that_may_begin_a_stop_string_is_held(stops, pieces, sent):
    stream = TextStream(stops)
    assert [stream.push(piece.encode()) for piece in pieces] == sent


def test_held_text_comes_out_at_the_end_when_no_stop_followed():
    stream = TextStream(("END",))
    assert stream.push(b"the EN") == "the "
    assert stream.finish() == "EN"
    assert not stream.stopped


def test_a_stop_string_of_the_replacement_character_is_met_at_the_end():
    stream = TextStream(("\ufffd",))
    assert stream.push(b"a\xe4") == "a"
    assert stream.finish() == ""
    assert stream.stopped

"""The error tree: names, codes, text."""

from __future__ import annotations

import signal

import pytest

from nanochat import errors

CODES = {
    errors.ConfigError: 64,
    errors.DataError: 65,
    errors.RunLockedError: 66,
    errors.UnavailableError: 69,
    errors.DivergedError: 70,
    errors.TakenError: 73,
    errors.QuotaError: 75,
    errors.ForbiddenError: 77,
    errors.StorageError: 201,
    errors.HangError: 202,
    errors.RequestError: 64,
}


def test_all_names_every_public_error_and_nothing_else():
    public = {
        name
        for name, value in vars(errors).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == errors.__name__
    }
    assert public == set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)


def test_the_drawing_in_the_docstring_shows_every_error():
    assert errors.__doc__ is not None
    for name in errors.__all__:
        if isinstance(getattr(errors, name), type):
            assert f"{name}" in errors.__doc__


@pytest.mark.parametrize(("error", "code"), CODES.items())
def test_each_error_has_its_exit_code(error, code):
    assert error("x").exit_code == code
    assert issubclass(error, errors.NanochatError)


def test_only_what_a_retry_can_mend_has_a_code_of_128_or_more():
    assert {error for error, code in CODES.items() if code >= 128} == {errors.StorageError, errors.HangError}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_with_128_plus_its_signal(signum, code):
    assert errors.Interrupted(signum, "stopped").exit_code == code


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 139)])
def test_a_lost_rank_passes_its_signal_through(signum, code):
    assert errors.RankLostError(signum, "gone").exit_code == code


def test_a_lost_peer_is_retried_like_a_killed_rank():
    assert errors.PeerLostError("gone").exit_code == 137


def test_the_text_is_one_sentence_and_a_hint():
    assert errors.NanochatError("it broke").render() == "error: it broke"
    assert errors.NanochatError("it broke", hint="mend it").render() == "error: it broke\n\nhint: mend it"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("tny", "did you mean `tiny`?"),
        ("smok", "did you mean `smoke`?"),
        ("qqqq", "one of: `smoke`, `speedrun`, `tiny`"),
    ],
)
def test_the_nearest_name_is_offered_or_all_of_them(value, hint):
    assert errors.did_you_mean(value, ["tiny", "smoke", "speedrun"]) == hint


def test_a_request_error_carries_what_the_api_answers():
    error = errors.RequestError("slow down", status=429, code="rate_limit", param="n", retry_after_s=2.0)
    assert (error.status, error.code, error.param, error.retry_after_s) == (429, "rate_limit", "n", 2.0)

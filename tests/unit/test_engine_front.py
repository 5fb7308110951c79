"""The engine's front with a scripted model: queueing, threads, cancelling, failing, closing."""

from __future__ import annotations

import threading

import pytest

from nanochat.engine.engine import Engine, Limits
from nanochat.engine.request import SamplingParams
from nanochat.errors import ConfigError, RequestError
from tests.engine_fakes import ByteTokenizer, Collect, ScriptModel

TOKENIZER = ByteTokenizer()
S = TOKENIZER.specials
GREEDY = SamplingParams(temperature=0, max_tokens=4)


def make(model=None, **options):
    limits = Limits(**options.pop("limits", {}))
    return Engine(model or ScriptModel(), TOKENIZER, limits=limits, **options)


class Ended(Collect):
    """A sink that can be waited for."""

    def __init__(self):
        super().__init__()
        self.ended = threading.Event()
        self.first = threading.Event()

    def put(self, delta):
        super().put(delta)
        self.first.set()
        if delta.finish_reason:
            self.ended.set()


def greedy(n):
    return SamplingParams(temperature=0, max_tokens=n)


def test_generate_returns_completions_in_order():
    done = make().generate([b"a", b"m", b"xy"], GREEDY)
    assert [c.text for c in done] == ["bcde", "nopq", "z{|}"]
    assert [(c.prompt_tokens, c.completion_tokens, c.finish_reason) for c in done] == [
        (1, 4, "length"),
        (1, 4, "length"),
        (2, 4, "length"),
    ]


def test_generate_takes_parameters_for_each_prompt():
    done = make().generate([b"a", b"a"], [greedy(1), greedy(2)])
    assert [c.text for c in done] == ["b", "bc"]


def test_generate_works_beside_a_running_thread():
    engine = make()
    engine.run_thread()
    assert [c.text for c in engine.generate([b"a", b"b"], GREEDY)] == ["bcde", "cdef"]
    engine.close()


def test_a_tool_call_reaches_the_completion_with_its_forced_tokens():
    script = {(ord("a"), ord("a")): S["python_start"], (ord("a"), S["python_start"]): ord("2")}
    script |= {(S["python_start"], ord("2")): ord("*"), (ord("2"), ord("*")): ord("4")}
    script |= {(ord("*"), ord("4")): S["python_end"], (ord("8"), S["output_end"]): S["assistant_end"]}
    model = ScriptModel(script=script)
    (done,) = make(model).generate([b"aa"], greedy(20))
    assert (done.text, done.finish_reason, done.tool_calls) == ("", "stop", [("2*4", "8")])
    assert done.forced == [False] * 5 + [True] * 3 + [False]
    assert model.batches[-1] == (1, 4)  # python_end and the three forced tokens: one forward


@pytest.mark.parametrize("length", [64, 200])
def test_a_prompt_that_leaves_no_room_is_refused_with_openais_code(length):
    with pytest.raises(RequestError, match=f"64 tokens and the prompt has {length}") as error:
        make().submit([1] * length, GREEDY, Collect())
    assert (error.value.status, error.value.code, error.value.param) == (
        400,
        "context_length_exceeded",
        "messages",
    )


def test_an_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="empty"):
        make().submit([], GREEDY, Collect())


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 4), (1000, 4), (2, 2)])
def test_a_completion_ends_at_the_context_at_the_latest(max_tokens, expected):
    (done,) = make().generate([[1] * 60], SamplingParams(temperature=0, max_tokens=max_tokens))
    assert (done.completion_tokens, done.finish_reason) == (expected, "length")


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "top_logprobs"),
        ({"logprobs": -1}, "top_logprobs"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("a",) * 17}, "stop"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(params, param):
    with pytest.raises(RequestError, match=f"`{param}` is") as error:
        SamplingParams(**params)
    assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"context": 65}, "context is 65"),
        ({"max_tokens_in_kv": 63}, "max_tokens_in_kv is 63"),
        ({"max_running": 0}, "0 slots"),
    ],
)
def test_limits_that_cannot_work_are_refused(limits, message):
    with pytest.raises(ConfigError, match=message):
        make(limits=limits)


def test_memory_for_keys_and_values_bounds_what_runs_at_once():
    engine = make(limits={"max_tokens_in_kv": 130})
    for _ in range(4):
        engine.submit(b"a", greedy(3), Collect())
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (2, 2)
    assert (stats.kv_used_tokens, stats.kv_free_tokens, stats.kv_total_tokens) == (128, 0, 128)
    while engine.step():
        pass
    stats = engine.stats()
    assert (stats.kv_used_tokens, stats.kv_intact, stats.requests_finished["length"]) == (0, True, 4)


def test_a_full_queue_is_429_with_a_time_to_retry():
    engine = make(limits={"max_waiting": 2})
    engine.submit(b"a", GREEDY, Collect())
    engine.submit(b"a", GREEDY, Collect())
    with pytest.raises(RequestError) as error:
        engine.submit(b"a", GREEDY, Collect())
    assert (error.value.status, error.value.retry_after_s) == (429, 1.0)


def test_each_step_puts_at_most_one_delta_a_request_and_flushes_once():
    flushed = []
    sinks = [Collect() for _ in range(3)]
    engine = make(on_flush=lambda: flushed.append([len(s.deltas) for s in sinks]))
    for sink in sinks:
        engine.submit(b"a", greedy(2), sink)
    while engine.step():
        pass
    assert flushed == [[1, 1, 1], [2, 2, 2]]


def test_cancelling_ends_a_request_within_one_step_and_frees_its_slot():
    engine, kept, gone = make(), Collect(), Collect()
    engine.submit(b"a", greedy(20), kept)
    request = engine.submit(b"a", greedy(20), gone)
    engine.step()
    engine.cancel(request)
    engine.step()
    assert gone.finish_reason == "cancelled"
    assert gone.text == "b"
    assert engine.stats().running == 1
    engine.cancel(request)
    while engine.step():
        pass
    assert (kept.text, engine.stats().kv_intact) == ("bcdefghijklmnopqrstu", True)


def test_cancelling_from_another_thread_reaches_a_running_engine():
    engine, sink = make(), Ended()
    engine.run_thread()
    request = engine.submit(b"a", SamplingParams(temperature=0, ignore_eos=True), sink)
    assert sink.first.wait(5)
    engine.cancel(request)
    assert sink.ended.wait(5)
    assert sink.finish_reason in ("cancelled", "length")
    engine.close()
    assert not engine.busy


def test_ticks_advance_while_work_waits_and_the_clock_says_when():
    now = iter(range(100))
    engine = make(clock=lambda: float(next(now)))
    engine.submit(b"a", greedy(3), Collect())
    engine.step()
    engine.step()
    stats = engine.stats()
    assert (stats.ticks, stats.last_tick_s, engine.ticks, engine.busy) == (2, 2.0, 2, True)
    while engine.step():
        pass
    assert not engine.busy


def test_counters_add_up():
    engine = make()
    engine.generate([b"abc", b"z"], greedy(3))
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.completion_tokens) == (4, 6)
    assert stats.requests_finished == {"stop": 0, "length": 2, "cancelled": 0, "error": 0}


def test_a_failing_step_ends_its_requests_with_an_error_and_the_engine_goes_on(caplog):
    model, sink, after = ScriptModel(), Ended(), Ended()
    engine = make(model)

    def fail():
        raise RuntimeError("no more memory")

    model.on_forward = fail
    engine.run_thread()
    engine.submit(b"a", GREEDY, sink)
    assert sink.ended.wait(5)
    assert sink.finish_reason == "error"
    assert "memory" not in (sink.deltas[-1].error or "")  # no internals for clients
    assert sink.deltas[-1].error
    assert engine.failure == "RuntimeError: no more memory"
    assert "event=step_failed" in caplog.text
    model.on_forward = lambda: None
    engine.submit(b"a", GREEDY, after)
    assert after.ended.wait(5)
    assert (after.text, engine.stats().failures) == ("bcde", 1)
    engine.close()
    assert engine.stats().kv_intact


def test_closing_ends_what_is_left_and_refuses_what_comes():
    engine, sink = make(), Collect()
    engine.submit(b"a", GREEDY, sink)
    engine.close()
    engine.close()
    assert sink.finish_reason == "cancelled"
    with pytest.raises(RequestError) as error:
        engine.submit(b"a", GREEDY, Collect())
    assert error.value.status == 503
    with pytest.raises(RequestError):
        engine.generate([b"a"], GREEDY)


def test_a_second_thread_is_refused():
    engine = make()
    engine.run_thread(threads=None)
    with pytest.raises(RuntimeError):
        engine.run_thread()
    engine.close()


def test_many_threads_submit_at_once():
    engine = make(limits={"max_running": 3})
    engine.run_thread()
    sinks = [Ended() for _ in range(24)]

    def client(part):
        for sink in part:
            engine.submit(b"a", GREEDY, sink)

    clients = [threading.Thread(target=client, args=(sinks[i::4],)) for i in range(4)]
    for c in clients:
        c.start()
    for c in clients:
        c.join()
    assert all(sink.ended.wait(5) for sink in sinks)
    assert {sink.text for sink in sinks} == {"bcde"}
    engine.close()

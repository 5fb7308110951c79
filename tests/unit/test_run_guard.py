"""The guard of a node's ranks: what it forwards and when it kills, by a clock of its own."""

from __future__ import annotations

import signal

import pytest

from nanochat.run import guard as module
from nanochat.run.guard import YIELD_S, YIELD_STOPPED_S, Guard
from nanochat.run.nodes import End, News
from nanochat.run.signals import StopNow
from nanochat.run.single import Ended, Limits, Watch

TERM, INT, KILL, STACKS = signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1


@pytest.fixture(autouse=True)
def _no_time_for_stacks(monkeypatch):
    monkeypatch.setattr(module, "STACKS_S", 0.0)


class Peers:
    """The other nodes, as the test wants them."""

    def __init__(self):
        self.news = News()
        self.told = []

    def look(self):
        return self.news

    def stop(self, signum):
        self.told.append(signum)


class Watched(Guard):
    """A guard that notes what it would send to its ranks."""

    def __init__(self, *, ranks=(11, 12), **options):
        self.peers, self.now, self.sent = Peers(), 0.0, []
        ended = Ended(code=0)
        super().__init__(
            ended,
            self.peers,
            options.pop("watch", Watch(None, 1.0)),
            Limits(**options),
            clock=lambda: self.now,
        )
        self.pids = lambda: ranks

    def _signal(self, pid, signum):
        self.sent.append((pid, signum))

    def at(self, now):
        """Step at a time; returns what was sent."""
        self.now, self.sent = now, []
        self.step()
        return self.sent


def test_a_signal_is_forwarded_once_to_each_rank_and_told_to_the_other_nodes():
    guard = Watched()
    guard.ask(TERM)
    guard.ask(TERM)
    assert guard.peers.told == [TERM]
    assert guard.at(1) == [(11, TERM), (12, TERM)]
    assert guard.at(2) == []
    assert guard.ended.asked == TERM


def test_ranks_that_start_after_the_signal_get_it_too():
    guard = Watched(ranks=())
    guard.ask(TERM)
    assert guard.at(1) == []
    with pytest.raises(StopNow):
        guard.check()
    guard.pids = lambda: (13,)
    assert guard.at(2) == [(13, TERM)]


def test_what_another_node_was_asked_is_forwarded_but_not_told_back():
    guard = Watched()
    guard.peers.news = News(stop=INT)
    assert guard.at(1) == [(11, INT), (12, INT)]
    assert guard.peers.told == []
    assert guard.ended.asked == INT


def test_the_ranks_are_killed_at_the_end_of_the_grace_period():
    guard = Watched(grace_s=10.0)
    guard.ask(TERM)
    assert guard.deadline == 10.0
    guard.at(1)
    assert guard.at(10) == []
    assert guard.at(10.1) == [(11, KILL), (12, KILL)]
    assert not guard.ended.yielded


def test_a_second_ctrl_c_kills_and_a_second_sigterm_does_not():
    guard = Watched()
    guard.ask(INT)
    guard.at(1)
    guard.ask(TERM)
    assert guard.at(2) == []
    guard.ask(INT)
    assert guard.at(3) == [(11, KILL), (12, KILL)]
    assert guard.ended.impatient


@pytest.mark.parametrize(("code", "after_s"), [(70, YIELD_S), (137, YIELD_S), (143, YIELD_STOPPED_S)])
def test_ranks_yield_to_another_node_s_failure_after_a_while(code, after_s):
    guard = Watched()
    guard.peers.news = News(failed=End(code))
    assert guard.at(1) == []
    assert guard.at(0.9 + after_s) == []
    assert guard.at(1.1 + after_s) == [(11, KILL), (12, KILL)]
    assert guard.ended.yielded


def test_ranks_that_yield_to_a_hang_show_their_stacks_first():
    guard = Watched()
    guard.peers.news = News(failed=End(202))
    guard.at(1)
    assert guard.at(1.1 + YIELD_S) == [(11, STACKS), (12, STACKS), (11, KILL), (12, KILL)]


def test_no_rank_means_nothing_to_yield():
    guard = Watched(ranks=())
    guard.peers.news = News(failed=End(70))
    guard.at(1)
    guard.at(100)
    assert not guard.ended.yielded


def test_a_file_that_no_longer_grows_is_a_hang_but_not_while_stopping(tmp_path):
    path, now = tmp_path / "events", [0.0]
    path.write_text("a")
    for asked in (False, True):
        now[0] = 0.0
        guard = Watched(watch=Watch(path, 5.0, clock=lambda: now[0]))
        guard.at(1)
        if asked:
            guard.ask(TERM)
            guard.at(2)
        now[0] = 6.0
        sent = guard.at(6)
        if asked:
            assert sent == []
        else:
            assert sent == [(11, STACKS), (12, STACKS), (11, KILL), (12, KILL)]
            assert guard.ended.hung_s == 6.0

"""Stop flag, lock, watchdog, rank plans, reasons: what the launcher is made of."""

from __future__ import annotations

import signal

import pytest

from nanochat.errors import ConfigError, Interrupted, PeerLostError, RunLockedError
from nanochat.run.lock import check_free, read_owner, run_lock
from nanochat.run.ranks import plan_ranks
from nanochat.run.reason import SLOT_BYTES, Reasons, tell
from nanochat.run.signals import StopFlag, StopNow
from nanochat.run.single import Watch
from nanochat.run.stage import stage


def test_work_that_does_not_poll_is_stopped_at_once():
    with pytest.raises(StopNow):
        StopFlag()._handle(signal.SIGTERM, None)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_work_that_polls_decides_when(signum, code):
    stop = StopFlag()
    assert stop.signum is None
    stop._handle(signum, None)
    stop._handle(signal.SIGTERM, None)
    assert stop.signum == signum
    with pytest.raises(Interrupted, match="step 3 is saved") as caught:
        stop.raise_if_set("step 3 is saved")
    assert caught.value.exit_code == code


def test_a_second_holder_is_refused_and_told_who_holds_the_run(tmp_path):
    with run_lock(tmp_path / "r", "data") as attempt:
        assert attempt == 1
        with pytest.raises(
            RunLockedError, match=r"run `r` is in use by process \d+ on host .* \(stage `data`\)"
        ):
            check_free(tmp_path / "r")
        with pytest.raises(RunLockedError), run_lock(tmp_path / "r", "data"):
            pass
    check_free(tmp_path / "r")
    check_free(tmp_path / "never")


def test_attempts_count_up_and_a_torn_owner_file_is_no_obstacle(tmp_path):
    for expected in (1, 2, 3):
        with run_lock(tmp_path, "data") as attempt:
            assert attempt == expected
            assert read_owner(tmp_path / "owner")["stage"] == "data"
    (tmp_path / "owner").write_text('{"attempt": 3, "pi')
    with run_lock(tmp_path, "data") as attempt:
        assert attempt == 1


def test_a_file_that_stops_growing_is_a_hang_only_after_the_limit(tmp_path):
    path = tmp_path / "e"
    times = iter([0.0, 5.0, 9.0, 19.0, 20.0, 99.0])
    watch = Watch(path, 10.0, clock=lambda: next(times))
    for text, stalled in [("", None), ("a", None), ("a", None), ("a", 11.0)]:
        path.write_text(text)
        assert watch.stalled_s() == stalled
    path.write_text("ab")
    assert watch.stalled_s() is None
    assert Watch(None, 0.0).stalled_s() is None


NODE_1 = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("env", "name", "nproc", "kind", "first"),
    [
        ({}, "base_train", 1, "single", True),
        ({}, "base_train", 2, "agent", True),
        ({}, "data", 2, "single", True),
        ({"PET_NNODES": "1", "PET_NPROC_PER_NODE": "1"}, "base_train", 1, "single", True),
        ({"PET_NPROC_PER_NODE": "4"}, "base_train", 1, "agent", True),
        (NODE_1, "base_train", 1, "agent", False),
        (NODE_1, "data", 1, "idle", False),
        (NODE_1 | {"PET_NODE_RANK": "0"}, "data", 1, "single", True),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}, "base_train", 1, "member", False),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}, "data", 1, "single", True),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}, "data", 1, "idle", False),
    ],
)
def test_what_is_started_follows_from_stage_and_environment(monkeypatch, env, name, nproc, kind, first):
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    ranks = plan_ranks(stage(name), nproc)
    assert (ranks.kind, ranks.first) == (kind, first)


def test_a_rank_s_reason_reaches_the_launcher_without_growing_the_file(tmp_path):
    with Reasons(tmp_path, slots=2) as reasons:
        size = reasons.path.stat().st_size
        assert reasons.error(64, 1) is None
        assert tell(reasons.path, 1, ConfigError("x" * 10_000 + "é" * 2_000, hint="y" * 9_000))
        assert reasons.path.stat().st_size == size == 2 * SLOT_BYTES
        error = reasons.error(64, 1)
        assert error is not None
        assert error.exit_code == 64
        assert error.message.startswith("xxx")
        assert reasons.error(64, 0) is None
        assert not reasons.lost(1)
        assert tell(reasons.path, 0, PeerLostError("the others are gone"))
        assert reasons.lost(0)
        assert isinstance(reasons.error(137, 0), PeerLostError)
    assert not reasons.path.exists()
    assert not tell(reasons.path, 0, ConfigError("late"))

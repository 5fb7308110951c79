"""The launcher as processes: exit codes, reasons, the lock, signals, death of any process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from fakes_run import FakeHome, end, wait_for_line, wait_until

from nanochat.run.events import read_events
from nanochat.run.reason import parse_last_words
from nanochat.run.record import Record
from nanochat.run.setup import load_config
from nanochat.run.stage import stage

STEPS = """
def run(context):
    context.raise_if_stopped()
    for step in range(1, 3001):
        context.emit("step", step=step, steps=3000, unit="step")
        context.raise_if_stopped(f"step {step} is saved")
        time.sleep(0.02)
"""

FAILS = {
    "ConfigError": ('raise ConfigError("depth is 0", hint="set it to 1")', 64, "depth is 0"),
    "DataError": ('raise DataError("shard_00001 is damaged")', 65, "shard_00001"),
    "RunLockedError": ('raise RunLockedError("inputs changed")', 66, "inputs changed"),
    "UnavailableError": ('raise UnavailableError("no network")', 69, "no network"),
    "DivergedError": ('raise DivergedError("loss is nan at step 7")', 70, "step 7"),
    "TakenError": ('raise TakenError("port 80 is taken")', 73, "port 80"),
    "QuotaError": ('raise QuotaError("over budget")', 75, "budget"),
    "ForbiddenError": ('raise ForbiddenError("no right")', 77, "no right"),
    "StorageError": ('raise StorageError("no space left for step 9")', 201, "step 9"),
    "a full volume": ('raise OSError(28, "No space left on device")', 201, "No space left"),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", 137, "died by SIGKILL"),
    "SIGSEGV": ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "died by SIGSEGV"),
    "a bug": ('raise ValueError("oops")', 1, "ValueError: oops"),
    "no GPU memory": (
        "raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory. Tried 2 GiB')",
        64,
        "CUDA out of memory",
    ),
    "no result": ("return None", 1, "not StageResult"),
}


@pytest.mark.parametrize("cause", FAILS)
def test_each_cause_has_its_exit_code_and_leaves_its_reason_three_times(tmp_path, cause):
    code_line, code, words = FAILS[cause]
    fake = FakeHome(tmp_path, data=f"def run(context):\n    {code_line}\n")
    config = fake.config()
    assert_failed(fake, config, end(fake.launch(config)), code, words)


def assert_failed(fake, config, ended, code, words):
    found, out, err = ended
    assert found == code, err
    assert out == ""
    assert "error: " in err
    assert words in err
    left = parse_last_words(fake.reason.read_text())
    assert left is not None
    assert (left.stage, left.run, left.exit_code, left.status) == (config.parent.name, "r", code, "failed")
    assert words in left.message
    last = list(read_events(config.parent / "events.jsonl", "stage"))[-1]
    assert (last["status"], last["exit_code"]) == ("failed", code)
    assert words in last["reason"]
    assert Record.load(config.parent) is None
    assert [path.name for path in config.parent.glob(".reason*")] == []


def test_a_bug_shows_its_traceback_and_a_known_error_only_its_sentence(tmp_path):
    fake = FakeHome(tmp_path, data='def run(context):\n    raise ValueError("oops")\n')
    assert "Traceback" in end(fake.launch(fake.config()))[2]
    fake.stage("data", 'def run(context):\n    raise ConfigError("depth is 0", hint="set it to 1")\n')
    err = end(fake.launch(fake.config()))[2]
    assert "Traceback" not in err
    assert "error: depth is 0\n\nhint: set it to 1\n" in err


def test_a_missing_module_names_what_to_install(tmp_path):
    fake = FakeHome(tmp_path, data="import torchx_that_is_not_there\n")
    code, _, err = end(fake.launch(fake.config()))
    assert code == 64
    assert "torchx_that_is_not_there" in err
    assert "nanochat-platform[train]" in err


def test_a_finished_stage_leaves_a_record_and_the_second_launch_does_nothing(tmp_path):
    fake = FakeHome(tmp_path)
    config = fake.config()
    assert end(fake.launch(config))[0] == 0
    record = Record.load(config.parent)
    assert record is not None
    assert record.metrics == {"answer": 42}
    assert list(record.outputs) == ["runs/r/data/out.txt"]
    assert record.config == load_config(config).spec.relevant(stage("data"))
    assert record.attempts == 1
    assert 0 < record.wall_s < 60
    assert record.hardware["cores"] >= 1

    fake.stage("data", 'def run(context):\n    raise ValueError("must not run")\n')
    code, _, err = end(fake.launch(config))
    assert code == 0
    assert "status=skip" in err
    assert Record.load(config.parent) == record


def test_another_configuration_is_refused_with_66_and_keeps_the_record(tmp_path):
    fake = FakeHome(tmp_path)
    assert end(fake.launch(fake.config()))[0] == 0
    config = fake.config(source="packages/cpu")
    code, _, err = end(fake.launch(config))
    assert code == 66
    assert '`source` was "generated", now "packages/cpu"' in err
    assert parse_last_words(fake.reason.read_text()).exit_code == 66
    assert Record.load(config.parent) is not None


def test_a_lost_output_is_made_again_and_said(tmp_path):
    fake = FakeHome(tmp_path)
    config = fake.config()
    assert end(fake.launch(config))[0] == 0
    (config.parent / "out.txt").unlink()
    code, _, err = end(fake.launch(config))
    assert code == 0
    assert "notice: an output of stage `data` is damaged: `runs/r/data/out.txt` is missing" in err
    assert (config.parent / "out.txt").exists()


def test_the_second_of_two_processes_on_one_run_is_refused(tmp_path):
    fake = FakeHome(tmp_path, data=STEPS)
    first = fake.launch(fake.config())
    wait_for_line(first, "step=1/")
    code, _, err = end(fake.launch(fake.config("tok_train")))
    assert code == 66
    assert f"process {first.pid} on host" in err
    assert "stage `data`" in err
    first.send_signal(signal.SIGTERM)
    assert end(first)[0] == 143


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_stage_save_and_the_next_launch_resumes(tmp_path, signum, code):
    fake = FakeHome(tmp_path, data=STEPS)
    config = fake.config()
    process = fake.launch(config)
    wait_for_line(process, "step=1/")
    process.send_signal(signum)
    found, _, err = end(process)
    assert found == code
    assert "is saved" in err
    assert "run the same command again" in err
    fake.stage("data", "def run(context):\n    return StageResult()\n")
    assert end(fake.launch(config))[0] == 0
    assert [e["status"] for e in read_events(config.parent / "events.jsonl", "stage")] == [
        "start",
        "failed",
        "resume",
        "done",
    ]
    assert next(iter(read_events(config.parent / "events.jsonl", "restart")))["after"].startswith(
        "stopped by"
    )


def test_a_signal_before_the_stage_polls_stops_it_at_once(tmp_path):
    fake = FakeHome(
        tmp_path,
        data='def run(context):\n    context.emit("step", step=1, steps=9)\n    time.sleep(60)\n',
    )
    process = fake.launch(fake.config())
    wait_for_line(process, "step=1/")
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process, 20)
    assert code == 143
    assert "Traceback" not in err


MOMENTS = {
    "the lock is held": lambda config, launcher, signum: lock_is_held(config),
    "the worker exists": lambda config, launcher, signum: children(launcher),
    "the worker runs": lambda config, launcher, signum: worker_handles(launcher, signal.SIGUSR1),
    "the worker handles signals": lambda config, launcher, signum: worker_handles(launcher, signum),
    "the stage works": lambda config, launcher, signum: any(
        read_events(config.parent / "events.jsonl", "step")
    ),
}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_early_moment_ends_with_its_code_and_no_traceback(tmp_path, signum, moment):
    fake = FakeHome(tmp_path, data=STEPS)
    config = fake.config()
    process = fake.launch(config)
    wait_until(lambda: MOMENTS[moment](config, process.pid, signum))
    process.send_signal(signum)
    code, _, err = end(process, 20)
    assert code == (130 if signum == signal.SIGINT else 143), err
    assert "Traceback" not in err
    assert f"stopped by {signum.name}" in parse_last_words(fake.reason.read_text()).message


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closing_terminal_stops_the_stage_like_sigterm_and_not_at_all_under_nohup(tmp_path, nohup):
    fake = FakeHome(tmp_path, data=STEPS.replace("3001", "40"))
    inherited = signal.SIG_IGN if nohup else signal.SIG_DFL  # the tests themselves may run under nohup

    def start() -> None:
        signal.signal(signal.SIGHUP, inherited)

    process = fake.launch(fake.config(), preexec_fn=start)
    wait_for_line(process, "step=1/")
    process.send_signal(signal.SIGHUP)
    code, _, err = end(process)
    assert code == (1 if nohup else 143), err
    assert ("not StageResult" if nohup else "stopped by SIGTERM") in err


DEAF = """
def run(context):
    context.stop.signum
    context.emit("step", step=1, steps=2)
    while True:
        if context.stop.signum:
            (context.dir / "heard").touch()
        time.sleep(0.01)
"""


def test_a_second_ctrl_c_kills(tmp_path):
    fake = FakeHome(tmp_path, data=DEAF)
    config = fake.config()
    process = fake.launch(config)
    wait_for_line(process, "step=1/")
    process.send_signal(signal.SIGINT)
    wait_until((config.parent / "heard").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, err = end(process, 10)
    assert code == 137
    assert "a second signal asked for it" in err


def test_a_stage_that_does_not_stop_within_the_grace_is_killed(tmp_path):
    fake = FakeHome(tmp_path, data=DEAF)
    process = fake.launch(fake.config(), "--grace-s", "0.3")
    wait_for_line(process, "step=1/")
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process, 10)
    assert code == 137
    assert "did not stop in time" in err


def test_no_event_within_the_limit_is_a_hang_with_stacks(tmp_path):
    fake = FakeHome(tmp_path, data=DEAF)
    config = fake.config()
    ended = end(fake.launch(config, "--hang-s", "2"), 20)
    assert_failed(fake, config, ended, 202, "no progress")
    assert "in run" in ended[2]


@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_after_the_death_of_any_one_process_a_restart_succeeds_within_five_seconds(tmp_path, victim):
    fake = FakeHome(tmp_path, data=STEPS)
    config = fake.config()
    process = fake.launch(config)
    wait_for_line(process, "step=1/")
    (worker,) = children(process.pid)
    os.kill(process.pid if victim == "launcher" else worker, signal.SIGKILL)
    died = time.monotonic()
    fake.stage("data", "def run(context):\n    return StageResult()\n")
    if victim == "worker":
        assert end(process, 5)[0] == 137
    code, _, err = end(fake.launch(config), 10)
    assert code == 0, err
    assert time.monotonic() - died < 5
    wait_until(lambda: is_zombie(worker))
    if victim == "launcher":
        assert end(process, 5)[0] == -signal.SIGKILL


def test_all_processes_die_with_the_one_that_asked_for_them(tmp_path):
    """A launcher started with --parent, as `nanochat run` does, and its worker outlive nobody."""
    fake = FakeHome(tmp_path, data=STEPS)
    shell = fake.start("nanochat_platform.cli", "run", "data", "--run", "r", "--preset", "smoke")
    wait_for_line(shell, "step=1/")
    (launcher,) = children(shell.pid)
    (worker,) = children(launcher)
    shell.kill()
    assert end(shell, 5)[0] == -signal.SIGKILL
    for pid in (launcher, worker):
        wait_until(lambda pid=pid: is_zombie(pid))
    fake.stage("data", "def run(context):\n    return StageResult()\n")
    assert fake.cli("run", "data", "--run", "r")[0] == 0


@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_a_real_stage_goes_on_within_five_seconds_of_the_death_of_any_one_process(tmp_path, victim):
    fake = FakeHome(tmp_path, real=("data",))
    config = fake.config()
    process = fake.launch(config)
    wait_for_line(process, "step stage=data")
    pid = process.pid if victim == "launcher" else children(process.pid)[0]
    os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    end(process, 5)
    again = fake.launch(config)
    seen = wait_for_line(again, "step stage=data")
    assert time.monotonic() - died < 5
    assert "status=resume" in seen
    code, _, err = end(again)
    assert code == 0, err
    assert Record.load(config.parent).attempts == 2


def test_children_do_not_inherit_the_lock(tmp_path):
    """A process that a stage left behind must not keep the run locked."""
    fake = FakeHome(
        tmp_path,
        data="""
import subprocess, sys
def run(context):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    (context.dir / "pid").write_text(str(child.pid))
    return StageResult()
""",
    )
    config = fake.config()
    process = fake.launch(config)
    assert process.wait(timeout=20) == 0
    left = int((config.parent / "pid").read_text())
    try:
        assert "owner" not in " ".join(os.readlink(p) for p in Path(f"/proc/{left}/fd").iterdir())
        process.stdout.close()
        process.stderr.close()
        code, _, err = end(fake.launch(config))
        assert code == 0, err
    finally:
        os.kill(left, signal.SIGKILL)


def test_the_launcher_of_one_rank_imports_no_torch(tmp_path):
    fake = FakeHome(tmp_path)
    process = fake.launch(fake.config(), env={"PYTHONPROFILEIMPORTTIME": "1"})
    code, _, err = end(process)
    assert code == 0
    assert "| torch" not in err


TWO_RANKS = """
def run(context):
    import torch.distributed as dist
    place = context.topology
    dist.init_process_group("gloo")
    (context.dir / f"rank{place.rank}").write_text(f"{place.rank}/{place.world_size}/{dist.get_world_size()}")
    dist.barrier()
    %s
    dist.destroy_process_group()
    out = context.dir / "out.txt"
    out.write_text("done")
    return StageResult([out] if place.rank == 0 else [])
"""


@pytest.fixture
def trained(tmp_path):
    """Return a home whose stages up to base_train are finished, and base_train's config."""

    def make(source, **values):
        fake = FakeHome(tmp_path, base_train=source)
        for name in ("data", "tok_train", "tokenize"):
            fake.finish(name, **values)
        return fake, fake.config("base_train", **values)

    return make


@pytest.mark.timeout(120)
def test_two_ranks_run_one_stage_and_leave_one_record(trained):
    fake, config = trained(TWO_RANKS % "", nproc=2)
    code, _, err = end(fake.launch(config))
    assert code == 0, err
    assert (config.parent / "rank0").read_text() == "0/2/2"
    assert (config.parent / "rank1").read_text() == "1/2/2"
    assert list(Record.load(config.parent).outputs) == ["runs/r/base_train/out.txt"]
    assert [e["status"] for e in read_events(config.parent / "events.jsonl", "stage")] == ["start", "done"]


@pytest.mark.timeout(120)
def test_under_torchrun_each_launcher_is_one_rank_and_tells_its_own_reason(trained):
    fake, config = trained(TWO_RANKS % 'if place.rank == 1: raise DivergedError("loss is nan at step 3")')
    arguments = (
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "nanochat.run.launch",
        "--config",
        str(config),
    )
    code, _, err = end(fake.start("torch.distributed.run", *arguments))
    assert code != 0
    assert "error: loss is nan at step 3" in err
    fake.stage("base_train", TWO_RANKS % "")
    code, _, err = end(fake.start("torch.distributed.run", *arguments))
    assert code == 0, err
    assert (config.parent / "rank1").read_text() == "1/2/2"
    assert Record.load(config.parent) is not None


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def worker_handles(launcher, signum):
    """Return whether the launcher's worker has a handler for `signum`."""
    for pid in children(launcher):
        caught = Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0]
        return bool(int(caught, 16) >> (signum - 1) & 1)
    return False


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def lock_is_held(config):
    from nanochat.errors import RunLockedError
    from nanochat.run.lock import check_free

    try:
        check_free(config.parent.parent)
    except RunLockedError:
        return True
    return False

"""Two ranks over gloo, on one node and as two nodes: how they stop, fail and end, told by real launchers."""

from __future__ import annotations

import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes_run import FakeHome, end, wait_for_line, wait_until

from nanochat.run.events import read_events
from nanochat.run.reason import LastWords, parse_last_words
from nanochat.run.record import Record

pytestmark = pytest.mark.timeout(300)  # four processes that import torch, on a machine that may be busy
PATIENCE_S = 200

GLOO = """
def run(context):
    import torch
    import torch.distributed as dist
    place = context.topology
    dist.init_process_group("gloo")
    for step in range(1, 1_000_000):
        flag = torch.tensor([float(context.stop.signum or 0)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if flag.item():
            (context.dir / f"stopped-{place.rank}").write_text(str(step))
            context.stop.set(int(flag.item()))
            context.raise_if_stopped(f"step {step} is saved")
        context.emit("step", step=step, steps=1_000_000, unit="step")
        time.sleep(0.005)
        if step == 3 and place.rank == 1:
            ACTION
"""

CAUSES = {
    "ConfigError": ('raise ConfigError("depth is 0", hint="set it to 1")', 64, "depth is 0"),
    "DataError": ('raise DataError("shard_00001 is damaged")', 65, "shard_00001"),
    "RunLockedError": ('raise RunLockedError("inputs changed")', 66, "inputs changed"),
    "UnavailableError": ('raise UnavailableError("no network")', 69, "no network"),
    "DivergedError": ('raise DivergedError("loss is nan at step 3")', 70, "loss is nan at step 3"),
    "TakenError": ('raise TakenError("port 80 is taken")', 73, "port 80"),
    "QuotaError": ('raise QuotaError("over budget")', 75, "budget"),
    "ForbiddenError": ('raise ForbiddenError("no right")', 77, "no right"),
    "StorageError": ('raise StorageError("no space left for step 3")', 201, "no space left for step 3"),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", 137, "rank 1 of stage `base_train` died by SIGKILL"),
    "SIGSEGV": ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "rank 1 of stage `base_train` died by SIGSEGV"),
    "a bug": ('raise ValueError("oops")', 1, "ValueError: oops"),
}


def gloo(action: str = "pass") -> str:
    return GLOO.replace("ACTION", action)


def prepared(folder: Path, source: str, **values) -> tuple[FakeHome, Path]:
    """Return a home whose stages up to base_train are finished, and base_train's config."""
    fake = FakeHome(folder, base_train=source)
    for name in ("data", "tok_train", "tokenize"):
        fake.finish(name, **values)
    return fake, fake.config("base_train", **values)


def words(path: Path) -> LastWords:
    found = parse_last_words(path.read_text())
    assert found is not None, path.read_text()
    return found


# One node


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """How two ranks ended for each cause; two launches at a time, as each spends seconds on imports."""

    def launch(cause):
        fake, config = prepared(tmp_path_factory.mktemp("cause"), gloo(CAUSES[cause][0]), nproc=2)
        return fake, config, end(fake.launch(config), PATIENCE_S)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CAUSES, pool.map(launch, CAUSES), strict=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cause", CAUSES)
def test_the_rank_that_fails_gives_the_exit_code_and_the_reason(ends, cause):
    fake, config, (code, out, err) = ends[cause]
    _, expected, text = CAUSES[cause]
    assert code == expected, err
    assert out == ""
    assert text in err
    left = words(fake.reason)
    assert (left.stage, left.run, left.exit_code, left.status) == ("base_train", "r", expected, "failed")
    assert text in left.message
    last = list(read_events(config.parent / "events.jsonl", "stage"))[-1]
    assert (last["status"], last["exit_code"], last["reason"]) == ("failed", expected, left.message)
    assert Record.load(config.parent) is None
    assert [path.name for path in config.parent.glob(".reason*")] == []


def test_a_signal_stops_both_ranks_at_one_step(tmp_path):
    fake, config = prepared(tmp_path, gloo(), nproc=2)
    process = fake.launch(config)
    wait_for_line(process, "step=1/")
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process, PATIENCE_S)
    assert code == 143, err
    step = (config.parent / "stopped-0").read_text()
    assert (config.parent / "stopped-1").read_text() == step
    assert f"stopped by SIGTERM: step {step} is saved" in words(fake.reason).message
    assert "Traceback" not in err


# Two nodes


@dataclass
class TwoNodes:
    """Two launchers of one home as the two nodes of a job."""

    fake: FakeHome
    config: Path
    processes: list[subprocess.Popen[str]]
    logs: list[Path]

    def ends(self) -> list[tuple[int, str]]:
        """Wait for both; returns exit code and stderr of each."""
        found = [end(process, PATIENCE_S) for process in self.processes]
        return [(code, err) for code, _, err in found]

    def start_node(self, node: int, port: int, *arguments: str) -> None:
        log = self.fake.reason.with_name(f"log-{len(self.logs)}")
        log.touch()
        self.logs.append(log)
        variables = {
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(node),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "NANOCHAT_TERMINATION_LOG": str(log),
        }
        self.processes.append(self.fake.launch(self.config, *arguments, env=variables))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def two_nodes(folder: Path, source: str, *arguments: str, stage: str = "base_train") -> TwoNodes:
    fake, config = prepared(folder, source)
    nodes = TwoNodes(fake, config if stage == "base_train" else fake.config(stage), [], [])
    port = free_port()
    for node in range(2):
        nodes.start_node(node, port, *arguments)
    return nodes


@pytest.mark.parametrize("cause", ["DivergedError", "SIGKILL"])
def test_a_failure_on_the_second_node_ends_both_with_its_code_and_reason(tmp_path, cause):
    action, code, text = CAUSES[cause]
    nodes = two_nodes(tmp_path, gloo(action))
    for found, err in nodes.ends():
        assert found == code, err
        assert text in err
        assert "Traceback" not in err
    assert [words(log).message for log in nodes.logs] == [words(nodes.logs[1]).message] * 2
    last = list(read_events(nodes.config.parent / "events.jsonl", "stage"))[-1]
    assert (last["status"], last["exit_code"]) == ("failed", code)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_launcher_that_is_killed_ends_the_other_node_with_137(tmp_path, victim):
    nodes = two_nodes(tmp_path, gloo())
    wait_for_line(nodes.processes[0], "step=1/")
    nodes.processes[victim].kill()
    ends = nodes.ends()
    assert ends[victim][0] == -signal.SIGKILL
    code, err = ends[1 - victim]
    assert code == 137, err
    assert f"node {victim} of 2 is gone" in words(nodes.logs[1 - victim]).message
    assert "Traceback" not in err


# Without torch in the ranks: they never meet, so what ends them is what their launchers tell each other.
APART = """
def run(context):
    context.stop.signum
    (context.dir / f"polls-{context.topology.rank}").touch()
    for step in range(1, 1_000_000):
        context.emit("step", step=step, steps=1_000_000, unit="step")
        context.raise_if_stopped(f"step {step} is saved")
        time.sleep(0.005)
        if step == 3:
            ACTION
"""


@pytest.mark.parametrize(("signum", "code", "asked"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 0)])
def test_a_signal_to_one_launcher_stops_the_ranks_of_all_nodes(tmp_path, signum, code, asked):
    nodes = two_nodes(tmp_path, APART.replace("ACTION", "pass"))
    wait_until(lambda: all((nodes.config.parent / f"polls-{rank}").exists() for rank in range(2)))
    nodes.processes[asked].send_signal(signum)
    for found, err in nodes.ends():
        assert found == code, err
        assert "Traceback" not in err
    for log in nodes.logs:
        assert "is saved" in words(log).message
    nodes.fake.stage("base_train", "def run(context):\n    return StageResult()\n")
    code, _, err = end(nodes.fake.launch(nodes.config), PATIENCE_S)
    assert code == 0, err


def test_a_hang_is_seen_by_the_first_node_and_ends_both(tmp_path):
    stuck = APART.replace("ACTION", "while True: time.sleep(0.05)")
    nodes = two_nodes(tmp_path, stuck, "--hang-s", "2")
    for code, err in nodes.ends():
        assert code == 202, err
        assert "showed no progress" in err
        assert "in run" in err, "each node shows the stacks of its ranks"


def test_a_failure_where_no_rank_waits_for_another_ends_both_nodes_too(tmp_path):
    alone = 'if context.topology.rank == 1: raise DivergedError("loss is nan")'
    nodes = two_nodes(tmp_path, APART.replace("ACTION", alone))
    assert [code for code, _ in nodes.ends()] == [70, 70]


def test_both_nodes_end_when_the_first_has_written_the_record(tmp_path):
    nodes = two_nodes(tmp_path, "def run(context):\n    return StageResult(metrics={'answer': 42})\n")
    assert [code for code, _ in nodes.ends()] == [0, 0]
    record = Record.load(nodes.config.parent)
    assert words(nodes.logs[0]).record == record.hash
    assert words(nodes.logs[0]).metrics == {"answer": 42}
    assert nodes.logs[1].read_text() == ""


def test_a_stage_without_ranks_is_the_first_node_s_alone(tmp_path):
    nodes = two_nodes(tmp_path, "", stage="tok_eval")
    assert nodes.ends()[1] == (0, "")
    assert words(nodes.logs[0]).status == "done"
    assert nodes.logs[1].read_text() == ""
    assert list(Record.load(nodes.config.parent).outputs) == ["runs/r/tok_eval/out.txt"]


def test_a_signal_ends_a_node_that_waits_for_the_others(tmp_path):
    fake, config = prepared(tmp_path, gloo())
    nodes, port = TwoNodes(fake, config, [], []), free_port()
    nodes.start_node(1, port)
    for process in nodes.processes:
        wait_for_line(process, "waits for node 0")
        process.send_signal(signal.SIGTERM)
    for code, err in nodes.ends():
        assert code == 143, err
        assert "stage `base_train` is not finished" in err

"""`kill -9`, a full volume and two processes at once: the dataset is whole or the next run makes it whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.data.manifest import load
from nanochat.data.prepare import prepare
from nanochat.data.verify import verify_dataset
from nanochat.settings import Home

ROOT = Path(__file__).parents[2]
PREPARE = """
import os, signal, sys
from pathlib import Path
from nanochat.data.prepare import prepare
from nanochat.errors import NanochatError
from nanochat.settings import Home

def run():
    try:
        prepare(Home(Path(sys.argv[1])), source="generated")
    except NanochatError as error:
        print(error.render())
        sys.exit(error.exit_code)
"""
KILL_AT_SYNC = (
    PREPARE
    + """
left, sync = int(sys.argv[2]), os.fsync
def fsync(fd):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(fd)
os.fsync = fsync
run()
"""
)
SMALL_VOLUME = (
    PREPARE
    + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
run()
"""
)


def child(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return load(prepare(Home(tmp_path_factory.mktemp("whole")), source="generated"))


@pytest.mark.parametrize("syncs", [1, 2, 9, 16, 22, 24, 25])
def test_after_kill_9_at_any_write_the_next_run_makes_the_same_dataset(tmp_path, expected, syncs):
    process = child(KILL_AT_SYNC, tmp_path, syncs)
    process.communicate()
    home = Home(tmp_path)
    if process.returncode == 0:
        pytest.fail("the build has fewer writes than this test thinks")
    assert process.returncode == -9
    folder = prepare(home, source="generated")
    assert verify_dataset(folder) == expected
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {"generated", ".generated.lock"}


@pytest.mark.parametrize("limit_bytes", [0, 30_000, 60_000])
def test_a_full_volume_is_exit_201_names_the_file_and_the_next_run_succeeds(tmp_path, expected, limit_bytes):
    process = child(SMALL_VOLUME, tmp_path, limit_bytes)
    output, _ = process.communicate()
    assert process.returncode == 201, output
    assert f"error: cannot write `{tmp_path}/datasets/.generated.building/" in output
    assert "hint: free space" in output
    assert not (tmp_path / "datasets/generated").exists()
    assert verify_dataset(prepare(Home(tmp_path), source="generated")) == expected


def test_two_processes_that_prepare_at_once_make_one_dataset(tmp_path, expected):
    processes = [child(PREPARE + "run()", tmp_path) for _ in range(3)]
    assert [process.communicate() for process in processes] == [("", None)] * 3
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert verify_dataset(Home(tmp_path).dataset("generated")) == expected

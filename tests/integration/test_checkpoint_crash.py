"""`kill -9` at every file operation of a save: a reader finds the old or the new checkpoint, never a mix."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fakes_run import ROOT


def run_writer(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "crash_writer.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(180)
def test_a_writer_killed_at_any_of_its_file_operations_leaves_a_whole_checkpoint(tmp_path):
    result = run_writer(tmp_path)
    assert {name: found["wrong"] for name, found in result.items() if found["wrong"]} == {}
    assert sum(found["points"] for found in result.values()) >= 90
    check_durability_order(result["two_checkpoints"]["names"])


def check_durability_order(names):
    """Every file is synced before the publishing rename, and the parent folder right after it."""
    publish = next(i for i, name in enumerate(names) if name == "os.rename")
    before = names[:publish]
    writes = [i for i, name in enumerate(before) if name == "write"]
    assert before[writes[-1] :].count("fsync") >= 2, "manifest and folder are synced before the rename"
    assert before.count("fsync") >= before.count("write") // 2
    assert "fsync" in names[publish + 1 : publish + 4], "the parent folder is synced after the rename"

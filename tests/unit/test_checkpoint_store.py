"""The commit protocol in one process: what comes back, what is refused, what is kept."""

from __future__ import annotations

import errno
import json
import os
import random
import threading

import pytest
import torch
from safetensors.torch import load_file

from nanochat.checkpoint import folder as committed
from nanochat.checkpoint.commit import CheckpointStore
from nanochat.checkpoint.folder import read_manifest, verify
from nanochat.checkpoint.tensors import entry_of, read_tensors, write_tensors
from nanochat.errors import ConfigError, DataError, RunLockedError, StorageError
from nanochat.files import sha256_file
from nanochat.settings import Topology

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def tensors(step, *, rows=3):
    return {"a.weight": torch.full((rows, 5), float(step)), "b": torch.tensor(step, dtype=torch.bfloat16)}


def save(store, step, **options):
    state = {"step": step, "position": {"row": step * 7}}
    return store.save(step, model=tensors(step), optim={"a.m": torch.ones(4) * step}, state=state, **options)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "r" / "base_train")


def test_what_was_saved_comes_back(store):
    assert store.latest() is None
    size = save(store, 10)
    found = store.latest()
    assert found.step == 10
    assert found.state == {"step": 10, "position": {"row": 70}}
    assert found.bytes == size
    loaded = found.load_model()
    assert set(loaded) == {"a.weight", "b"}
    assert torch.equal(loaded["a.weight"], torch.full((3, 5), 10.0))
    assert loaded["b"].dtype == torch.bfloat16
    assert torch.equal(found.load_optim()["a.m"], torch.full((4,), 10.0))


def test_the_layout_is_the_contract(store):
    save(store, 1000)
    path = store.folder / "step-00001000"
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optim-rank00000-of-00001.safetensors",
        "state.json",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 1000
    assert manifest["world_size"] == 1
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (path / name).stat().st_size, "sha256": sha256_file(path / name)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_files_are_what_the_safetensors_library_reads(tmp_path, dtype):
    made = {
        "matrix": torch.arange(12).reshape(3, 4).to(dtype),
        "turned": torch.arange(12).reshape(3, 4).to(dtype).T,
        "scalar": torch.ones((), dtype=dtype),
        "empty": torch.ones((0, 3), dtype=dtype),
        "ümlaut": torch.zeros(1, dtype=dtype),
    }
    entry = write_tensors(tmp_path / "x.safetensors", made)
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(made)
    for name, tensor in made.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)
    assert entry == entry_of(made)
    assert entry["sha256"] == sha256_file(tmp_path / "x.safetensors")


def test_large_tensors_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.checkpoint.tensors._CHUNK_BYTES", 100)
    made = {"a": torch.arange(1000, dtype=torch.float32), "b": torch.arange(77, dtype=torch.uint8)}
    write_tensors(tmp_path / "x", made)
    assert all(torch.equal(read_tensors(tmp_path / "x")[name], tensor) for name, tensor in made.items())


def test_the_newest_two_are_kept_and_nothing_else_is_left(store):
    for step in (1, 2, 3, 4):
        save(store, step)
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000003", "step-00000004"]


def test_keeping_fewer_than_two_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep is 1"):
        CheckpointStore(tmp_path, keep=1)


def test_steps_of_more_than_eight_digits_stay_in_order(store):
    save(store, 99_999_999)
    save(store, 123_456_789)
    assert store.steps() == [99_999_999, 123_456_789]
    assert store.latest().step == 123_456_789


def damage_cases():
    return {
        "truncated": lambda p: os.truncate(p / "model.safetensors", 40),
        "longer": lambda p: os.truncate(p / "model.safetensors", 4000),
        "zero bytes": lambda p: os.truncate(p / "optim-rank00000-of-00001.safetensors", 0),
        "file missing": lambda p: (p / "optim-rank00000-of-00001.safetensors").unlink(),
        "manifest missing": lambda p: (p / "manifest.json").unlink(),
        "manifest empty": lambda p: os.truncate(p / "manifest.json", 0),
        "manifest half": lambda p: os.truncate(p / "manifest.json", 100),
        "manifest is a list": lambda p: (p / "manifest.json").write_text("[]"),
        "manifest names a path": lambda p: rename_entry(p, "state.json", "../state.json"),
        "extra file": lambda p: (p / "extra").write_text("x"),
        "swapped files": swap,
        "link instead of a file": link,
    }


def rename_entry(path, old, new):
    values = json.loads((path / "manifest.json").read_text())
    del values["sha256"]
    values["files"][new] = values["files"].pop(old)
    values["sha256"] = committed.hash_json(values)
    (path / "manifest.json").write_text(json.dumps(values))


def swap(path):
    first, second = path / "model.safetensors", path / "optim-rank00000-of-00001.safetensors"
    first.rename(path / "x")
    second.rename(first)
    (path / "x").rename(second)


def link(path):
    (path / "state.json").rename(path.parent / "elsewhere.json")
    (path / "state.json").symlink_to(path.parent / "elsewhere.json")


@pytest.mark.parametrize("case", damage_cases())
def test_a_damaged_checkpoint_is_named_set_aside_and_never_loaded(store, capsys, case):
    save(store, 1)
    save(store, 2)
    damage_cases()[case](store.folder / "step-00000002")
    found = store.latest()
    assert found.step == 1
    assert torch.equal(found.load_model()["a.weight"], torch.full((3, 5), 1.0))
    assert (store.folder / "damaged-step-00000002").is_dir()
    assert store.steps() == [1]
    assert "checkpoints/step-00000002" in capsys.readouterr().err
    save(store, 2)
    assert store.latest().step == 2


def flip(path, bit):
    """Flip one bit of a file, in place."""
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, bit // 8)[0]
    os.pwrite(fd, bytes([byte ^ (1 << bit % 8)]), bit // 8)
    os.close(fd)


def test_a_thousand_single_bit_flips_are_all_found(store):
    save(store, 1)
    path = store.folder / "step-00000001"
    files = sorted(path.iterdir())
    random_ = random.Random(7)
    verify(path)
    for _ in range(1000):
        file = random_.choice(files)
        bit = random_.randrange(8 * file.stat().st_size)
        flip(file, bit)
        with pytest.raises(DataError):
            verify(path)
        flip(file, bit)
    verify(path)


def test_a_message_names_file_sizes_and_folder(store):
    save(store, 1)
    path = store.folder / "step-00000001"
    os.truncate(path / "state.json", 10)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert "`checkpoints/step-00000001` does not match its manifest: `state.json` has 10 bytes" in str(
        caught.value
    )


def test_saving_a_step_that_is_there_and_whole_keeps_it(store):
    save(store, 5)
    before = (store.folder / "step-00000005" / "manifest.json").stat().st_ino
    save(store, 5)
    assert (store.folder / "step-00000005" / "manifest.json").stat().st_ino == before
    assert store.steps() == [5]


def test_saving_over_a_damaged_one_moves_it_aside(store):
    save(store, 5)
    os.truncate(store.folder / "step-00000005" / "model.safetensors", 10)
    save(store, 5)
    assert store.latest().step == 5
    assert (store.folder / "damaged-step-00000005").is_dir()
    os.truncate(store.folder / "step-00000005" / "model.safetensors", 10)
    save(store, 5)
    assert (store.folder / "damaged-step-00000005-2").is_dir()


@pytest.mark.parametrize(
    ("at", "number"), [*((at, errno.ENOSPC) for at in range(7)), (3, errno.EIO), (3, errno.EDQUOT)]
)
def test_a_full_volume_at_any_write_publishes_nothing_and_the_next_save_works(store, monkeypatch, number, at):
    save(store, 1)
    left = [at]
    write = committed.HashingFile.write

    def failing(self, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return write(self, data)

    monkeypatch.setattr(committed.HashingFile, "write", failing)
    with pytest.raises(StorageError, match=r"incoming|step-"):
        save(store, 2)
    assert [p.name for p in store.folder.iterdir()] == ["step-00000001"]
    monkeypatch.undo()
    save(store, 2)
    assert store.latest().step == 2


def test_a_writer_that_another_attempt_replaced_publishes_nothing(tmp_path):
    owner = tmp_path / "r" / "owner"
    owner.parent.mkdir()
    owner.write_text('{"attempt": 3}')
    stale = CheckpointStore(tmp_path / "r" / "base_train")
    save(stale, 1)
    owner.write_text('{"attempt": 4}')
    begun = tmp_path / "r" / "base_train" / "checkpoints" / ".incoming-00000002-4"
    begun.mkdir()
    with pytest.raises(RunLockedError, match="attempt 4 took over"):
        save(stale, 2)
    assert begun.exists(), "what the later attempt is writing is not the stale one's to tidy"
    fresh = CheckpointStore(tmp_path / "r" / "base_train")
    assert fresh.latest().step == 1
    save(fresh, 2)
    assert fresh.latest().step == 2


def test_left_overs_of_dead_writers_are_swept_by_the_next_save(store):
    (store.folder / ".incoming-00000001-0").mkdir(parents=True)
    (store.folder / ".incoming-00000001-0" / "half").write_text("x")
    (store.folder / ".removing-step-00000000").mkdir()
    assert store.latest() is None
    save(store, 2)
    assert [p.name for p in store.folder.iterdir()] == ["step-00000002"]


class Threads:
    """A process group of threads: the two calls as barriers."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size, timeout=20)
        self._values = [None] * size

    def rank(self, rank):
        return Member(self, rank)

    def gather(self, rank, value):
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values


class Member:
    def __init__(self, threads, rank):
        self._threads, self.rank = threads, rank

    def agree(self, ok):
        return all(self._threads.gather(self.rank, ok))

    def share(self, number):
        return self._threads.gather(self.rank, number)[0]


def on_ranks(size, work):
    """Run `work(rank, group)` on threads; returns results and errors by rank."""
    group, results = Threads(size), [None] * size

    def one(rank):
        try:
            results[rank] = work(rank, group.rank(rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def sharded_save(tmp_path, size, step, *, fail=None):
    def work(rank, group):
        store = CheckpointStore(tmp_path / "r" / "s", group=group)
        optim = {f"p{rank}.m": torch.full((3,), float(rank)), "same": torch.ones(1) * step}
        if rank == fail:
            optim["bad"] = Broken()
        place = Topology(rank, rank, size)
        return store.save(step, model=tensors(step), optim=optim, state={"step": step}, topology=place)

    return on_ranks(size, work)


class Broken:
    """Looks like a tensor until its bytes are wanted."""

    dtype, shape = torch.float32, (1,)

    def numel(self):
        return 1

    def element_size(self):
        return 4

    def detach(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_four_ranks_save_one_checkpoint_that_any_rank_count_loads(tmp_path):
    assert all(isinstance(size, int) for size in sharded_save(tmp_path, 4, 3))
    path = tmp_path / "r" / "s" / "checkpoints" / "step-00000003"
    assert sorted(p.name for p in path.glob("optim*")) == [
        f"optim-rank{rank:05d}-of-00004.safetensors" for rank in range(4)
    ]
    assert not list(path.glob("*.safetensors.json"))
    for size in (1, 2):

        def load(rank, group):
            return CheckpointStore(tmp_path / "r" / "s", group=group).latest()

        for found in on_ranks(size, load):
            assert found.step == 3
            assert set(found.load_optim()) == {"p0.m", "p1.m", "p2.m", "p3.m", "same"}


@pytest.mark.parametrize("fail", [0, 2])
def test_one_rank_that_cannot_write_fails_the_save_on_all_and_none_hangs(tmp_path, fail):
    sharded_save(tmp_path, 3, 1)
    for _ in range(2):
        results = sharded_save(tmp_path, 3, 2, fail=fail)
        assert all(isinstance(error, StorageError) for error in results), results
        assert [p.name for p in (tmp_path / "r" / "s" / "checkpoints").iterdir()] == ["step-00000001"]
    sharded_save(tmp_path, 3, 2)
    assert CheckpointStore(tmp_path / "r" / "s").latest().step == 2


def test_ranks_agree_on_an_older_checkpoint_when_the_newest_is_damaged(tmp_path):
    sharded_save(tmp_path, 2, 1)
    sharded_save(tmp_path, 2, 2)
    os.truncate(tmp_path / "r" / "s" / "checkpoints" / "step-00000002" / "model.safetensors", 9)

    def load(rank, group):
        return CheckpointStore(tmp_path / "r" / "s", group=group).latest().step

    assert on_ranks(2, load) == [1, 1]

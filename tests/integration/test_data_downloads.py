"""Downloads against a hub on loopback that cuts, stalls, corrupts, redirects and refuses."""

from __future__ import annotations

import hashlib
import random

import pytest
from hub_server import serve

from nanochat.data.fetch import Downloader, Item, Policy
from nanochat.errors import DataError, StorageError, UnavailableError

DATA = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def hub():
    with serve() as hub:
        hub.files["/a"] = DATA
        yield hub


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def downloader(pauses):
    return Downloader(Policy(workers=4, stall_s=0.3, connect_s=1.0, attempts=3), pause=pauses.append, seed=1)


def fetch(downloader, *items):
    downloader.fetch(items, report=lambda done, total: None)


def test_many_files_arrive_whole_and_progress_ends_at_all(hub, downloader, tmp_path):
    items = []
    for index in range(12):
        hub.files[f"/{index}"] = DATA[: 1000 * (index + 1)]
        items.append(Item(f"{hub.url}/{index}", tmp_path / "deep" / str(index)))
    progress = []
    downloader.fetch(items, report=lambda done, total: progress.append((done, total)))
    assert [item.path.read_bytes() for item in items] == [DATA[: 1000 * (i + 1)] for i in range(12)]
    assert progress[0] == (0, 12)
    assert progress[-1] == (12, 12)
    assert len(list((tmp_path / "deep").iterdir())) == 12, "no part file may be left"


def test_a_file_that_is_there_is_not_asked_for(hub, downloader, tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a"))
    assert hub.requests == []
    assert (tmp_path / "a").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "faults",
    [
        [("cut", 100_000)],
        [("cut", 100_000), ("cut", 50_000), ("cut", 1)],
        [("stall", 120_000)],
        [("cut", 100_000), ("status", 503), ("cut", 10_000)],
    ],
    ids=lambda faults: "+".join(str(fault[0]) for fault in faults),
)
def test_an_interrupted_download_goes_on_where_it_stopped(hub, downloader, tmp_path, faults):
    hub.faults["/a"] = list(faults)
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a", SHA256))
    assert (tmp_path / "a").read_bytes() == DATA
    assert hub.sent["/a"] == len(DATA), "no byte is sent twice"
    assert hub.ranges("/a")[0] is None
    assert hub.ranges("/a")[1] == f"bytes={faults[0][1]}-"


def test_a_later_process_continues_the_part_file(hub, tmp_path):
    item = Item(f"{hub.url}/a", tmp_path / "a", SHA256)
    hub.faults["/a"] = [("cut", 200_000), ("status", 503), ("status", 503)]
    impatient = Downloader(Policy(attempts=2), pause=lambda s: None)
    with pytest.raises(UnavailableError, match="503"):
        fetch(impatient, item)
    assert not item.path.exists()
    hub.faults.clear()
    fetch(Downloader(pause=lambda s: None), item)
    assert item.path.read_bytes() == DATA
    assert hub.ranges("/a")[-1] == "bytes=200000-"


def test_a_whole_part_file_needs_no_more_bytes(hub, downloader, tmp_path):
    item = Item(f"{hub.url}/a", tmp_path / "a", SHA256)
    (tmp_path / ".a.part").write_bytes(DATA)
    (tmp_path / ".a.json").write_text('{"url": "%s", "etag": null, "sha256": null}' % item.url)  # noqa: UP031
    fetch(downloader, item)
    assert item.path.read_bytes() == DATA
    assert hub.sent["/a"] == 0


def test_a_server_without_ranges_starts_over(hub, downloader, tmp_path):
    hub.faults["/a"] = [("cut", 100_000), ("ignore-range",)]
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a", SHA256))
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_file_that_changed_meanwhile_is_not_glued_together(hub, downloader, tmp_path, monkeypatch):
    hub.faults["/a"] = [("cut", 100_000)]
    changed = DATA[::-1]
    monkeypatch.setattr(downloader, "_pause", lambda s: hub.files.update({"/a": changed}))
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == changed


def test_a_part_file_of_another_address_is_not_continued(hub, downloader, tmp_path):
    (tmp_path / ".a.part").write_bytes(b"something else")
    (tmp_path / ".a.json").write_text('{"url": "http://elsewhere/a", "etag": null, "sha256": null}')
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a", SHA256))
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_corrupt_transfer_is_repeated_and_then_accepted(hub, downloader, tmp_path):
    hub.faults["/a"] = [("corrupt",)]
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a", SHA256))
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_file_that_is_always_wrong_is_refused_by_name(hub, downloader, tmp_path):
    item = Item(f"{hub.url}/a", tmp_path / "a", "0" * 64)
    with pytest.raises(DataError, match=r"/a` arrives damaged: its sha256 is " + SHA256):
        fetch(downloader, item)
    assert not item.path.exists()
    assert len(hub.requests) == 2


def test_a_content_check_that_fails_is_reported_and_nothing_is_left(hub, downloader, tmp_path):
    def check(path):
        raise DataError("it has no column `text`")

    with pytest.raises(DataError, match="it has no column `text`"):
        fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a", check=check))
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".json"])


def test_redirects_are_followed_with_the_range_and_the_announced_checksum_counts(hub, downloader, tmp_path):
    hub.files["/cdn"] = DATA
    hub.faults["/a"] = [("redirect", "/cdn", {"X-Linked-ETag": f'"{SHA256}"'})] * 2
    hub.faults["/cdn"] = [("cut", 77_000)]
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == DATA
    assert hub.ranges("/cdn") == [None, "bytes=77000-"]

    hub.faults["/a"] = [("redirect", "/cdn", {"X-Linked-ETag": f'"{"1" * 64}"'})] * 2
    with pytest.raises(DataError, match="sha256"):
        fetch(downloader, Item(f"{hub.url}/a", tmp_path / "b"))


def test_the_wait_that_the_server_asks_for_is_kept(hub, downloader, tmp_path, pauses):
    hub.faults["/a"] = [("status", 429, {"Retry-After": "7"}), ("status", 503)]
    fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a"))
    assert pauses[0] == 7.0
    assert 1.0 <= pauses[1] <= 2.0


@pytest.mark.parametrize(("status", "hint"), [(404, "check the address"), (403, "refuses access")])
def test_a_refusal_that_a_retry_cannot_mend_is_final_at_once(hub, downloader, tmp_path, status, hint):
    hub.faults["/a"] = [("status", status)]
    with pytest.raises(UnavailableError, match=str(status)) as caught:
        fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a"))
    assert hint in caught.value.hint
    assert len(hub.requests) == 1


def test_a_dead_address_is_given_up_after_the_attempts(downloader, tmp_path, pauses):
    with serve() as gone:
        url = gone.url
    with pytest.raises(UnavailableError, match="cannot fetch") as caught:
        fetch(downloader, Item(f"{url}/a", tmp_path / "a"))
    assert caught.value.exit_code == 69
    assert len(pauses) == 2, "three attempts, two waits"
    assert pauses[1] > pauses[0]


def test_no_space_left_is_a_storage_error_that_names_the_file(hub, downloader, tmp_path):
    (tmp_path / ".a.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"/a`: No space left"):
        fetch(downloader, Item(f"{hub.url}/a", tmp_path / "a"))


def test_a_report_that_raises_stops_the_downloads(hub, tmp_path):
    hub.faults["/a"] = [("stall", 1000)]
    downloader = Downloader(Policy(stall_s=1.5))

    def report(done, total):
        if hub.stalled.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        downloader.fetch([Item(f"{hub.url}/a", tmp_path / "a")], report=report)
    assert (tmp_path / ".a.part").stat().st_size == 1000

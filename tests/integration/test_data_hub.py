"""The production data path from end to end, against a hub on loopback that serves the same schemas."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import serve

from nanochat.data.fetch import Downloader, Policy
from nanochat.data.manifest import load
from nanochat.data.prepare import prepare
from nanochat.data.shards import iter_documents, read_texts
from nanochat.data.sources import load_sources
from nanochat.data.verify import verify_dataset
from nanochat.data.web import SETS
from nanochat.errors import DataError, UnavailableError
from nanochat.settings import Home

LEAK = "how many legs do seven spiders and four ants have when they all sit together on one leaf"
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day to you"}]
TWO_SHARDS, THREE_SHARDS = 1, 50_000_000  # tokens that need so many, validation included


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd", row_group_size=16)
    return sink.getvalue()


def choice(question: str) -> dict:
    return {"question": question, "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}


def mmlu(question: str) -> dict:
    return {"question": question, "subject": "biology", "choices": ["w", "x", "y", "z"], "answer": 3}


def bundle() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("eval_bundle/core.yaml", "tasks: []\n")
        archive.writestr("eval_bundle/eval_meta_data.csv", "a,b\n")
    return sink.getvalue()


SET_ROWS = {
    "smoltalk-train": [
        {"messages": MESSAGES},
        {"messages": [{"role": "user", "content": LEAK}, {"role": "assistant", "content": "Many."}]},
        {"messages": MESSAGES[:1]},
    ],
    "smoltalk-test": [{"messages": MESSAGES}],
    "mmlu-auxiliary": [{"train": mmlu("What is a cell?") | {"subject": ""}}, {"train": mmlu(LEAK)}],
    "mmlu-test": [mmlu(LEAK)],
    "gsm8k-train": [{"question": "One and one?", "answer": "1+1=<<1+1=2>>2\n#### 2"}],
    "gsm8k-test": [{"question": "Two and two?", "answer": "#### 4"}],
    "arc_easy-train": [choice("What melts?")],
    "arc_easy-test": [choice("What freezes?")],
    "arc_challenge-train": [choice("What boils?")],
    "arc_challenge-test": [choice("What burns?")],
    "humaneval": [
        {"task_id": "t/0", "prompt": "def f():", "canonical_solution": " 1", "test": "-", "entry_point": "f"}
    ],
}


@pytest.fixture
def hub():
    with serve() as hub:
        for index in (0, 1, 2, 6542):
            texts = [f"Document {number} of shard {index}, with some words." for number in range(40)]
            hub.files[f"/text/shard_{index:05d}.parquet"] = parquet([{"text": text} for text in texts])
        for name, rows in SET_ROWS.items():
            hub.files[f"/{name}/0.parquet"] = parquet(rows)
        for index in range(1, 4):
            hub.files[f"/smoltalk-train/{index}.parquet"] = parquet(SET_ROWS["smoltalk-train"][:1])
        hub.files["/core/0.parquet"] = bundle()
        yield hub


@pytest.fixture
def home(hub, tmp_path):
    lines = []
    for name in SETS:
        index = "{index}" if load_sources().hub[name].files else "0"
        lines += [f"[hub.{name}]", f'url = "{hub.url}/{name}/{index}.parquet"']
    lines += ["[hub.climbmix]", f'url = "{hub.url}/text/shard_{{index:05d}}.parquet"']
    (tmp_path / "sources.toml").write_text("\n".join(lines))
    return Home(tmp_path)


def make(home, *, tokens=TWO_SHARDS, **options):
    fetcher = Downloader(Policy(stall_s=0.5, connect_s=1.0, attempts=8), pause=lambda s: None)
    return prepare(home, source="climbmix", tokens=tokens, fetcher=fetcher, **options)


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_exactly_what_the_run_needs_is_fetched_and_the_last_file_is_validation(hub, home):
    folder = make(home)
    manifest = verify_dataset(folder)
    assert manifest.shards == ("shard_00000.parquet", "shard_06542.parquet")
    texts = {path for path, _ in hub.requests if path.startswith("/text")}
    assert texts == {"/text/shard_00000.parquet", "/text/shard_06542.parquet"}
    assert next(iter_documents(folder, "train")).startswith("Document 0 of shard 0,")
    assert next(iter_documents(folder, "val")).startswith("Document 0 of shard 6542,")
    assert (manifest.documents, manifest.utf8_bytes) == (
        40,
        sum(len(t) for t in iter_documents(folder, "train")),
    )
    assert len(list(read_texts(folder / "heldout/climbmix.parquet"))) == 40


def test_chat_and_evaluation_sets_have_the_schemas_of_the_package_sources(hub, home):
    folder = make(home)
    assert rows(folder, "chat/smoltalk-test.jsonl") == [{"messages": MESSAGES}]
    assert rows(folder, "eval/mmlu-test.jsonl") == [
        {"question": LEAK, "choices": ["w", "x", "y", "z"], "answer": 3, "subject": "biology"}
    ]
    assert rows(folder, "eval/arc_easy-test.jsonl") == [
        {"question": "What freezes?", "choices": ["a", "b"], "answer": 1, "subject": None}
    ]
    assert rows(folder, "eval/gsm8k-train.jsonl") == SET_ROWS["gsm8k-train"]
    assert rows(folder, "eval/humaneval-test.jsonl")[0]["entry_point"] == "f"
    assert zipfile.ZipFile(folder / "eval/core_bundle.zip").namelist()[0] == "eval_bundle/core.yaml"
    card = (folder / "DATASET.md").read_text()
    assert "CC BY-SA 4.0" in card
    assert "Nemotron-ClimbMix" in card


def test_conversations_and_problems_with_a_held_out_question_are_left_out(hub, home):
    folder = make(home)
    assert rows(folder, "chat/smoltalk-train.jsonl") == [{"messages": MESSAGES}] * 4
    questions = [row["question"] for row in rows(folder, "chat/mc-train.jsonl")]
    assert questions == ["What is a cell?", "What melts?", "What boils?"]


def test_a_repeat_asks_for_nothing_and_a_longer_run_only_for_what_is_new(hub, home):
    make(home)
    hub.requests.clear()
    make(home)
    assert hub.requests == []
    folder = make(home, tokens=THREE_SHARDS)
    assert [path for path, _ in hub.requests] == ["/text/shard_00001.parquet"]
    assert verify_dataset(folder).shards[1] == "shard_00001.parquet"
    hub.requests.clear()
    assert len(load(make(home)).shards) == 3, "a shorter run uses what is there"
    assert hub.requests == []


def test_a_hub_that_misbehaves_everywhere_still_gives_the_same_dataset(hub, home, tmp_path_factory):
    clean = load(make(home)).hash
    for path in hub.files:
        hub.faults[path] = [("cut", 10), ("status", 503), ("stall", 5), ("status", 429, {"Retry-After": "1"})]
    other = Home(tmp_path_factory.mktemp("other"))
    (other.root / "sources.toml").write_text((home.root / "sources.toml").read_text())
    assert load(make(other)).hash == clean


def test_without_a_network_the_error_says_what_is_cached_and_how_to_go_on(hub, home):
    missing = hub.files.pop("/text/shard_06542.parquet")
    hub.faults["/text/shard_06542.parquet"] = [("status", 503)] * 10
    with pytest.raises(UnavailableError, match="shard_06542") as caught:
        make(home)
    assert caught.value.exit_code == 69
    assert "of 17 files are complete" in caught.value.hint
    assert "--source generated" in caught.value.hint
    hub.files["/text/shard_06542.parquet"] = missing
    hub.faults.clear()
    verify_dataset(make(home))


def test_a_wrong_schema_names_the_address_and_the_column(hub, home):
    hub.files["/text/shard_00000.parquet"] = parquet([{"content": "x"}])
    with pytest.raises(DataError, match=r"shard_00000.parquet` arrives damaged: it has no column `text`"):
        make(home)


def test_a_row_of_another_form_names_the_file_and_the_row(hub, home):
    hub.files["/arc_easy-test/0.parquet"] = parquet([choice("fine"), choice("odd") | {"answerKey": "9"}])
    with pytest.raises(DataError, match=r"row 1: not a arc_easy-test row"):
        make(home)


def test_a_deleted_shard_is_fetched_again(hub, home):
    folder = make(home)
    (folder / "shard_00000.parquet").unlink()
    with pytest.raises(DataError, match=r"shard_00000\.parquet` is missing"):
        verify_dataset(folder)
    hub.requests.clear()
    verify_dataset(make(home))
    assert [path for path, _ in hub.requests] == ["/text/shard_00000.parquet"]


def test_a_killed_download_goes_on_in_the_next_process(hub, home):
    big = parquet([{"text": os.urandom(500).hex()} for _ in range(300)])
    hub.files["/text/shard_00000.parquet"] = big
    hub.faults["/text/shard_00000.parquet"] = [("stall", 100_000)]
    code = (
        "import sys; from pathlib import Path; from nanochat.settings import Home;"
        "from nanochat.data.prepare import prepare;"
        "prepare(Home(Path(sys.argv[1])), source='climbmix', tokens=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(home.root)], cwd=Path(__file__).parents[2])
    assert hub.stalled.wait(30)
    part = home.dataset("climbmix") / ".shard_00000.parquet.part"
    while not part.exists() or part.stat().st_size < 100_000:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    verify_dataset(make(home))
    assert hub.ranges("/text/shard_00000.parquet") == [None, "bytes=100000-"]
    assert hub.sent["/text/shard_00000.parquet"] == len(big)

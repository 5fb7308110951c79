"""What midtraining and fine-tuning read, and what evaluation asks: the tables of shares.

A pure function of (dataset folder, preset, seed): the same conversations in the same
order on every machine. Knows nothing of tokens, rows or steps; training that needs
more than one pass starts over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nanochat.chat import find_fault
from nanochat.errors import DataError
from nanochat.tasks import arithmetic, gsm8k, identity, multiple_choice, read, spelling
from nanochat.tasks.problem import Choice, Conversation, Problem
from nanochat.tasks.stable import fraction, stream


class Spec(Protocol):
    """The part of a run's configuration that a mixture depends on."""

    @property
    def preset(self) -> str:
        """Name of the preset; it chooses the table."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a task goes in: `count` conversations, or `epochs` passes over all of it."""

    task: str
    count: int | None = None
    epochs: float = 1.0


# A task that the dataset lacks is left out; a chat file that the table lacks goes in once.
MID: dict[str, tuple[Share, ...]] = {
    "smoke": (
        Share("arithmetic", 400),
        Share("spelling", 60),
        Share("identity"),
        Share("generated_chat", 300),
        Share("mc", 40),
    ),
    "tiny": (
        Share("arithmetic", 9_000),
        Share("spelling", 4_000),
        Share("identity", epochs=2),
        Share("chitchat", 3_000),
        Share("wiki_qa", 3_500),
        Share("generated_chat", 2_500),
        Share("smoltalk", 3_000),
        Share("mc", 400),
    ),
    "full": (
        Share("smoltalk"),
        Share("mc"),
        Share("gsm8k"),
        Share("identity", epochs=2),
        Share("spelling", 200_000),
        Share("arithmetic", 20_000),
    ),
}
SFT: dict[str, tuple[Share, ...]] = {
    "smoke": (
        Share("arithmetic", 200),
        Share("spelling", 30),
        Share("identity"),
        Share("generated_chat", 150),
        Share("mc", 20),
    ),
    "tiny": (
        Share("arithmetic", 3_500),
        Share("spelling", 2_500),
        Share("identity", epochs=4),
        Share("chitchat", 1_500),
        Share("wiki_qa", 2_000),
        Share("generated_chat", 1_000),
        Share("smoltalk", 1_500),
        Share("mc", 300),
    ),
    "full": (
        Share("smoltalk"),
        Share("mc", epochs=3),
        Share("gsm8k", epochs=4),
        Share("identity", epochs=2),
        Share("spelling", 600),
        Share("arithmetic", 5_000),
    ),
}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The problems of each task that has some, none of which is ever trained on."""

    choice: dict[str, list[Choice]]
    generative: dict[str, list[Problem]]


def mid_conversations(dataset: Path, *, seed: int, spec: Spec) -> list[Conversation]:
    """Return the conversations of midtraining, shuffled.

    Raises:
        DataError: a chat file is damaged.
    """
    return _mix(dataset, MID.get(spec.preset, MID["full"]), seed=seed, name="mid")


def sft_conversations(dataset: Path, *, seed: int, spec: Spec) -> list[Conversation]:
    """Return the conversations of fine-tuning, shuffled; another sample than midtraining's.

    Raises:
        DataError: a chat file is damaged.
    """
    return _mix(dataset, SFT.get(spec.preset, SFT["full"]), seed=seed, name="sft")


GSM8K_TEST = 1319  # problems of the whole public test set
SYNTHETIC = 1000  # generated problems where there is no limit


def held_out(dataset: Path, *, limit: int | None) -> HeldOut:
    """Return up to `limit` problems a task, chosen by hash; all of them for None.

    A part of GSM8K's test set, the rest of which may train, is named after its size: `gsm8k_264`.

    Raises:
        DataError: an evaluation file is damaged.
    """
    choice: dict[str, list[Choice]] = {}
    generative: dict[str, list[Problem]] = {}
    for path in sorted((dataset / "eval").glob("*-test.jsonl")):
        task = path.name.removesuffix("-test.jsonl")
        if task == "gsm8k":
            size = read.count(path)
            problems = [gsm8k.parse(row, where=read.where(path, i)) for i, row in _sample(path, limit)]
            generative[task if size == GSM8K_TEST else f"{task}_{size}"] = problems
        elif task != "humaneval":  # needs the jail for untrusted code
            choice[task] = [
                multiple_choice.parse(row, where=read.where(path, i)) for i, row in _sample(path, limit)
            ]
    wanted = SYNTHETIC if limit is None else limit
    generative["spelling"] = spelling.held_out_problems(spelling.load_words(dataset), wanted)
    generative["arithmetic"] = arithmetic.held_out_problems(wanted)
    return HeldOut(choice, generative)


def _sample(path: Path, limit: int | None) -> list[tuple[int, dict[str, object]]]:
    """Return `limit` lines by the hash of their number: files are sorted by subject, so not the first."""
    order = sorted(range(read.count(path)), key=lambda index: fraction("held out", path.name, index))
    return sorted(read.rows(path, frozenset(order[:limit])), key=lambda item: item[0])


def _mix(dataset: Path, table: tuple[Share, ...], *, seed: int, name: str) -> list[Conversation]:
    listed = {share.task for share in table}
    others = (path.name.removesuffix("-train.jsonl") for path in (dataset / "chat").glob("*-train.jsonl"))
    shares = table + tuple(Share(task) for task in sorted(others) if task not in listed)
    mixed = [chat for share in shares for chat in _take(dataset, share, seed=f"{name}:{seed}")]
    stream("mixture", name, seed).shuffle(mixed)
    return mixed


def _take(dataset: Path, share: Share, *, seed: str) -> list[Conversation]:
    """Return the conversations of one row of the table."""
    if share.task == "arithmetic":
        return arithmetic.train_conversations(share.count or 0, seed=seed)
    if share.task == "spelling":
        return spelling.train_conversations(spelling.load_words(dataset), share.count or 0, seed=seed)
    if share.task == "identity":
        return _repeat(identity_conversations(dataset), share, seed=seed)
    if share.task == "gsm8k":
        return _from_file(dataset / "eval" / "gsm8k-train.jsonl", share, gsm8k_row, seed=seed)
    path = dataset / "chat" / f"{share.task}-train.jsonl"
    return _from_file(path, share, mc_row if share.task == "mc" else chat_row, seed=seed)


def identity_conversations(dataset: Path) -> list[Conversation]:
    """Return the user's own identity conversations where the dataset has them, else the built-in ones."""
    own = dataset / "chat" / "identity.jsonl"
    if not own.exists():
        return identity.conversations()
    return [chat_row(row, read.where(own, index)) for index, row in read.rows(own)]


Convert = Callable[[dict[str, object], str], Conversation]


def chat_row(row: dict[str, object], where: str) -> Conversation:
    """Return a line of a chat file as it is.

    Raises:
        DataError: roles do not alternate or a content is malformed; names the line.
    """
    messages: Any = row.get("messages", ())
    if fault := find_fault(messages):
        raise DataError(f"{where}: {fault[0]} {fault[1]}")
    return Conversation(messages=messages)


def mc_row(row: dict[str, object], where: str) -> Conversation:
    """Return a multiple-choice line as a conversation."""
    return multiple_choice.train_conversation(multiple_choice.parse(row, where=where))


def gsm8k_row(row: dict[str, object], where: str) -> Conversation:
    """Return a word problem as a conversation."""
    gsm8k.parse(row, where=where)
    return gsm8k.train_conversation(row)


def _indices(size: int, share: Share, *, seed: str) -> list[int]:
    """Return which items to take: whole passes in a shuffled order, the last one cut off."""
    wanted = round(size * share.epochs) if share.count is None else share.count
    taken: list[int] = []
    for epoch in range(-(-wanted // size) if size else 0):
        order = list(range(size))
        stream("take", share.task, seed, epoch).shuffle(order)
        taken += order
    return taken[:wanted]


def _repeat(items: list[Conversation], share: Share, *, seed: str) -> list[Conversation]:
    return [items[index] for index in _indices(len(items), share, seed=seed)]


def _from_file(path: Path, share: Share, convert: Convert, *, seed: str) -> list[Conversation]:
    indices = _indices(read.count(path), share, seed=seed)
    if not indices:
        return []
    wanted = {
        index: convert(row, read.where(path, index)) for index, row in read.rows(path, frozenset(indices))
    }
    return [wanted[index] for index in indices]

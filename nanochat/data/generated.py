"""The `generated` dataset: text, chat and a quiz about a small invented town, with no network at all.

For tests, `smoke` and machines without a network; the same bytes every time.
Same files and schemas as the real sources. Knows nothing of real text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from nanochat.data.build import Builder
from nanochat.data.generated_world import (
    ANIMALS,
    COLOURS,
    FOODS,
    JOBS,
    PLACES,
    Person,
    facts,
    people,
    story,
    sum_sentence,
)
from nanochat.data.manifest import SourceEntry
from nanochat.data.overlap import frequent_words
from nanochat.data.split import is_held_out
from nanochat.data.wheels import Report

STORIES = 2_000
PARAGRAPHS = 1_500
SHARD_BYTES = 256 << 10
HELD_OUT = 0.06
CHAT_HELD_OUT = 0.12
QUIZ_HELD_OUT = 0.3

Row = dict[str, Any]


def _story_documents(town: list[Person]) -> Iterator[str]:
    by_name = {person.name: person for person in town}
    for index in range(STORIES):
        pick = random.Random(f"story {index}")
        who = pick.choice(town)
        friend = (
            by_name[who.friend] if pick.random() < 0.7 else pick.choice([p for p in town if p is not who])
        )
        yield story(who, friend, pick)


def _fact_documents(town: list[Person]) -> Iterator[str]:
    for index in range(PARAGRAPHS):
        pick = random.Random(f"facts {index}")
        who = pick.choice(town)
        yield "\n".join([f"About {who.name}", facts(who, pick), sum_sentence(pick)])


def quiz(town: list[Person]) -> Iterator[Row]:
    """Yield one multiple-choice problem per person and fact."""
    for p in town:
        kinds = {
            "job": (f"What is the job of {p.name} in the town?", p.job, JOBS),
            "place": (f"Which place is the house of {p.name} near?", p.place, PLACES),
            "animal": (f"Which animal does {p.name} have at home?", p.animal, ANIMALS),
            "colour": (f"Which colour is the animal that {p.name} has?", p.colour, COLOURS),
            "food": (f"Which food does {p.name} like best of all?", p.food, FOODS),
        }
        for subject, (question, right, pool) in kinds.items():
            pick = random.Random(question)
            choices = [right, *pick.sample([value for value in pool if value != right], 3)]
            pick.shuffle(choices)
            yield {
                "question": question,
                "choices": choices,
                "answer": choices.index(right),
                "subject": subject,
            }


def _chat(user: str, assistant: str) -> Row:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def conversations(town: list[Person]) -> Iterator[tuple[str, Row]]:
    """Yield (key that decides its side of the split, conversation)."""
    for p in town:
        she = p.she.capitalize()
        yield (
            f"who {p.name}",
            _chat(f"Who is {p.name}?", f"{p.name} is a {p.job}. {she} lives near {p.place}."),
        )
        yield f"where {p.name}", _chat(f"Where does {p.name} live?", f"{p.name} lives near {p.place}.")
        yield (
            f"animal {p.name}",
            _chat(f"Does {p.name} have an animal?", f"Yes, {p.name} has a {p.colour} {p.animal}."),
        )
        yield f"food {p.name}", _chat(f"What does {p.name} like to eat?", f"{p.name} likes {p.food} best.")
        yield (
            f"friend {p.name}",
            _chat(f"Who is the friend of {p.name}?", f"The friend of {p.name} is {p.friend}."),
        )
        first = _chat(f"Tell me about {p.name}.", facts(p, random.Random(p.name)))
        second = _chat(f"And what does {p.she} like?", f"{p.name} likes {p.food} best.")
        yield f"about {p.name}", {"messages": first["messages"] + second["messages"]}
    greetings = (
        "Hello!",
        "Hi!",
        "Good day!",
        "Good morning!",
        "Hello, how are you?",
        "Hi there.",
        "Good evening.",
    )
    for user in greetings:
        yield f"greeting {user}", _chat(user, "Hello! I am well. What do you want to know about the town?")
    for user in ("Thank you.", "Thanks!", "Thank you very much.", "That is all."):
        yield f"thanks {user}", _chat(user, "You are welcome. Come again!")
    for index in range(150):
        pick = random.Random(f"ask {index}")
        who, friend = pick.sample(town, 2)
        ask = pick.choice(("Tell me a story about {} and {}.", "Do you know a story about {} and {}?"))
        text = ". ".join(story(who, friend, pick).split(". ")[:2]) + "."
        yield f"story {index}", _chat(ask.format(who.name, friend.name), text)


def build_generated(builder: Builder, *, report: Report) -> list[str]:
    """Write the whole dataset; return the notes for the card."""
    report("generate", 0, 2)
    town = people()
    held_out: dict[str, list[str]] = {"stories": [], "facts": []}
    train: list[str] = []
    for name, documents in (("stories", _story_documents(town)), ("facts", _fact_documents(town))):
        for text in dict.fromkeys(documents):
            (held_out[name] if is_held_out(text, HELD_OUT) else train).append(text)
    report("write", 1, 2)
    builder.add_shards(train, [text for some in held_out.values() for text in some], shard_bytes=SHARD_BYTES)
    for name, texts in held_out.items():
        builder.add_held_out(name, texts)
    chat: dict[bool, list[Row]] = {True: [], False: []}
    for key, row in conversations(town):
        chat[is_held_out(key, CHAT_HELD_OUT)].append(row)
    builder.add_jsonl("chat/generated_chat-train.jsonl", "chat", chat[False], origin="generated")
    builder.add_jsonl("chat/generated_chat-test.jsonl", "chat", chat[True], origin="generated")
    problems: dict[bool, list[Row]] = {True: [], False: []}
    for row in quiz(town):
        problems[is_held_out(row["question"], QUIZ_HELD_OUT)].append(row)
    builder.add_jsonl("eval/generated_mc-test.jsonl", "eval", problems[True], origin="generated")
    builder.add_jsonl("chat/mc-train.jsonl", "chat", problems[False], origin="generated")
    builder.add_words(frequent_words(train))
    report("write", 2, 2)
    return [
        f"Stories and facts: {HELD_OUT:.0%} of the documents held out, by hash of the text.",
        f"`generated_mc`: {QUIZ_HELD_OUT:.0%} of the questions held out, by hash of the question; the facts "
        "that answer them stand in the training text in other words.",
    ]


def generated_sources() -> list[SourceEntry]:
    """Return what the manifest lists as sources."""
    return [
        SourceEntry(
            name="generated",
            licence="MIT",
            attribution="Made by this program's own generator; no outside text",
        )
    ]

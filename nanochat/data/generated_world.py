"""A small invented town: its people, and sentences and stories about them; pure functions of a generator.

Knows nothing of datasets. Every fact is the same in every text, so that a
model of a few hundred thousand parameters has something to learn in a minute.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_NAMES = re.compile(r"\w+")
WOMEN = _NAMES.findall(
    "Ada Beth Cora Dora Ella Fay Gwen Hanna Ida June Kate Lena Mia Nora Olga Pia Rosa Sara Tess Vera"
    " Wilma Zoe"
)
MEN = _NAMES.findall(
    "Adam Ben Carl Dan Emil Finn Gus Hugo Ivan Jack Karl Leo Max Nils Otto Paul Ralf Sam Tom Uwe Viktor Will"
)
JOBS = ("baker", "farmer", "teacher", "doctor", "sailor", "painter", "miller", "smith")
PLACES = (
    "the harbour",
    "the hill",
    "the forest",
    "the market",
    "the river",
    "the old mill",
    "the school",
    "the bridge",
)
ANIMALS = ("dog", "cat", "horse", "goat", "bird", "fish", "hen", "duck")
COLOURS = ("red", "blue", "green", "black", "white", "brown", "yellow", "grey")
FOODS = ("bread", "soup", "apples", "cheese", "rice", "honey", "nuts", "plums")
NUMBERS = _NAMES.findall("zero one two three four five six seven eight nine ten eleven twelve")


@dataclass(frozen=True, slots=True)
class Person:
    """Someone of the town and all that is known of them."""

    name: str
    she: str
    her: str
    job: str
    place: str
    animal: str
    colour: str
    food: str
    friend: str


def people() -> list[Person]:
    """Return the people of the town; always the same."""
    pick = random.Random("town")
    names = [(name, "she", "her") for name in WOMEN] + [(name, "he", "his") for name in MEN]
    friends = [name for name, _, _ in names]
    pick.shuffle(friends)
    result = []
    for (name, she, her), friend in zip(names, friends, strict=True):
        friend = friend if friend != name else friends[0] if friends[0] != name else friends[1]
        job, place, animal = pick.choice(JOBS), pick.choice(PLACES), pick.choice(ANIMALS)
        result.append(
            Person(name, she, her, job, place, animal, pick.choice(COLOURS), pick.choice(FOODS), friend)
        )
    return result


def facts(person: Person, pick: random.Random) -> str:
    """Return a paragraph about a person: all facts, in varying order and words."""
    p, she = person, person.she.capitalize()
    lines = [
        pick.choice((f"{she} lives near {p.place}.", f"{p.her.capitalize()} house is near {p.place}.")),
        pick.choice(
            (f"{she} has a {p.colour} {p.animal}.", f"{p.her.capitalize()} {p.animal} is {p.colour}.")
        ),
        pick.choice((f"{she} likes {p.food} best.", f"{p.her.capitalize()} favourite food is {p.food}.")),
        pick.choice((f"{p.her.capitalize()} best friend is {p.friend}.", f"{she} often visits {p.friend}.")),
    ]
    pick.shuffle(lines)
    return " ".join([f"{p.name} is a {p.job}.", *lines])


def sum_sentence(pick: random.Random) -> str:
    """Return a true sum in words."""
    a, b = pick.randint(1, 6), pick.randint(1, 6)
    thing = pick.choice(("apples", "nuts", "plums", "boats", "books", "stones"))
    return f"{NUMBERS[a].capitalize()} {thing} and {NUMBERS[b]} {thing} are {NUMBERS[a + b]} {thing}."


def story(who: Person, friend: Person, pick: random.Random) -> str:
    """Return a short story in which the two behave as their facts say."""
    when = pick.choice(("One morning", "On Monday", "After the rain", "Late in the evening", "Last summer"))
    weather = pick.choice(("The sun was warm.", "It was cold.", "The wind was strong.", "It was raining."))
    gift = pick.choice(("a cup of tea", f"some {friend.food}", "a letter", "a small box", "an old book"))
    number = pick.randint(2, 6)
    lines = [
        f"{when} {who.name} the {who.job} went to {friend.place} to see {friend.name}.",
        weather,
        f"{who.name} took {who.her} {who.colour} {who.animal} along.",
        pick.choice(
            (
                f'"Good day, {friend.name}," said {who.name}. "I have {gift} for you."',
                f'"Look, {friend.name}," said {who.name}, "here is {gift}."',
            )
        ),
        f'"Thank you, {who.name}," said {friend.name}. "You know that I like {friend.food}."',
        f"Then {friend.name} gave {who.name} {NUMBERS[number]} {pick.choice(('apples', 'nuts', 'plums'))}.",
        pick.choice(
            (
                f"They sat near {friend.place} until it was dark.",
                f"They played with the {who.animal} all day.",
                f"The {who.animal} ran away, but {friend.name} found it near {who.place}.",
            )
        ),
        f"In the end {who.name} went home and ate {who.food}.",
    ]
    if pick.random() < 0.5:
        lines.insert(pick.randint(4, 6), sum_sentence(pick))
    return " ".join(lines)

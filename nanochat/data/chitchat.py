"""Human small talk to clean two-party conversations, as chat messages and as plain text.

Knows the raw format of the chit-chat set; nothing of wheels, splits or files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanochat.data.clean import plain

Message = dict[str, str]

_CONTACT = re.compile(
    r"https?:|www\.\w|\.(?:com|org|net|edu|io|games|gov|co)\b|@\s*\w|\d{3}\)?[ .-]\d{3}[ .-]\d{4}",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]+")
_PROFANITY = frozenset(
    _WORD.findall(
        """fuck fucks fucked fucker fuckers fuckin fucking motherfucker shit shits shitty bullshit shito bitch
        bitches bitching bitchy cunt cunts nigger niggers nigga niggas fag fags faggot faggots dick
        dicks dickhead pussy slut sluts slutty whore whores rape raped rapes rapist rapists raping
        porn porno pornography pornographic ass asses asshole assholes bastard bastards penis vagina
        damn damned dammit goddamn hell sex sexy sexual sexually sexuality nude nudes naked suicide
        suicidal retard retarded boob boobs tit tits wtf stfu"""
    )
)
_LONG_RUN = re.compile(r"(.)\1{3,}")
_LAUGH = re.compile(r"\b(?:a?(?:ha){4,}h?|a?(?:he){4,}h?|(?:ah){4,}a?)\b", re.IGNORECASE)
_STRAY = re.compile(r"(?<=[\w.!?])[\\\]@`|]+$")  # keys beside Enter, hit with it
_SAYS = re.compile(r"[A-Za-z0-9?!]|[:;]-?[)(DP]")
MINIMUM_TURNS = 4


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation: the turns of two people in alternation, each turn one or more messages."""

    id: str
    turns: tuple[tuple[str, ...], ...]

    def document(self) -> str:
        """Return plain text, one turn a line, with no label of who speaks."""
        return "\n".join(" ".join(turn) for turn in self.turns)


def clean_message(text: str) -> str:
    """Return one message without stray keys and endless repetition; empty where nothing is said."""
    text = " ".join((text if text.isascii() else plain(text)).split())
    if len(text) <= 1:
        return text if text in "?!" or text.isdigit() else ""
    if text[-1] in "\\]@`|":
        text = _STRAY.sub("", text)
    if "aha" in (lowered := text.lower()) or "ehe" in lowered:
        text = _LAUGH.sub(lambda match: match[0][:6], text)
    text = _LONG_RUN.sub(r"\1\1\1", text)
    return text if _SAYS.search(text) else ""


def is_clean(text: str) -> bool:
    """Return whether a text is free of links, contacts and words that a chat model should not pick up."""
    return not _CONTACT.search(text) and _PROFANITY.isdisjoint(_WORD.findall(text.lower()))


def talks(raw: dict[str, Any]) -> Iterator[Talk]:
    """Yield the conversations fit for use: two parties, four turns, no links, contacts or profanity."""
    for key, row in raw.items():
        messages = [message for group in row["messages"] for message in group]
        if len({message["sender"] for message in messages}) != 2:
            continue
        turns: list[list[str]] = []
        last = None
        noise = 0
        for message in messages:
            text = clean_message(message["text"])
            if not text:
                noise += 1
                continue
            if message["sender"] != last:
                turns.append([])
                last = message["sender"]
            if not turns[-1] or turns[-1][-1] != text:
                turns[-1].append(text)
        everything = "\n".join(text for turn in turns for text in turn)
        if len(turns) < MINIMUM_TURNS or noise * 10 > len(messages):
            continue
        if is_clean(everything):
            yield Talk(key, tuple(tuple(turn) for turn in turns))


def join_messages(messages: tuple[str, ...]) -> str:
    """Return a turn as one line: where a message ends without a stop, the next one decides which it gets."""
    line = messages[0]
    for text in messages[1:]:
        if line[-1].isalnum() and text[0].isalnum():
            line += "." if text[0].isupper() else ","
        line += text if text.strip("?!") == "" else f" {text}"
    return line


def windows(talk: Talk, *, longest_turn: int = 400) -> Iterator[list[Message]]:
    """Yield consecutive, disjoint windows of 2 to 8 turns; whoever speaks first in one is the user.

    A window whose reply says nothing (under two words) or with a turn over
    `longest_turn` characters is left out.
    """
    pick = random.Random(talk.id)
    start = 0
    while start + 2 <= len(talk.turns):
        length = pick.choice((2, 2, 4, 4, 6, 8))
        turns = [join_messages(turn) for turn in talk.turns[start : start + length]]
        start += length
        if len(turns) % 2:
            turns.pop()
        replies = turns[1::2]
        if (
            turns
            and max(map(len, turns)) <= longest_turn
            and all(len(reply.split()) >= 2 for reply in replies)
        ):
            roles = ("user", "assistant")
            yield [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]

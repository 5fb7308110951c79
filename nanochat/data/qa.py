"""Questions and answers made from encyclopedia introductions; knows nothing of files or splits."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from nanochat.data.chitchat import Message
from nanochat.data.clean import Article

_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Mt|Gen|Col|Lt|Sgt|Capt|Prof|Rev|Gov|Sen|Rep|No|Nos|vs|ca|cf|etc|approx|lit|fl|r|c|b|d|"
    r"Inc|Ltd|Co|Corp|Bros|e\.g|i\.e|a\.k\.a|al|pp|vol|Op|var|sp|spp|subsp)|\b(?:[A-Z]\.)*[A-Z])\.$"
)
_BREAK = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(]?[A-Z0-9])")

_ANY = (
    "What is {name}?",
    "Tell me about {name}.",
    "What do you know about {name}?",
    "Can you tell me what {name} is?",
)
_NOTION = ("What is {name}?", "Explain {name} to me.", 'What does "{word}" mean?', "Tell me about {name}.")
_PLURAL = (
    "What are {name}?",
    "Tell me about {name}.",
    "Can you tell me what {name} are?",
    "Describe {name}.",
)
_PERSON = (
    "Who {was} {name}?",
    "Tell me about {name}.",
    "What do you know about {name}?",
    "Can you tell me who {name} {was}?",
)
_EVENT = (
    "What was {name}?",
    "Tell me about {name}.",
    "What do you know about {name}?",
    "What happened in {name}?",
)
_PLACE = (*_ANY[:3], "Where is {name}?")
_NOTION_TOPICS = frozenset(
    {
        "Biology and health sciences",
        "Everyday life",
        "Mathematics",
        "Philosophy and religion",
        "Physical sciences",
        "Society and social sciences",
        "Technology",
    }
)
_LOWER_WORD = re.compile(r"(?<![\w-])[a-z]+(?![\w-])")
_WORDS = re.compile(r"[^\W\d_]+")
_LOOKS_PLURAL = re.compile(r"[^suic]s$|ies$")
_LIFE_DATES = re.compile(r"\((?:born |c\. |died )*\d{3,4}(?: BC)?(?:[–-]\d{1,4}(?: BC)?)?\)$")


def sentences(text: str) -> list[str]:
    """Split an introduction into sentences; initials and common abbreviations do not end one."""
    result: list[str] = []
    start = 0
    for match in _BREAK.finditer(text):
        if not _ABBREVIATION.search(text[start : match.start()]):
            result.append(text[start : match.end()].strip())
            start = match.end()
    result.append(text[start:].strip())
    return [sentence for sentence in result if sentence]


def answer(article: Article, *, longest: int = 320) -> str:
    """Return the first sentence of the introduction, with the second where both fit in `longest`."""
    parts = sentences(article.extract.replace("\n", " "))
    two = " ".join(parts[:2])
    return two if len(two) <= longest else parts[0]


def common_words(articles: Iterable[Article]) -> frozenset[str]:
    """Return all words that some introduction writes in lower case: titles of such words are no names."""
    return frozenset(word for article in articles for word in _LOWER_WORD.findall(article.extract))


def questions(article: Article, common: frozenset[str] = frozenset()) -> list[str]:
    """Return the question forms that suit the article's topic and number; `common` as of `common_words`."""
    title = re.sub(r" \([^)]*\)$", "", article.title)
    start = article.extract[:200]
    person = article.topic == "People" or (
        article.topic not in ("History", "Geography") and bool(_LIFE_DATES.search(article.description))
    )
    several = start.lower().startswith(f"{title.lower()}s are ")
    notion = article.topic in _NOTION_TOPICS and common.issuperset(
        _WORDS.findall(title[:1].lower() + title[1:])
    )
    name = title if person else _name(f"{title}s" if several else title, article.extract, notion=notion)
    forms = _forms(article, name, person=person)
    subject = start.removeprefix("The ").partition(".")[0]
    plural = title.endswith("s") and _starts_with(subject, title) and " are " in subject
    if not person and (several or plural):
        forms = _PLURAL
    elif not person and _LOOKS_PLURAL.search(title) and " is " not in subject:
        forms = _ANY[1:3]
    was = "was" if re.search(r"\bwas (?:an?|the|one)\b", start) else "is"
    word = title[:1].lower() + title[1:]
    return [form.replace("{was}", was).replace("{name}", name).replace("{word}", word) for form in forms]


def _forms(article: Article, name: str, *, person: bool) -> tuple[str, ...]:
    start = article.extract[:150].lower()
    if person:
        return _PERSON
    if article.topic == "Geography" and re.search(r"\b(?:in|of|on|between|off|at)\b", start):
        return _PLACE
    if article.topic == "History" and re.search(
        r" (?:war|battle|revolution|crisis|massacre|siege|revolt)\b", start
    ):
        return _EVENT
    return (
        _NOTION
        if article.topic in _NOTION_TOPICS and name[0].islower() and not name.startswith("the ")
        else _ANY
    )


def _name(title: str, extract: str, *, notion: bool) -> str:
    """Return the title as it stands inside a sentence: article and case as in the introduction."""
    lowered = title[:1].lower() + title[1:]
    start = f", {extract[:250]}"
    for spelling in (title, lowered):
        for lead in ("The", "the", "A", "a", "An", "an"):
            before, found, after = start.partition(f", {lead} {spelling}")
            if found and not after[:1].isalnum() and (lead.islower() or not before) and after[:4] != " of ":
                return f"{lead.lower()} {spelling}"
    _, found, after = extract[len(title) :].partition(f" {lowered}")
    return lowered if notion or (found and not after[:1].isalnum()) else title


def _starts_with(text: str, phrase: str) -> bool:
    return text.startswith(phrase) and not text[len(phrase) : len(phrase) + 1].isalnum()


def conversations(article: Article, common: frozenset[str] = frozenset()) -> Iterator[list[Message]]:
    """Yield two exchanges about an article: the full answer, and its first sentence or its description."""
    reply = answer(article)
    if len(reply) > 400:
        return
    pick = random.Random(article.title)
    forms = questions(article, common)
    pick.shuffle(forms)
    yield [{"role": "user", "content": forms[0]}, {"role": "assistant", "content": reply}]
    short = sentences(reply)[0]
    if len(forms) > 1:
        question = f"{forms[1][:-1]}, in one sentence{forms[1][-1]}" if short != reply else forms[1]
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": short}]

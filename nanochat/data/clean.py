"""Raw package data to clean documents: encyclopedia introductions, a Bible, plays.

Text in, text out: knows nothing of wheels, splits or files.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_SPACES = re.compile(r"[^\S\n]+")
_ZERO_WIDTH = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
_BRACKETS = re.compile(r" ?\((?:[\s,;:]|also\b)*\)")
_BRACKET_START = re.compile(r"\((?:\s|[,;:]\s)+")
_SPACE_BEFORE = re.compile(r" +([,;:!?]|\.(?!\w))")


@dataclass(frozen=True, slots=True)
class Article:
    """An encyclopedia introduction."""

    title: str
    extract: str
    description: str
    topic: str

    def document(self) -> str:
        """Return the text that is trained on: the title on a line of its own, then the introduction."""
        return f"{self.title}\n\n{self.extract}"


def plain(text: str) -> str:
    """Return text in NFC with ordinary spaces, no invisible characters and no blanks at line ends."""
    text = unicodedata.normalize("NFC", text).translate(_ZERO_WIDTH)
    return "\n".join(line.strip() for line in _SPACES.sub(" ", text).split("\n")).strip()


def wiki_text(text: str) -> str:
    """Return an introduction without the holes that removed pronunciations and formulas left."""
    text = _BRACKET_START.sub("(", _BRACKETS.sub("", plain(text)))
    return re.sub(r"\n{2,}", "\n", _SPACE_BEFORE.sub(r"\1", text))


def wiki_articles(raw: dict[str, dict[str, str]]) -> list[Article]:
    """Return the articles in the order of the file; an introduction that occurs twice counts once."""
    articles: list[Article] = []
    seen: set[str] = set()
    for row in raw.values():
        extract = wiki_text(row["extract"])
        if extract and extract not in seen:
            seen.add(extract)
            title, description = plain(row["title"]), plain(row["description"])
            articles.append(Article(title, extract, description, row["topic"]))
    return articles


BOOKS = tuple(
    re.findall(
        r"(?:\d )?[A-Z][A-Za-z ]+",
        "Genesis,Exodus,Leviticus,Numbers,Deuteronomy,Joshua,Judges,Ruth,1 Samuel,2 Samuel,"
        "1 Kings,2 Kings,1 Chronicles,2 Chronicles,Ezra,Nehemiah,Esther,Job,Psalms,Proverbs,"
        "Ecclesiastes,Song of Songs,Isaiah,Jeremiah,Lamentations,Ezekiel,Daniel,Hosea,Joel,"
        "Amos,Obadiah,Jonah,Micah,Nahum,Habakkuk,Zephaniah,Haggai,Zechariah,Malachi,"
        "Matthew,Mark,Luke,John,Acts,Romans,1 Corinthians,2 Corinthians,Galatians,Ephesians,"
        "Philippians,Colossians,1 Thessalonians,2 Thessalonians,1 Timothy,2 Timothy,Titus,"
        "Philemon,Hebrews,James,1 Peter,2 Peter,1 John,2 John,3 John,Jude,Revelation",
    )
)
_VERSE_START = re.compile(r"^\s+(\d{7,8}): (\d+),$", re.MULTILINE)
_MARKER = re.compile(r"\\\d+:\d+\\")  # a verse number that the package left inside the text
_NOISE = re.compile(r" ?-(?=\[)|[*+\\\[\]]")  # marks of the printed page; words in brackets stay


def bible_verses(source: str) -> Iterator[tuple[str, str]]:
    """Yield (book, verse text) from a Python source whose first long string is the whole Bible.

    The table after it maps BBCCCVVV to the verse's first character, counted in the
    source, i.e. before escapes are undone.
    """
    begin = source.index('"""') + 3
    end = source.index('"""', begin)
    table = source[end : source.index("}", end)]
    starts = [(int(key), int(offset)) for key, offset in _VERSE_START.findall(table)]
    stops = [offset for _, offset in starts[1:]] + [end - begin]
    for (key, start), stop in zip(starts, stops, strict=True):
        yield BOOKS[key // 1_000_000 - 1], source[begin + start : begin + stop]


def bible_documents(source: str, *, target_bytes: int = 4096) -> list[tuple[str, str]]:
    """Return (book, document): consecutive verses of one book, about `target_bytes` each."""
    documents: list[tuple[str, str]] = []
    book, parts, size = "", list[str](), 0

    def flush() -> None:
        if parts:
            text = str(ast.literal_eval('"""' + "".join(parts).strip() + ' """'))
            text = _NOISE.sub(lambda mark: "-" if "-" in mark[0] else "", _MARKER.sub(" ", text)).replace(
                "`", "'"
            )
            documents.append((book, plain(text.replace("\n", " "))))
            parts.clear()

    for verse_book, verse in bible_verses(source):
        if verse_book != book or size >= target_bytes:
            flush()
            book, size = verse_book, 0
        parts.append(verse)
        size += len(verse.encode())
    flush()
    return documents


def play_documents(markdown: str) -> list[str]:
    """Return the scenes of a play as plain text: speakers in capitals on lines of their own, no Markdown."""
    title, act, scenes = "", "", list[str]()
    for block in re.split(r"^(?=#{1,3} )", markdown, flags=re.MULTILINE):
        head, _, body = block.partition("\n")
        if head.startswith("# "):
            title = head[2:].strip()
        elif head.startswith("## "):
            act = head[3:].strip()
        text = re.sub(r"[*_]+", "", re.sub(r"^#+ *", "", body, flags=re.MULTILINE))
        text = re.sub(r"\n{3,}", "\n\n", plain(text))
        if text:
            name = head.lstrip("# ").strip()
            scenes.append(
                f"{title}, {act}\n{name}\n\n{text}"
                if head.startswith("### ")
                else f"{title}\n{name}\n\n{text}"
            )
    return scenes


def cut(text: str, limit_bytes: int) -> list[str]:
    """Cut a document at line or sentence ends into pieces of at most about `limit_bytes`."""
    if len(text.encode()) <= limit_bytes:
        return [text]
    pieces, current, size = list[str](), list[str](), 0
    for part in re.findall(r"[^\n]*\n+|[^\n]+$", text):
        length = len(part.encode())
        if size + length > limit_bytes and current:
            pieces.append("".join(current).strip())
            current, size = [], 0
        if length > limit_bytes:
            pieces += [piece for piece in _cut_line(part, limit_bytes) if piece]
            continue
        current.append(part)
        size += length
    pieces.append("".join(current).strip())
    return [piece for piece in pieces if piece]


def _cut_line(line: str, limit_bytes: int) -> Iterator[str]:
    current = ""
    for part in re.split(r"(?<=[.!?]) ", line):
        if current and len(current.encode()) + len(part.encode()) >= limit_bytes:
            yield current.strip()
            current = ""
        current = f"{current} {part}" if current else part
        while len(current.encode()) > limit_bytes:  # no sentence end in sight
            piece = current.encode()[:limit_bytes].decode(errors="ignore")
            yield piece
            current = current[len(piece) :]
    yield current.strip()

"""Raw package text to documents: introductions, Bible, plays, small talk, questions."""

from __future__ import annotations

import pytest

from nanochat.data import chitchat, clean, qa


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A chair ( ) is a seat.", "A chair is a seat."),
        ("Aniline () is simple.", "Aniline is simple."),
        (
            "Avogadro (, also, Italian: x; 9 August 1776\u00a0– 9 July)",
            "Avogadro (also, Italian: x; 9 August 1776 – 9 July)",
        ),
        ("The cinema of Japan , also hōga , began.", "The cinema of Japan, also hōga, began."),
        ("Two\u2060words  and\u2009more", "Twowords and more"),
        ("the volume of a solid .\nTwo regions", "the volume of a solid.\nTwo regions"),
        ("runs .NET and .5 per cent", "runs .NET and .5 per cent"),
        ("one \n \n\n two", "one\ntwo"),
        ("cafe\u0301", "café"),
    ],
)
def test_introductions_lose_the_holes_that_removed_markup_left(raw, expected):
    assert clean.wiki_text(raw) == expected


def test_an_article_is_its_title_and_text_and_counts_once():
    row = {"title": "Silo", "extract": "A silo stores.", "description": "Structure", "topic": "Technology"}
    articles = clean.wiki_articles({"a": row, "b": row | {"title": "Silos"}, "c": row | {"extract": " "}})
    assert [article.document() for article in articles] == ["Silo\n\nA silo stores."]


BIBLE = '''x = Bible(
    V.B,
    """At the first. And the earth, \\\\"dark\\\\". New book here.[] With *marks*. \\\\3:4\\\\He said.""",
    {
        1001001: 0,
        1001002: 13,
        8001001: %d,
    },
    {
        1001001: 13,
    },
)
'''


def test_bible_verses_are_cut_by_their_table_and_books_never_mix():
    body = BIBLE.split('"""')[1]
    source = BIBLE % body.index(" New book")
    documents = clean.bible_documents(source)
    assert [book for book, _ in documents] == ["Genesis", "Ruth"]
    assert documents[0][1].startswith("At the first. And the earth")
    assert documents[1][1] == "New book here. With marks. He said."


def test_bible_documents_grow_to_about_the_target_by_whole_verses():
    verses = [f" Verse number {i} of this book." for i in range(1000)]
    starts, offset = [], 0
    for i, verse in enumerate(verses):
        starts.append(f"        {1_001_001 + i}: {offset},")
        offset += len(verse)
    source = 'b = B("""' + "".join(verses) + '""",\n    {\n' + "\n".join(starts) + "\n    },\n)"
    documents = [text for _, text in clean.bible_documents(source, target_bytes=1000)]
    assert " ".join(documents) == "".join(verses).strip()
    assert all(1000 <= len(text) < 1000 + 60 for text in documents[:-1])


def test_plays_become_scenes_without_markdown():
    text = "# Hamlet\n\n## ACT I\n\n### SCENE I. A platform.\n\n_Enter B_\n\n"
    text += "**BERNARDO**  \nWho's there?  \nSpeak.\n"
    assert clean.play_documents(text) == [
        "Hamlet, ACT I\nSCENE I. A platform.\n\nEnter B\n\nBERNARDO\nWho's there?\nSpeak."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "line one\n" * 500,
        "A sentence here. " * 900,
        "x" * 9000,
        "é" * 5000,
        "word " * 3000 + "\n" + "y" * 100,
    ],
)
def test_cutting_keeps_every_word_and_the_limit(text):
    pieces = clean.cut(text, 2000)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece.encode()) <= 2000 for piece in pieces)


def message(sender, text):
    return [{"sender": sender, "text": text}]


def talk(*lines):
    return {"id": {"messages": [message(sender, text) for sender, text in lines]}}


GOOD = [("a", "Hello"), ("a", "how are you?"), ("b", "good"), ("b", "You?"), ("a", "fine"), ("b", "nice day")]


def test_consecutive_messages_are_one_turn_and_no_speaker_is_named():
    (found,) = chitchat.talks(talk(*GOOD))
    assert found.document() == "Hello how are you?\ngood You?\nfine\nnice day"


@pytest.mark.parametrize(
    "lines",
    [
        [line for line in GOOD if line[0] == "a"],
        GOOD[:4],
        [*GOOD, ("c", "hi")],
        [*GOOD, ("a", "see http://x.example")],
        [*GOOD, ("a", "mail me@there.example")],
        [*GOOD, ("a", "call (808) 555-1557")],
        [*GOOD, ("a", "insta @someone")],
        [*GOOD, ("a", "what the Fuck")],
        [*GOOD, *[("a", "f"), ("b", "d")] * 4],
    ],
    ids=["one speaker", "too short", "three", "link", "mail", "phone", "handle", "profanity", "key mashing"],
)
def test_conversations_that_are_not_fit_are_left_out(lines):
    assert list(chitchat.talks(talk(*lines))) == []


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("cy@", "cy"),
        ("your problem?\\", "your problem?"),
        ("hahahahahahahahaha ok", "hahaha ok"),
        ("nooooooo!!!!!!!", "nooo!!!"),
        ("d", ""),
        ("?", "?"),
        ("7", "7"),
        ("  two   words\n", "two words"),
        ("~", ""),
        (":)", ":)"),
    ],
)
def test_messages_lose_stray_keys_and_endless_letters(raw, expected):
    assert chitchat.clean_message(raw) == expected


def test_joined_messages_get_the_stop_that_fits_the_next():
    assert (
        chitchat.join_messages(("im good", "how are you?", "Fine", "Then", "?"))
        == "im good, how are you? Fine. Then?"
    )


def test_windows_are_disjoint_short_and_begin_with_the_user():
    turns = tuple((f"this is turn {i}",) for i in range(101))
    made = list(chitchat.windows(chitchat.Talk("id", turns)))
    assert made == list(chitchat.windows(chitchat.Talk("id", turns))), "the same every time"
    flat = [message["content"] for window in made for message in window]
    assert flat == [f"this is turn {i}" for i in range(100)]
    for window in made:
        assert 2 <= len(window) <= 8
        assert [message["role"] for message in window] == ["user", "assistant"] * (len(window) // 2)


def test_windows_without_a_real_answer_or_with_a_speech_are_left_out():
    turns = (("What do you do?",), ("ok",), ("and then what?",), ("x " * 300,))
    assert list(chitchat.windows(chitchat.Talk("b", turns * 3))) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A bed. Cold day. Evening.", ["A bed.", "Cold day.", "Evening."]),
        ("The U.S. state of Texas. It is big.", ["The U.S. state of Texas.", "It is big."]),
        ("By F. Scott Fitzgerald. He wrote.", ["By F. Scott Fitzgerald.", "He wrote."]),
        ('The "Beowulf poet." The story', ['The "Beowulf poet."', "The story"]),
        ("It has 3.5 parts. 7 more exist.", ["It has 3.5 parts.", "7 more exist."]),
        ("Op. 71 is a ballet.", ["Op. 71 is a ballet."]),
    ],
)
def test_sentences_do_not_end_at_abbreviations(text, parts):
    assert qa.sentences(text) == parts


def article(title, extract, topic, description=""):
    return clean.Article(title, extract, description, topic)


@pytest.mark.parametrize(
    ("given", "asked", "never"),
    [
        (
            article("Ada Lovelace", "Ada Lovelace was an English writer.", "People"),
            "Who was Ada Lovelace?",
            "What is",
        ),
        (article("Pelé", "Pelé is a player.", "Technology", "Player (1940–2022)"), "Who is Pelé?", "Explain"),
        (article("Windmill", "A windmill is a machine.", "Technology"), "What is a windmill?", "Windmill"),
        (article("Bihar", "Bihar is a state in eastern India.", "Geography"), "Where is Bihar?", "the Bihar"),
        (
            article("Porcupine", "Porcupines are rodents.", "Biology and health sciences"),
            "What are porcupines?",
            "is P",
        ),
        (
            article("Golden Rule", "The Golden Rule is a principle.", "Philosophy and religion"),
            "What is the Golden Rule?",
            "mean",
        ),
        (
            article("Sino-Burmese War", "The Sino-Burmese War was a war.", "History"),
            "What happened in the Sino-Burmese War?",
            "is the",
        ),
        (article("Dune (novel)", "Dune is a novel.", "Arts"), "What is Dune?", "(novel)"),
        (
            article("Weight", "In science, the weight of an object is a force.", "Physical sciences"),
            "What is weight?",
            "the weight?",
        ),
    ],
    ids=lambda value: value.title if isinstance(value, clean.Article) else "",
)
def test_question_forms_suit_the_topic_and_name_the_thing_as_the_text_does(given, asked, never):
    forms = qa.questions(given, frozenset({"porcupine", "a"}))
    assert asked in forms
    assert not any(never in form for form in forms)


def test_titles_that_other_articles_write_in_lower_case_are_no_names():
    common = qa.common_words([article("x", "An alloy of bronze.", "Arts")])
    assert "What is bronze?" in qa.questions(article("Bronze", "Bronze is an alloy.", "Technology"), common)


def test_answers_are_one_or_two_sentences_of_the_article():
    long = "Silk is a fiber. It is woven. " + "More text follows here. " * 30
    first, second = qa.conversations(article("Silk", long, "Technology"))
    assert first[1] == {"role": "assistant", "content": "Silk is a fiber. It is woven."}
    assert second[1] == {"role": "assistant", "content": "Silk is a fiber."}
    assert second[0]["content"].endswith(", in one sentence?") or second[0]["content"].endswith(
        ", in one sentence."
    )

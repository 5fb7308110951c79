"""Spelling a word letter by letter, and counting a letter with the calculator tool.

Knows nothing of tokens. Words belong to training or to evaluation by their hash.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nanochat.errors import DataError
from nanochat.tasks.problem import Conversation, Problem, assistant, conversation, python, python_output, user
from nanochat.tasks.stable import fraction, stream

HELD_OUT = 0.05  # share of the words
_WORD = re.compile(r"[a-z]{3,12}")
_SPELL = (
    "Spell the word {word}.",
    "How do you spell {word}?",
    "Spell {word}",
    "Please spell {word} for me.",
    "Can you spell the word {word}?",
    "What are the letters of {word}?",
)
_COUNT = (
    "How many {letter} are in {word}?",
    "How many times does {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
    "How often is the letter {letter} in the word {word}?",
    "How many times is {letter} in the word {word}?",
)
_COMMON = """
able about above across add after again air all almost along also always animal answer apple arm around
art ask autumn baby back ball bank base basket bath beach bean bear beautiful become bed begin behind bell
below berry best between big bird black blood blue board boat body bone book both bottle bottom bowl box
bread breakfast brick bridge bright bring brother brown build burn butter button cake call candle cannon
carry castle cat chair change cheese chicken child church circle city clean clear clock cloud coat coffee
cold color comb come common cook copper corn cotton count country course cover cow cross cup curtain dance
danger dark daughter day deep deer desk different dinner dog door down draw dream dress drink drive drop
dry dust early earth east easy egg eight engine enough evening every example eye face family far farm
father feather field fight finger fire fish five flag floor flower fly follow food foot forest fork four
free friend front fruit full game garden girl give glass goat gold good grass great green ground group
hair half hammer hand happy hard head hear heart heavy high hill history hole home honey hope horse hour
house hundred ice ink iron island jewel join journey jump keep kettle key kind king kitchen knee knife
knot know ladder lake land language large laugh leaf learn leather left leg lemon letter light line lion
lip list little lock long loud love low machine make many map market match meal measure meat metal middle
milk mind minute money month moon morning mother mountain mouth music nail name narrow neck needle nest
never new night nine north nose number nut ocean office oil old onion open orange order oven over page
paint paper parcel part pen pencil people picture pig pin pipe place plant plate play pocket point potato
pretty price print pull push queen question quick quiet rabbit rain reach read ready red rice ring river
road roof room root round run sail salt same sand school science sea second seed seven sheep shelf ship
shirt shoe short shoulder side silver simple sister six skin sky sleep slow small smile smoke snake snow
soap sock soft some song south space spoon spring square stamp star station stem stick stone stop store
storm story straight street strong sugar summer sun sweet table tail tall tea teach ten thread three
throat thumb thunder ticket time tin together tomorrow tongue tooth town train tree trousers true under
valley very village voice walk wall warm wash watch water wave weather week wheel white wind window wine
winter wire woman wood word work world worm write yellow yesterday young
"""
FALLBACK = tuple(_COMMON.split())
"""Where a dataset has no word list."""


def load_words(dataset: Path) -> list[str]:
    """Return the distinct words of `chat/words.txt` in file order, else the built-in ones.

    Raises:
        DataError: the list holds no word of 3 to 12 letters a to z.
    """
    path = dataset / "chat" / "words.txt"
    if not path.exists():
        return list(FALLBACK)
    words = [word for word in dict.fromkeys(path.read_text("utf-8").split()) if _WORD.fullmatch(word)]
    if not words:
        raise DataError(f"`{path}` holds no word of 3 to 12 letters a to z")
    return words


def is_held_out(word: str) -> bool:
    """Say whether a word is kept for evaluation."""
    return fraction("spelling", word) < HELD_OUT


def spelled(word: str) -> str:
    """Return the word letter by letter: `a-p-p-l-e`; without spaces, so each letter is its bare token."""
    return "-".join(word)


def _letter(word: str, rng: random.Random) -> str:
    """Pick a letter, mostly of the word, so that zero is a possible answer."""
    return rng.choice(word) if rng.random() < 0.9 else rng.choice("abcdefghijklmnopqrstuvwxyz")


def count_call(word: str, letter: str) -> str:
    """Return the calculator call that counts a letter."""
    return f"'{word}'.count('{letter}')"


def _conversation(word: str, rng: random.Random) -> Conversation:
    if rng.random() < 0.5:
        return conversation(user(rng.choice(_SPELL).format(word=word)), assistant(f"{spelled(word)}."))
    letter = _letter(word, rng)
    count = str(Counter(word)[letter])
    return conversation(
        user(rng.choice(_COUNT).format(word=word, letter=letter)),
        assistant(python(count_call(word, letter)), python_output(count), f"The answer is {count}."),
    )


def train_conversations(words: Sequence[str], count: int, *, seed: int | str) -> list[Conversation]:
    """Return `count` conversations about training words, half spelling and half counting.

    Raises:
        DataError: no word is left for training.
    """
    kept = [word for word in words if not is_held_out(word)]
    if not kept:
        raise DataError("the word list has no training word", hint="give a longer `chat/words.txt`")
    rng = stream("spelling", "train", seed)
    return [_conversation(rng.choice(kept), rng) for _ in range(count)]


def held_out_problems(words: Sequence[str], count: int, *, seed: int = 0) -> list[Problem]:
    """Return up to `count` problems about held-out words, spelling and counting in turn."""
    rng = stream("spelling", "test", seed)
    kept = sorted(filter(is_held_out, words), key=lambda word: fraction("spelling order", word))
    problems = []
    for index, word in enumerate(kept[:count]):
        if index % 2 == 0:
            problems.append(Problem(_SPELL[index // 2 % len(_SPELL)].format(word=word), spelled(word)))
            continue
        letter = _letter(word, rng)
        question = _COUNT[index // 2 % len(_COUNT)].format(word=word, letter=letter)
        problems.append(Problem(question, str(Counter(word)[letter]), count_call(word, letter)))
    return problems

"""Answer normalisation of the official VQA evaluation, oddities included.

Two answers count as the same when their normalised texts are equal, so every quirk here moves the score. The rules
are those of `vqaEval.py` in GT-Vision-Lab/VQA; what looks like a mistake is one, and is kept because published numbers
contain it.
"""

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Characters that are removed or become blanks. Apostrophe, colon, $, %, &, # and * are not among them."""

DIGIT_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

ARTICLES = frozenset({"a", "an", "the"})

# Well-formed contractions. The official table maps to each of them every spelling that lacks exactly one of its
# apostrophes. Left out are entries that can never act: keys with capitals (texts are lower-cased first: Im, Ive, Id've,
# I'dve) and keys that map to themselves (let's, she's).
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _spelling_table() -> dict[str, str]:
    """Misspelt contraction -> contraction, for every spelling that lacks one apostrophe."""
    table = {
        word[:position] + word[position + 1 :]: word
        for word in _CONTRACTIONS.split()
        for position, letter in enumerate(word)
        if letter == "'"
    }
    table["somebody'd"] = "somebodyd"  # the one entry that is the wrong way round officially
    return table


CONTRACTIONS = _spelling_table()

_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
# The official pattern also carries a mistyped look-behind that never fails, so only the following character counts.
_PERIOD = re.compile(r"\.(?!\d)")
# Officially a flag was passed where the number of replacements belongs; the flag's value is 32.
_MAX_PERIODS = 32


def strip_answer(text: str) -> str:
    """The first official step, applied to every answer: newlines and tabs become blanks, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _process_punctuation(text: str) -> str:
    """Removes or blanks out punctuation; what happens to a character is decided on the *original* text."""
    comma_in_number = _COMMA_BETWEEN_DIGITS.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        if mark in text:
            beside_blank = mark + " " in text or " " + mark in text
            result = result.replace(mark, "" if beside_blank or comma_in_number else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def _process_digits_and_articles(text: str) -> str:
    """Lower-cases, turns number words into digits, drops articles and restores apostrophes, word by word."""
    words = (DIGIT_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)  # answers repeat: a few thousand texts make up most of the 4.4 million of VQA v2 train
def normalise_answer(text: str) -> str:
    """Returns the form of an answer that the official VQA evaluation compares.

    In order: newlines and tabs to blanks and strip; punctuation (`;/[]"{}()=+\\_-><@`,?!` removed where the text holds
    the character next to a blank or holds a comma between digits, else replaced by a blank; periods removed unless a
    digit follows, 32 at most); lower case, number words zero..ten (and "none") to digits, articles dropped,
    contractions restored ("dont" -> "don't"), words joined by single blanks.

    The result may be empty ("the", "?"); the official evaluation compares empty texts like any other.

    Source: `processPunctuation` and `processDigitArticle` of vqaEval.py, GT-Vision-Lab/VQA.

    >>> normalise_answer("The T-shirt, dont  know.")
    "t shirt don't know"
    """
    return _process_digits_and_articles(_process_punctuation(strip_answer(text)))

"""Texts as lists of words, and what a training split says most often."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice

import numpy as np
import regex

from vinvl.data.table import Column
from vinvl.data.text import Texts

# Han, kana and what Unicode breaks by dictionary (Thai, Lao, Khmer, Myanmar): scripts without blanks between words.
_UNSPACED = r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Line_Break=SA}]"
_LETTER, _MORE = rf"[\p{{L}}--{_UNSPACED}]", rf"[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]"
_WORD = regex.compile(rf"(?V1)(?=[\p{{L}}\p{{N}}])(?:{_UNSPACED}\p{{M}}*|{_MORE}+(?:'{_LETTER}[{_LETTER}\p{{M}}]*)?)")
# Marks of direction and joiners stand within words and are no part of them; a zero width space parts words.
_UNSEEN = regex.compile(r"(?V1)[\p{Cf}--\u200b]")


def regex_tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Lower-cases and keeps runs of letters, their marks and digits, with one apostrophe ending such as "'s" attached.

    Without Java this comes closest to the PTB tokenizer of the COCO evaluation (`vinvl.captioning.java`): on
    COCO captions every score agrees to about 0.001. Splitting at blanks does not: punctuation glued to words costs
    0.09 of CIDEr. Letters are those of every script; if a script puts no blanks between words (Chinese, Japanese,
    Thai, Khmer), each letter with its marks counts as a word. Two ways to encode a letter are one.
    """
    return [_WORD.findall(_lowered(text)) for text in texts]


def _lowered(text: str) -> str:
    """Lower case, one encoding of each letter, nothing unseen, and one sign for the apostrophe."""
    if text.isascii():
        return text.lower()
    lowered = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return _UNSEEN.sub("", unicodedata.normalize("NFKC", lowered))


# What a training split says most often: a baseline for models, and an answer where nothing can be seen.


FIRST_WORDS = 2  # of a question, which tell its type: "how many", "is the", "what color"
LEAST_QUESTIONS = 5  # that begin alike, for their commonest answer to be taken
BEGINNING = 60  # letters of a question, in which they are looked for
MOST_QUESTIONS = 100_000  # looked at for their first words; of more, as many evenly spread

Commonest = dict[str, str]
"""The commonest answer of a training split: under "" of all, and of questions by their first words."""


def commonest_answers(questions: Texts, best: np.ndarray, answers: Sequence[str]) -> Commonest:
    """Of Q questions; {} where none of them has an answer of the vocabulary.

    Args:
        questions: those of a training split.
        best: (Q,) int64, the number of the answer that most people gave to each; -1 for none of the vocabulary.
        answers: the vocabulary.
    """
    known = np.flatnonzero(best >= 0)
    if len(known) == 0:
        return {}
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    chosen = known[:: -(-len(known) // MOST_QUESTIONS)]
    asked = questions.take(chosen) if isinstance(questions, Column) else [questions[index] for index in chosen]
    for question, answer in zip(asked, best[chosen].tolist(), strict=True):
        for beginning in beginnings(question):
            counts[beginning][answer] += 1
    found = {
        words: answers[min(count, key=lambda number: (-count[number], number))]
        for words, count in counts.items()
        if count.total() >= LEAST_QUESTIONS
    }
    return {"": answers[int(np.bincount(best[known]).argmax())], **found}


def beginnings(question: str) -> list[str]:
    """The first words of a question, most first: ["how many", "how"]."""
    words = [word.group() for word in islice(_WORD.finditer(_lowered(question[:BEGINNING])), FIRST_WORDS)]
    return [" ".join(words[:number]) for number in range(len(words), 0, -1)]


def commonest_for(question: str, commonest: Commonest) -> str | None:
    """The commonest answer to questions that begin like this one, or else of all; None if nothing is known."""
    return next((commonest[words] for words in [*beginnings(question), ""] if words in commonest), None)

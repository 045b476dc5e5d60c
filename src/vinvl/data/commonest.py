"""What a training split says most often: a baseline for models, and an answer where nothing can be seen."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from vinvl.data.text import Texts
from vinvl.data.words import regex_tokenize

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
    for index in known[:: -(-len(known) // MOST_QUESTIONS)].tolist():
        for beginning in beginnings(questions[index]):
            counts[beginning][int(best[index])] += 1
    found = {
        words: answers[min(count, key=lambda number: (-count[number], number))]
        for words, count in counts.items()
        if count.total() >= LEAST_QUESTIONS
    }
    return {"": answers[int(np.bincount(best[known]).argmax())], **found}


def beginnings(question: str) -> list[str]:
    """The first words of a question, most first: ["how many", "how"]."""
    words = regex_tokenize([question[:BEGINNING]])[0][:FIRST_WORDS]
    return [" ".join(words[:number]) for number in range(len(words), 0, -1)]


def commonest_for(question: str, commonest: Commonest) -> str | None:
    """The commonest answer to questions that begin like this one, or else of all; None if nothing is known."""
    return next((commonest[words] for words in [*beginnings(question), ""] if words in commonest), None)

"""N-grams as numbers: exact ids for every run of one to four words, looked up for a whole batch at once."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_N = 4
UNKNOWN = -1

IntArray = NDArray[np.int64]


class NgramCounts(NamedTuple):
    """The distinct n-grams of S sentences, one entry (of E) per sentence and n-gram."""

    sentences: IntArray  # (E,) which sentence
    ids: IntArray  # (E,) id of the n-gram, UNKNOWN if the index does not hold it
    orders: IntArray  # (E,) 0 for single words … 3 for runs of four
    counts: IntArray  # (E,) how often the n-gram occurs in the sentence
    lengths: IntArray  # (S,) words per sentence


class NgramIndex:
    """Ids 0 … len−1 for all n-grams (n = 1 … 4) of a set of sentences.

    A run of n words is its first n−1 words, known by their place in the table of length n−1, and one more word: two
    integers, joined to one and kept sorted. That is 8 bytes per n-gram, no hashing, no collisions, and look-ups are
    binary searches over a whole batch. COCO's training captions have some three million n-grams: as a dict of
    tuples they would take half a gigabyte.
    """

    def __init__(self, sentences: Iterable[Sequence[str]]) -> None:
        """Numbers the n-grams of all sentences; the ids depend on the set of sentences, not on their order."""
        sentences = list(sentences)
        vocabulary = sorted({word for sentence in sentences for word in sentence})
        self._word_ids = {word: i for i, word in enumerate(vocabulary)}
        self._tables: list[IntArray] = []
        words, lengths = self._words(sentences)
        remaining = _words_from_here(lengths)
        places = words  # of the n-gram that begins at each position, in the table of its length
        for n in range(2, MAX_N + 1):
            starts = np.flatnonzero(remaining >= n)
            keys = places[starts] * len(vocabulary) + words[starts + n - 1]
            table, found = np.unique(keys, return_inverse=True)
            self._tables.append(table)
            places = np.full(len(words), UNKNOWN)
            places[starts] = found
        self._first_ids = np.cumsum([0, len(vocabulary), *(len(table) for table in self._tables)])

    def __len__(self) -> int:
        return int(self._first_ids[-1])

    def count(self, sentences: Sequence[Sequence[str]]) -> NgramCounts:
        """The distinct n-grams of each sentence with their counts."""
        words, lengths = self._words(sentences)
        num_words = max(len(self._word_ids), int(words.max(initial=0)) + 1)
        remaining = _words_from_here(lengths)
        # `group` tells apart what is counted apart: at first sentences, then (sentence, first n−1 words).
        group = np.repeat(np.arange(len(lengths)), lengths)
        group_sentences = np.arange(len(lengths))
        group_places = np.zeros(len(lengths), dtype=np.int64)
        parts: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
        for n in range(1, MAX_N + 1):
            starts = np.flatnonzero(remaining >= n)
            keys = group[starts] * num_words + words[starts + n - 1]
            distinct, found, counts = np.unique(keys, return_inverse=True, return_counts=True)
            before, last = np.divmod(distinct, num_words)
            group_places = self._places(n, group_places[before], last)
            group_sentences = group_sentences[before]
            group = np.full(len(words), UNKNOWN)
            group[starts] = found
            ids = np.where(group_places == UNKNOWN, UNKNOWN, group_places + self._first_ids[n - 1])
            parts.append((group_sentences, ids, np.full(len(ids), n - 1), counts.astype(np.int64)))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return NgramCounts(columns[0], columns[1], columns[2], columns[3], lengths)

    def _places(self, n: int, before: IntArray, last: IntArray) -> IntArray:
        """Place in the table of n-grams of (place of the first n−1 words, last word); UNKNOWN if it is not there."""
        known = (before != UNKNOWN) & (last < len(self._word_ids))
        if n == 1:
            return np.where(known, last, UNKNOWN)
        table = self._tables[n - 2]
        if len(table) == 0:
            return np.full(len(last), UNKNOWN)
        keys = np.where(known, before * len(self._word_ids) + last, UNKNOWN)
        places = np.minimum(np.searchsorted(table, keys), len(table) - 1)
        return np.where(table[places] == keys, places, UNKNOWN)

    def _words(self, sentences: Sequence[Sequence[str]]) -> tuple[IntArray, IntArray]:
        """All words of all sentences in a row as ids (W,), and the sentences' lengths (S,).

        Words that the index does not know are numbered on from the last known one, for this call only.
        """
        new: dict[str, int] = {}
        known = self._word_ids
        flat = [
            known[word] if word in known else new.setdefault(word, len(known) + len(new))
            for sentence in sentences
            for word in sentence
        ]
        lengths = np.fromiter((len(sentence) for sentence in sentences), dtype=np.int64, count=len(sentences))
        return np.array(flat, dtype=np.int64), lengths


def _words_from_here(lengths: IntArray) -> IntArray:
    """For each word of sentences laid in a row: how many words its sentence has from it on, itself included."""
    ends = np.cumsum(lengths)
    return np.repeat(ends, lengths) - np.arange(int(lengths.sum()))

"""CIDEr-D and plain CIDEr, for a corpus or for a batch of sampled captions, by array operations."""

import math
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
        """Place in the table of n-grams of (place of the first n−1 words, last word); UNKNOWN if it is not in it."""
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


SIGMA = 6.0
SCALE = 10.0
_IMAGES_AT_A_TIME = 2000  # bounds the memory that reading the references takes
_SENTENCES_AT_A_TIME = 10_000

FloatArray = NDArray[np.float64]
Words = Sequence[str]


class Cider:
    """CIDEr of captions against the references of known images (Vedantam et al. 2015).

    References are counted once, at the start: 8 bytes per distinct n-gram of a reference, and a sorted table of all
    n-grams. COCO's 113,287 training images take an estimated 250 MB.
    """

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        """references[i] are those of image i as words, at least one; document frequencies are counted over them."""
        sentences = [sentence for image in references for sentence in image]
        self._index = NgramIndex(sentences)
        self._reference_starts = np.cumsum([0, *(len(image) for image in references)])  # (images + 1,)
        self._reference_lengths = np.array([_length(sentence) for sentence in sentences], dtype=np.int64)
        self._weigh(sentences, len(references), self._count_references(references))

    def _weigh(self, sentences: Sequence[Words], num_images: float, frequencies: FloatArray) -> None:
        """Weights of the index's n-grams that are in the references of that many images, and the sentences' norms."""
        # One weight more at the end, for n-grams that are nowhere: UNKNOWN is −1, the last place.
        self._weights = math.log(max(1.0, num_images)) - np.log(np.maximum(1.0, np.append(frequencies, 0.0)))
        norms = [np.zeros((0, MAX_N))]
        for start in range(0, len(sentences), _SENTENCES_AT_A_TIME):
            counts = self._index.count(sentences[start : start + _SENTENCES_AT_A_TIME])
            norms.append(_norms(counts, self._weights[counts.ids]))
        self._reference_norms = np.concatenate(norms)  # (references, 4)

    def scores(self, images: Sequence[int], captions: Sequence[Words], clipped: bool = True) -> FloatArray:
        """CIDEr-D (C,) of C captions as words, each against the references of image images[c] (0 to about 10).

        Cosine of tf-idf vectors, counts clipped to the reference's, times exp(−Δ²/2σ²) with Δ the difference in
        bigrams and σ = 6; averaged over n = 1 … 4 and the references; times 10. This is what the COCO evaluation calls
        "CIDEr". All scores are 0 if there is one image. Not `clipped`: plain CIDEr, without clip and length penalty.
        """
        if not captions:
            return np.zeros(0)
        counts = self._index.count(captions)
        image = np.asarray(images, dtype=np.int64)  # (C,)
        first = self._reference_starts[image]
        num_references = self._reference_starts[image + 1] - first
        most = int(num_references.max())
        products = self._products(counts, image, most, clipped)  # (C, R, 4)
        norms = _norms(counts, self._weights[counts.ids])[:, None]  # (C, 1, 4)
        present = np.arange(most) < num_references[:, None]  # (C, R)
        reference = np.where(present, first[:, None] + np.arange(most), first[:, None])
        norms = norms * self._reference_norms[reference]
        similarities = np.divide(products, norms, out=np.zeros_like(products), where=norms != 0).mean(axis=2)  # (C, R)
        if clipped:
            difference = np.array([_length(words) for words in captions])[:, None] - self._reference_lengths[reference]
            similarities *= np.exp(-(difference**2) / (2 * SIGMA**2))
        return SCALE * np.where(present, similarities, 0.0).sum(axis=1) / num_references

    def _products(self, counts: NgramCounts, image: IntArray, most: int, clipped: bool) -> FloatArray:
        """Scalar products (C, R, 4) of the captions' tf-idf vectors with those of their images' references.

        The n-grams of the images concerned are laid in a row, sorted by (image, n-gram), so that all captions' n-grams
        are found in them by one binary search; each meeting adds to one cell of the result.
        """
        concerned, row_of_caption = np.unique(image, return_inverse=True)
        starts, ends = self._entry_starts[concerned], self._entry_starts[concerned + 1]
        entries = _ranges(starts, ends)
        size = len(self._index)
        haystack = np.repeat(np.arange(len(concerned)), ends - starts) * size + self._entry_ids[entries]
        known = np.flatnonzero(counts.ids != UNKNOWN)
        needles = row_of_caption[counts.sentences[known]] * size + counts.ids[known]
        left, right = np.searchsorted(haystack, needles, "left"), np.searchsorted(haystack, needles, "right")
        ours = np.repeat(known, right - left)  # (meetings,)
        theirs = entries[_ranges(left, right)]  # (meetings,)
        their_counts = self._entry_counts[theirs].astype(np.int64)
        our_counts = counts.counts[ours]
        frequency = np.minimum(our_counts, their_counts) if clipped else our_counts
        values = frequency * their_counts * self._weights[counts.ids[ours]] ** 2
        cells = (counts.sentences[ours] * most + self._entry_references[theirs]) * MAX_N + counts.orders[ours]
        products = np.bincount(cells, values, len(image) * most * MAX_N).astype(np.float64, copy=False)
        return products.reshape(len(image), most, MAX_N)

    def _count_references(self, references: Sequence[Sequence[Words]]) -> FloatArray:
        """Lays down all n-grams of all references, sorted by (image, n-gram); returns in how many images each is."""
        frequencies = np.zeros(len(self._index))
        ids, owners, counts, sizes = [], [], [], [np.zeros(1, dtype=np.int64)]
        for start in range(0, len(references), _IMAGES_AT_A_TIME):
            chunk = references[start : start + _IMAGES_AT_A_TIME]
            found = self._index.count([sentence for image in chunk for sentence in image])
            first = np.cumsum([0, *(len(image) for image in chunk)])
            image = np.searchsorted(first, found.sentences, side="right") - 1
            order = np.lexsort((found.sentences, found.ids, image))
            image, ngram = image[order], found.ids[order]
            is_new = np.diff(image * len(self._index) + ngram, prepend=-1) != 0
            seen, times = np.unique(ngram[is_new], return_counts=True)
            frequencies[seen] += times
            ids.append(ngram.astype(np.int32))
            owners.append((found.sentences[order] - first[image]).astype(np.uint16))
            counts.append(found.counts[order].astype(np.uint16))
            sizes.append(np.bincount(image, minlength=len(chunk)))
        self._entry_ids = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
        self._entry_references = np.concatenate(owners) if owners else np.zeros(0, dtype=np.uint16)
        self._entry_counts = np.concatenate(counts) if counts else np.zeros(0, dtype=np.uint16)
        self._entry_starts = np.cumsum(np.concatenate(sizes))  # (images + 1,)
        return frequencies


def _length(words: Words) -> int:
    """The published "length" of a sentence is its number of bigrams."""
    return max(0, len(words) - 1)


def _norms(counts: NgramCounts, weights: FloatArray) -> FloatArray:
    """Lengths (S, 4) of the sentences' tf-idf vectors, one per n; weights (E,) of the entries' n-grams."""
    cells = counts.sentences * MAX_N + counts.orders
    squares = np.bincount(cells, (counts.counts * weights) ** 2, len(counts.lengths) * MAX_N)
    return np.sqrt(squares).reshape(-1, MAX_N)


def _ranges(starts: IntArray, ends: IntArray) -> IntArray:
    """start, start + 1, …, end − 1 of every pair, in a row."""
    sizes = ends - starts
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(int(sizes.sum()))

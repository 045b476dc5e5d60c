"""CIDEr-D and plain CIDEr, for a corpus or for a batch of sampled captions, by array operations."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vinvl.metrics.captions.ngrams import MAX_N, UNKNOWN, IntArray, NgramCounts, NgramIndex

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
        """references[i] are the references of image i as words, at least one per image.

        Document frequencies are counted over these images. Raises ValueError if an image has no reference.
        """
        if not all(references):
            raise ValueError("Every image needs a reference caption.")
        sentences = [sentence for image in references for sentence in image]
        self._index = NgramIndex(sentences)
        self._reference_starts = np.cumsum([0, *(len(image) for image in references)])  # (images + 1,)
        self._reference_lengths = np.array([_length(sentence) for sentence in sentences], dtype=np.int64)
        self._weigh(sentences, len(references), self._count_references(references))

    def _weigh(self, sentences: Sequence[Words], num_images: float, frequencies: FloatArray) -> None:
        """Weights of the index's n-grams that are in the references of so many images, and the sentences' norms."""
        # One weight more at the end, for n-grams that are nowhere: UNKNOWN is −1, the last place.
        self._weights = math.log(max(1.0, num_images)) - np.log(np.maximum(1.0, np.append(frequencies, 0.0)))
        norms = [np.zeros((0, MAX_N))]
        for start in range(0, len(sentences), _SENTENCES_AT_A_TIME):
            counts = self._index.count(sentences[start : start + _SENTENCES_AT_A_TIME])
            norms.append(_norms(counts, self._weights[counts.ids]))
        self._reference_norms = np.concatenate(norms)  # (references, 4)

    def cider_d(self, images: Sequence[int], captions: Sequence[Words]) -> FloatArray:
        """CIDEr-D (C,) of C captions as words, each against the references of image images[c] (0 to about 10).

        Cosine of tf-idf vectors, counts clipped to the reference's, times exp(−Δ²/2σ²) with Δ the difference in
        bigrams and σ = 6; averaged over n = 1 … 4 and the references; times 10.

        This is what the COCO evaluation calls "CIDEr". All scores are 0 where there is one image.
        """
        return self._scores(images, captions, clipped=True)

    def plain_cider(self, images: Sequence[int], captions: Sequence[Words]) -> FloatArray:
        """CIDEr (C,) without the clipping and the length penalty of `cider_d`, times 10 as well."""
        return self._scores(images, captions, clipped=False)

    def _scores(self, images: Sequence[int], captions: Sequence[Words], clipped: bool) -> FloatArray:
        if len(images) != len(captions):
            raise ValueError(f"Got {len(images)} images for {len(captions)} captions.")
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

"""The caption metrics over a set of images: BLEU, ROUGE-L, CIDEr-D and plain CIDEr, and the texts that they are of."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vinvl.data.words import regex_tokenize
from vinvl.exact import Gathered, decode_lines, encode_lines
from vinvl.run.errors import UserError

MAX_N = 4
BETA = 1.2  # of ROUGE-L
# The COCO evaluation keeps zero counts from dividing by zero with these; they show in per-image scores of zero matches.
_IN_COUNTS = 1e-15
_IN_TOTALS = 1e-9
BLEU = tuple(f"Bleu_{n}" for n in range(1, MAX_N + 1))
MEANS = ("ROUGE_L", "CIDEr", "CIDEr_plain")
SCORE_NAMES = (*BLEU, *MEANS)
SIGMA, SCALE = 6.0, 10.0  # of CIDEr
UNKNOWN = -1  # no n-gram of the references
_IMAGES_AT_A_TIME = 2000  # bounds the memory that reading the references takes
_SENTENCES_AT_A_TIME = 10_000
ImageId = int | str
CaptionTokenizer = Callable[[Sequence[str]], list[list[str]]]
"""Texts to words, many at once because the Java tokenizer takes seconds to start."""
Words = Sequence[str]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def no_words(reference: str, domain: str | None = None) -> UserError:
    """Raised if no reference caption has a word, because everything compared with them would score 0."""
    where = "" if domain is None else f" of domain {domain!r}"
    return UserError(
        f"No reference caption{where} has a letter or a digit of any script (the first is {reference[:60]!a}), so "
        "every caption would score 0: check the file and its encoding."
    )


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption, 0 to 1, with β = 1.2.

    Precision and recall of the longest common subsequence are each the best over the references, so they may come from
    two different ones, as in the COCO caption evaluation (Lin 2004 takes the best reference). A caption without words
    scores 0.
    """
    common = [longest_common_subsequence(reference, words) for reference in references]
    precision = max(common) / len(words) if words else 0.0
    recalls = (length / len(reference) for length, reference in zip(common, references, strict=True) if reference)
    recall = max(recalls, default=0.0)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence of two word lists.

    A row of the usual table is one Python integer, a bit per word of `first`, updated in a few operations for each word
    of `second` (Hyyrö 2004): about ten times faster than the table for captions.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(first)) - 1
    row = full  # a zero bit marks where the subsequence grows by one
    for word in second:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(first) - row.bit_count()


def count_bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """What BLEU needs to know of a caption and its references (at least one); of a corpus it needs the sums of these.

    Returns:
        the caption's length; that of the reference closest in length (the shorter one where two are equally close); for
        n = 1 … 4 the n-grams that are in a reference too, their counts clipped to the largest there; the caption's own.
    """
    allowed: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        allowed |= _ngrams(reference)
    matches = [0] * MAX_N
    for ngram, count in (_ngrams(words) & allowed).items():
        matches[len(ngram) - 1] += count
    length = len(words)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return [length, closest, *matches, *(max(0, length - n) for n in range(MAX_N))]


def bleu_scores(counts: Sequence[int]) -> list[float]:
    """BLEU-1 to BLEU-4, 0 to 1: geometric mean of the precisions up to n, times the brevity penalty.

    Source: Papineni et al. 2002, in the form of the COCO caption evaluation (closest reference length, no smoothing
    beyond tiny constants against division by zero).
    """
    length, reference_length, *rest = counts
    ratio = (length + _IN_COUNTS) / (reference_length + _IN_TOTALS)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product = 1.0
    scores = []
    for n in range(MAX_N):
        product *= (rest[n] + _IN_COUNTS) / (rest[MAX_N + n] + _IN_TOTALS)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


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
        """The ids depend on the set of sentences, not on their order."""
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
        sentence, ids, orders, repeats = map(np.concatenate, zip(*parts, strict=True))
        return NgramCounts(sentence, ids, orders, repeats, lengths)

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


class DocumentFrequencies(NamedTuple):
    """In how many of a number of images each n-gram is in a reference."""

    counts: Mapping[tuple[str, ...], float]
    images: float


class Cider:
    """CIDEr of captions against the references of known images (Vedantam et al. 2015).

    References are counted once, at the start: 8 bytes per distinct n-gram of a reference, and a sorted table of all
    n-grams. COCO's 113,287 training images take an estimated 250 MB.
    """

    def __init__(self, references: Sequence[Sequence[Words]], known: DocumentFrequencies | None = None) -> None:
        """references[i] are those of image i as words, at least one; document frequencies are theirs, if none known."""
        sentences = [sentence for image in references for sentence in image]
        self._index = NgramIndex([*sentences, *(known.counts if known else ())])
        self._reference_starts = np.cumsum([0, *(len(image) for image in references)])  # (images + 1,)
        self._reference_lengths = np.array([_length(sentence) for sentence in sentences], dtype=np.int64)
        frequencies = self._count_references(references)
        if known is not None:
            found = self._index.count(list(known.counts))
            whole = found.orders == found.lengths[found.sentences] - 1
            frequencies = np.zeros(len(self._index))
            frequencies[found.ids[whole]] = np.array([*known.counts.values()])[found.sentences[whole]]
        self._weigh(sentences, len(references) if known is None else known.images, frequencies)

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


class CaptionEvaluation(NamedTuple):
    """Scores under the names of the COCO evaluation, as fractions (tables print them times 100).

    "Bleu_1" … "Bleu_4", "ROUGE_L", "CIDEr" and "CIDEr_plain". What COCO, and every published table of COCO and nocaps
    results, calls CIDEr is CIDEr-D, and so it is here; "CIDEr_plain" is the first form of Vedantam et al. 2015, without
    clipped counts and length penalty. Corpus BLEU is computed from summed counts; the others are means over images.
    """

    corpus: dict[str, float]  # nan if no image was evaluated
    per_image: dict[ImageId, dict[str, float]]


def evaluate_captions(
    captions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    tokenize: CaptionTokenizer = regex_tokenize,
) -> CaptionEvaluation:
    """Scores one caption for each image against the image's references.

    All images of `captions` are evaluated; `references` may hold more. CIDEr's document frequencies are counted over
    the references of the images evaluated, as the COCO evaluation does: scoring a subset (a nocaps domain) on its own
    gives other values than averaging the per-image scores of a larger set. The order of the images changes nothing.

    Raises UserError if an image has no references, or no reference has a word.
    """
    image_ids = sorted(captions, key=lambda image_id: (isinstance(image_id, str), image_id))
    refuse_without_references(captions, references)
    if not image_ids:
        return CaptionEvaluation(dict.fromkeys(SCORE_NAMES, math.nan), {})
    candidates = tokenize([captions[image_id] for image_id in image_ids])
    words = iter(tokenize([text for image_id in image_ids for text in references[image_id]]))
    gold = [[next(words) for _ in references[image_id]] for image_id in image_ids]
    if not any(any(texts) for texts in gold):
        raise no_words(references[image_ids[0]][0])
    return score_words(image_ids, candidates, gold)


def score_words(
    image_ids: Sequence[ImageId], candidates: Sequence[Words], gold: Sequence[Sequence[Words]]
) -> CaptionEvaluation:
    """`evaluate_captions` of texts as words: the caption of each image (at least one), and its references."""
    counts = [count_bleu(candidate, texts) for candidate, texts in zip(candidates, gold, strict=True)]
    cider, rows = Cider(gold), range(len(image_ids))
    columns = (
        [rouge_l(candidate, texts) for candidate, texts in zip(candidates, gold, strict=True)],
        cider.scores(rows, candidates).tolist(),
        cider.scores(rows, candidates, clipped=False).tolist(),
    )
    per_image = {
        image_id: dict(zip(SCORE_NAMES, [*bleu_scores(count), *means], strict=True))
        for image_id, count, *means in zip(image_ids, counts, *columns, strict=True)
    }
    corpus = dict(zip(BLEU, bleu_scores([sum(column) for column in zip(*counts, strict=True)]), strict=True))
    corpus |= {name: math.fsum(column) / len(column) for name, column in zip(MEANS, columns, strict=True)}
    return CaptionEvaluation(corpus, per_image)


def refuse_without_references(captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> None:
    """Raises UserError if an image with a caption has no references."""
    for image_id in captions:
        if not references.get(image_id):
            raise UserError(f"Image {image_id!r} has a caption but no reference captions; add them or leave it out.")


class CaptionTexts(Gathered):
    """Caption and references of every image seen on any rank, by image id: what `evaluate_captions` takes.

    Every image counts once, however often and on however many ranks it was seen, and neither order nor batches nor
    ranks change a digit. The state is one line of JSON per image as bytes (about half a kilobyte).
    """

    is_differentiable = False

    def update(
        self, image_ids: Sequence[ImageId], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Adds B images: id, caption and reference captions of each."""
        rows = zip(image_ids, captions, map(list, references), strict=True)
        self.seen.append(encode_lines(rows).to(self.device))

    def compute(self) -> tuple[dict[ImageId, str], dict[ImageId, list[str]]]:
        """Captions and references; raises UserError if an image was seen with two of either."""
        captions: dict[ImageId, str] = {}
        references: dict[ImageId, list[str]] = {}
        for image_id, caption, gold in decode_lines(self.seen):
            if captions.setdefault(image_id, caption) != caption:
                raise UserError(
                    f"Image {image_id!r} has two captions, {captions[image_id]!r} and {caption!r}; give one per image."
                )
            if references.setdefault(image_id, gold) != gold:
                raise UserError(f"Image {image_id!r} was given with two lists of references; give the same each time.")
        return captions, references

"""BLEU as the COCO caption evaluation computes it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_N = 4

# The COCO evaluation keeps zero counts from dividing by zero with these; they show in per-image scores of zero matches.
_IN_COUNTS = 1e-15
_IN_TOTALS = 1e-9


class BleuCounts(NamedTuple):
    """What BLEU needs to know of one caption, or summed over captions; all are integers, so sums are exact."""

    length: int
    reference_length: int  # of the reference closest in length; the shorter one where two are equally close
    matches: tuple[int, ...]  # per n from 1 to 4: n-grams also in a reference, counts clipped to the largest there
    totals: tuple[int, ...]  # per n: n-grams of the caption


def count_bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> BleuCounts:
    """Counts of one caption against its references (at least one)."""
    allowed: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        allowed |= _ngrams(reference)
    found = _ngrams(words) & allowed
    matches = [0] * MAX_N
    for ngram, count in found.items():
        matches[len(ngram) - 1] += count
    length = len(words)
    return BleuCounts(
        length=length,
        reference_length=min((abs(len(reference) - length), len(reference)) for reference in references)[1],
        matches=tuple(matches),
        totals=tuple(max(0, length - n + 1) for n in range(1, MAX_N + 1)),
    )


def sum_bleu(counts: Iterable[BleuCounts]) -> BleuCounts:
    """The counts of a corpus: corpus BLEU is the BLEU of these, not a mean over captions."""
    length, reference_length = 0, 0
    matches, totals = [0] * MAX_N, [0] * MAX_N
    for one in counts:
        length += one.length
        reference_length += one.reference_length
        for n in range(MAX_N):
            matches[n] += one.matches[n]
            totals[n] += one.totals[n]
    return BleuCounts(length, reference_length, tuple(matches), tuple(totals))


def bleu_scores(counts: BleuCounts) -> list[float]:
    """BLEU-1 to BLEU-4, 0 to 1: geometric mean of the precisions up to n, times the brevity penalty.

    Source: Papineni et al. 2002, in the form of the COCO caption evaluation (closest reference length, no smoothing
    beyond tiny constants against division by zero).
    """
    ratio = (counts.length + _IN_COUNTS) / (counts.reference_length + _IN_TOTALS)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product = 1.0
    scores = []
    for n in range(MAX_N):
        product *= (counts.matches[n] + _IN_COUNTS) / (counts.totals[n] + _IN_TOTALS)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))

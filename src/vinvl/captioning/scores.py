"""The caption metrics as a `torchmetrics.Metric`: BLEU and ROUGE-L here, CIDEr beside."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from vinvl.captioning.cider import Cider
from vinvl.data.words import CaptionTokenizer, no_words, regex_tokenize
from vinvl.exact import decode_lines, encode_lines
from vinvl.run.errors import UserError

# ROUGE-L as the COCO caption evaluation computes it.


BETA = 1.2


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption, 0 to 1, with β = 1.2.

    Precision and recall of the longest common subsequence are each the best over the references, so they may come from
    two different ones, as in the COCO caption evaluation (Lin 2004 takes the best reference). A caption without words
    scores 0.
    """
    common = [longest_common_subsequence(reference, words) for reference in references]
    precision = max(common) / len(words) if words else 0.0
    recall = max(
        (length / len(reference) for length, reference in zip(common, references, strict=True) if reference),
        default=0.0,
    )
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


# BLEU as the COCO caption evaluation computes it.


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


# The in-process caption metrics over a set of images.


ImageId = int | str

BLEU = tuple(f"Bleu_{n}" for n in range(1, MAX_N + 1))
MEANS = ("ROUGE_L", "CIDEr", "CIDEr_plain")
SCORE_NAMES = (*BLEU, *MEANS)


@dataclass(frozen=True)
class CaptionEvaluation:
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
    for image_id in image_ids:
        if not references.get(image_id):
            raise UserError(f"Image {image_id!r} has a caption but no reference captions; add them or leave it out.")
    candidates = tokenize([captions[image_id] for image_id in image_ids])
    words = iter(tokenize([text for image_id in image_ids for text in references[image_id]]))
    gold = [[next(words) for _ in references[image_id]] for image_id in image_ids]
    if image_ids and not any(any(texts) for texts in gold):
        raise no_words(references[image_ids[0]][0])

    counts = [count_bleu(candidate, texts) for candidate, texts in zip(candidates, gold, strict=True)]
    cider = Cider(gold)
    rows = list(range(len(image_ids)))
    columns = (
        [rouge_l(candidate, texts) for candidate, texts in zip(candidates, gold, strict=True)],
        cider.cider_d(rows, candidates).tolist(),
        cider.plain_cider(rows, candidates).tolist(),
    )
    per_image = {
        image_id: dict(zip(SCORE_NAMES, [*bleu_scores(count), *means], strict=True))
        for image_id, count, means in zip(image_ids, counts, zip(*columns, strict=True), strict=True)
    }
    if not image_ids:
        return CaptionEvaluation(dict.fromkeys(SCORE_NAMES, float("nan")), {})
    corpus = dict(zip(BLEU, bleu_scores(sum_bleu(counts)), strict=True))
    corpus |= {name: math.fsum(column) / len(column) for name, column in zip(MEANS, columns, strict=True)}
    return CaptionEvaluation(corpus, per_image)


class CaptionScores(Metric):
    """BLEU-1 … 4, ROUGE-L and CIDEr of all captions seen: `CaptionEvaluation.corpus` as float64 scalars.

    Every image counts once, however often and on however many ranks it was seen, and neither order nor batches nor
    ranks change a digit. The state is the texts, one line of JSON per image as bytes (about half a kilobyte).
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    records: list[Tensor]

    def __init__(self, tokenize: CaptionTokenizer = regex_tokenize) -> None:
        super().__init__()
        self._tokenize = tokenize
        self.add_state("records", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no image must still join the gathering with a tensor of the right type.
        self.records = [encode_lines([]).to(self.device)]

    def update(
        self, image_ids: Sequence[ImageId], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> None:
        """Adds B images: id, caption and reference captions of each. Raises ValueError if the lengths differ."""
        if not len(image_ids) == len(captions) == len(references):
            raise ValueError(
                f"CaptionScores was given {len(image_ids)} images, {len(captions)} captions and references of "
                f"{len(references)}."
            )
        rows = zip(image_ids, captions, map(list, references), strict=True)
        self.records.append(encode_lines(rows).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores of all images; see `CaptionEvaluation`.

        Raises UserError if an image was seen with two captions or has no references.
        """
        return self._as_tensors(self._evaluate(None))

    def compute_for(self, image_ids: Iterable[ImageId]) -> dict[str, Tensor]:
        """Returns the scores of a subset, say a nocaps domain, with document frequencies counted only over it.

        With several ranks, all must call this. Ids that were never seen are left out; the scores of an empty subset
        are nan. Raises UserError as `compute` does.
        """
        wanted = set(image_ids)
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._as_tensors(self._evaluate(wanted))

    def seen(self) -> tuple[dict[ImageId, str], dict[ImageId, list[str]]]:
        """Caption and references of every image seen on any rank, by image id. With several ranks, all must call this.

        Raises UserError if an image was seen with two captions.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._texts()

    def _texts(self) -> tuple[dict[ImageId, str], dict[ImageId, list[str]]]:
        captions: dict[ImageId, str] = {}
        references: dict[ImageId, list[str]] = {}
        for image_id, caption, gold in decode_lines(self.records):
            if captions.setdefault(image_id, caption) != caption:
                raise UserError(
                    f"Image {image_id!r} has two captions, {captions[image_id]!r} and {caption!r}; give one per image."
                )
            if references.setdefault(image_id, gold) != gold:
                raise UserError(f"Image {image_id!r} was given with two lists of references; give the same each time.")
        return captions, references

    def _evaluate(self, wanted: set[ImageId] | None) -> CaptionEvaluation:
        captions, references = self._texts()
        if wanted is not None:
            captions = {image_id: caption for image_id, caption in captions.items() if image_id in wanted}
        return evaluate_captions(captions, references, self._tokenize)

    def _as_tensors(self, evaluation: CaptionEvaluation) -> dict[str, Tensor]:
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in evaluation.corpus.items()
        }

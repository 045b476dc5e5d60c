"""The caption metrics over a set of images: BLEU and ROUGE-L here, CIDEr beside, and the texts that they are of."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torchmetrics import Metric

from vinvl.captioning.cider import MAX_N, Cider
from vinvl.data.words import regex_tokenize
from vinvl.exact import decode_lines, encode_lines
from vinvl.run.errors import UserError

BETA = 1.2  # of ROUGE-L
# The COCO evaluation keeps zero counts from dividing by zero with these; they show in per-image scores of zero matches.
_IN_COUNTS = 1e-15
_IN_TOTALS = 1e-9
BLEU = tuple(f"Bleu_{n}" for n in range(1, MAX_N + 1))
MEANS = ("ROUGE_L", "CIDEr", "CIDEr_plain")
SCORE_NAMES = (*BLEU, *MEANS)
ImageId = int | str
CaptionTokenizer = Callable[[Sequence[str]], list[list[str]]]
"""Texts to words, many at once because the Java tokenizer takes seconds to start."""


def split_at_blanks(texts: Sequence[str]) -> list[list[str]]:
    """For texts that are tokenised already: words separated by white space."""
    return [text.split() for text in texts]


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
    refuse_without_references(captions, references)
    candidates = tokenize([captions[image_id] for image_id in image_ids])
    words = iter(tokenize([text for image_id in image_ids for text in references[image_id]]))
    gold = [[next(words) for _ in references[image_id]] for image_id in image_ids]
    if not image_ids:
        return CaptionEvaluation(dict.fromkeys(SCORE_NAMES, float("nan")), {})
    if not any(any(texts) for texts in gold):
        raise no_words(references[image_ids[0]][0])
    counts = [count_bleu(candidate, texts) for candidate, texts in zip(candidates, gold, strict=True)]
    cider = Cider(gold)
    rows = list(range(len(image_ids)))
    columns = (
        [rouge_l(candidate, texts) for candidate, texts in zip(candidates, gold, strict=True)],
        cider.scores(rows, candidates).tolist(),
        cider.scores(rows, candidates, clipped=False).tolist(),
    )
    per_image = {
        image_id: dict(zip(SCORE_NAMES, [*bleu_scores(count), *means], strict=True))
        for image_id, count, means in zip(image_ids, counts, zip(*columns, strict=True), strict=True)
    }
    corpus = dict(zip(BLEU, bleu_scores([sum(column) for column in zip(*counts, strict=True)]), strict=True))
    corpus |= {name: math.fsum(column) / len(column) for name, column in zip(MEANS, columns, strict=True)}
    return CaptionEvaluation(corpus, per_image)


def refuse_without_references(captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> None:
    """Raises UserError if an image with a caption has no references."""
    for image_id in captions:
        if not references.get(image_id):
            raise UserError(f"Image {image_id!r} has a caption but no reference captions; add them or leave it out.")


class CaptionTexts(Metric):
    """Caption and references of every image seen on any rank, by image id: what `evaluate_captions` takes.

    Every image counts once, however often and on however many ranks it was seen, and neither order nor batches nor
    ranks change a digit. The state is one line of JSON per image as bytes (about half a kilobyte).
    """

    full_state_update = False
    is_differentiable = False
    records: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
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
        """Adds B images: id, caption and reference captions of each."""
        rows = zip(image_ids, captions, map(list, references), strict=True)
        self.records.append(encode_lines(rows).to(self.device))

    def compute(self) -> tuple[dict[ImageId, str], dict[ImageId, list[str]]]:
        """Captions and references; raises UserError if an image was seen with two of either."""
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

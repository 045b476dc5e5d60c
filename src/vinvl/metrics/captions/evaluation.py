"""The in-process caption metrics over a set of images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vinvl.errors import UserError
from vinvl.metrics.captions.bleu import MAX_N, bleu_scores, count_bleu, sum_bleu
from vinvl.metrics.captions.cider import Cider
from vinvl.metrics.captions.rouge import rouge_l
from vinvl.metrics.captions.tokenizer import CaptionTokenizer, no_words, regex_tokenize

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

    corpus: dict[str, float]  # nan where no image was evaluated
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

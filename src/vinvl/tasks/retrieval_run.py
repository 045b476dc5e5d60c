"""One scoring run over the test candidates: what is scored, where the scores lie, what they say."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vinvl.data.caption_records import CaptionRecords
from vinvl.data.retrieval_candidates import Block, Fold, RetrievalCandidates, ScoringBlock
from vinvl.tasks.retrieval_files import ScoreFiles
from vinvl.tasks.retrieval_ranks import FoldRanks, best_columns, best_images, fold_ranks
from vinvl.tasks.retrieval_scoring import CaptionChunk, PairScorer, caption_chunks

TOP_MATCHES = 10


class FoldScorer:
    """Scores blocks of images with the captions of their fold; the captions of the last fold stay on the device."""

    def __init__(self, scorer: PairScorer, candidates: RetrievalCandidates, folds: Sequence[Fold]) -> None:
        self.scorer = scorer
        self.candidates = candidates
        self.folds = folds
        self._fold = -1
        self._chunks: list[CaptionChunk] = []

    def score(self, images: ScoringBlock, block: Block) -> Tensor:
        """Scores (images, C) float32 of a block."""
        if block.fold != self._fold:
            self._chunks = caption_chunks(
                self.candidates.captions.tokens,
                self.folds[block.fold].captions,
                max_rows=self.scorer.max_rows,
                max_tokens=self.scorer.max_tokens,
                special=self.scorer.special,
                device=images.region_features[0].device,
            )
            self._fold = block.fold
        return self.scorer.score(images.tag_ids, images.region_features, self._chunks)


@dataclass(frozen=True, eq=False)
class ScoringRun:
    """Candidates, their division, the files of the scores, what scores them, and what is told of each scored block."""

    candidates: RetrievalCandidates
    folds: Sequence[Fold]
    blocks: Sequence[Block]
    files: ScoreFiles
    scorer: FoldScorer
    progress: Callable[[int], None]

    def score(self, images: ScoringBlock) -> None:
        """Scores a block and saves it; nothing for a block that comes empty."""
        if not images.region_features:
            return
        scores = self.scorer.score(images, self.blocks[images.number])
        self.files.write(images.number, scores.cpu().numpy())
        self.progress(images.number)

    def blocks_of(self, fold: int) -> Iterable[tuple[Block, np.ndarray]]:
        """The blocks of a fold with their scores, read one at a time."""
        for number, block in enumerate(self.blocks):
            if block.fold == fold:
                yield block, self.files.read(number)

    def ranks(self, fold: int) -> FoldRanks:
        """Ranks within a fold, from the files."""
        return fold_ranks(self.folds[fold], partial(self.blocks_of, fold))

    def image_matches(self, number: int) -> list[dict[str, Any]]:
        """For each image of a block: its position in the split, its id, and its best captions with scores."""
        block, scores = self.blocks[number], self.files.read(number)
        fold, records = self.folds[block.fold], self.candidates.records
        matches = []
        for image, row, best in zip(
            fold.images[block.start : block.stop].tolist(), scores, best_columns(scores, TOP_MATCHES), strict=True
        ):
            top = [{**self._caption(fold, column), "score": probability(row[column])} for column in best.tolist()]
            matches.append({"position": image, "image_id": str(records.image_ids[image]), "top": top})
        return matches

    def caption_matches(self, fold_number: int) -> Iterable[dict[str, Any]]:
        """For each caption of a fold: what it is, and its best images with scores."""
        fold, image_ids = self.folds[fold_number], self.candidates.records.image_ids
        images, scores = best_images(fold, partial(self.blocks_of, fold_number), TOP_MATCHES)
        for column in range(len(fold.captions)):
            pairs = zip(images[column].tolist(), scores[column], strict=True)
            top = [{"image_id": str(image_ids[fold.images[i]]), "score": probability(score)} for i, score in pairs]
            yield {**self._caption(fold, column), "top": top}

    def first_captions(self) -> list[dict[str, Any]]:
        """The first captions of the first fold, which stand for matches where there are no scores."""
        fold = self.folds[0]
        return [{**self._caption(fold, column), "score": 0.0} for column in range(len(fold.captions))[:TOP_MATCHES]]

    def first_images(self, records: CaptionRecords, captions_per_image: int | None) -> Iterable[dict[str, Any]]:
        """For each caption of images that were left out: what it is, and the first images of the first fold."""
        image_ids = self.candidates.records.image_ids[self.folds[0].images[:TOP_MATCHES]]
        top = [{"image_id": str(image_id), "score": 0.0} for image_id in image_ids]
        for start, stop in pairwise(records.offsets.tolist()):
            for row in range(start, stop)[:captions_per_image]:
                yield {**described(records, row), "top": top}

    def _caption(self, fold: Fold, column: int) -> dict[str, Any]:
        return described(self.candidates.records, int(self.candidates.captions.rows[fold.captions[column]]))


def described(records: CaptionRecords, row: int) -> dict[str, Any]:
    """A caption of the records for the file of results."""
    assert records.captions is not None
    caption_id, image = records.caption_ids[row], np.searchsorted(records.offsets, row, side="right") - 1
    return {
        "caption_id": int(caption_id) if isinstance(caption_id, np.integer) else str(caption_id),
        "caption": records.captions[row],
        "image_id": str(records.image_ids[image]),
    }


def probability(score: float) -> float:
    """The softmax probability of "matched" for a score."""
    return round(float(1 / (1 + np.exp(-np.float64(score)))), 6)


def chance(fold: Fold, k: int) -> tuple[float, float]:
    """Recall at k, in percent, of an order drawn at random: image to text, text to image."""
    own = np.bincount(fold.owner, minlength=len(fold.images))  # captions of each image
    total = len(fold.captions)
    missed = np.ones(len(own))
    for drawn in range(min(k, total)):
        missed *= np.maximum(total - own - drawn, 0) / (total - drawn)
    return 100 * float(1 - missed.mean()), 100 * min(k / len(fold.images), 1.0)


def scores_folder(base: str | Path, fingerprint: str) -> Path:
    """Where the scores of a run lie."""
    return Path(base) / fingerprint

"""One scoring run over the test candidates: what is scored, where the scores are, what they say."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vinvl.captioning.files import CaptionRecords
from vinvl.retrieval.candidates import Block, Fold, RetrievalCandidates, ScoringBlock
from vinvl.retrieval.recall import FoldRanks, best_columns, best_images, fold_ranks
from vinvl.retrieval.scoring import PairScorer
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, read_json, write_text_atomically

DIGEST_BYTES = 12
PROBED_IMAGES = 16  # whose features are looked at; all of them would be gigabytes


def scores_fingerprint(
    weights: Mapping[str, Tensor], candidates: RetrievalCandidates, folds: Sequence[Fold], settings: Mapping[str, Any]
) -> str:
    """24 hexadecimal digits that change with weights, images, captions, tags, limits and settings (in plain types).

    Region features of only `PROBED_IMAGES` images are read, evenly spread; of the others only the number of regions.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    text, table = candidates.region_text, candidates.captions
    used = np.concatenate([fold.images for fold in folds])
    stored = candidates.images[used]
    captions = np.concatenate([fold.captions for fold in folds])
    arrays = [np.array([len(fold.images) for fold in folds]), text.store.num_regions[stored], captions]
    arrays += [table.tokens.lengths()[captions], *(table.tokens[int(caption)] for caption in captions)]
    arrays += [text.tag_ids(int(image)) for image in stored]
    probed = stored[np.linspace(0, len(stored) - 1, min(PROBED_IMAGES, len(stored))).astype(np.int64)]
    arrays += [text.region_rows(int(image)) for image in probed]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"|")
    digest.update("\n".join(str(image_id) for image_id in candidates.records.image_ids[used]).encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


DESCRIPTION = "candidates.json"  # beside the blocks: what they are scores of
HEADER_BYTES = 128  # of a .npy file of a small shape


class ScoreFiles:
    """The score matrices of the folds, (I, C) float32 each, in blocks of rows, so that scoring can be killed.

    A block is a .npy file that appears under its name only when it is whole, and is followed by the fingerprint (which
    np.load does not look at), so that a file that is cut short and one of another run are known as such.
    """

    def __init__(self, folder: Path, fingerprint: str, folds: Sequence[Fold], blocks: Sequence[Block]) -> None:
        """`fingerprint`: of all that the scores depend on."""
        self.folder = folder
        self.fingerprint = fingerprint
        self.folds = folds
        self.blocks = blocks

    def prepare(self, description: dict[str, Any]) -> tuple[frozenset[int], list[str]]:
        """Makes the folder, and says which blocks are finished, and which files there are not whole or of other scores.

        Raises:
            UserError: the folder cannot be made, is of other scores, or the disk has no room for what is missing.
        """
        path = self.folder / DESCRIPTION
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The folder {self.folder} for the scores cannot be made ({error.strerror}): "
                "pass data.scores_dir=FOLDER."
            ) from error
        if not path.exists():
            write_text_atomically(path, json.dumps({**description, "fingerprint": self.fingerprint}, indent=2) + "\n")
        elif read_json(path).get("fingerprint") != self.fingerprint:
            raise UserError(f"{path} is of other scores than these: remove the folder, or pass data.scores_dir=FOLDER.")
        there = [number for number in range(len(self.blocks)) if self.path(number).exists()]
        whole = frozenset(number for number in there if self._load(number) is not None)
        needed = sum(self.bytes_of(number) for number in range(len(self.blocks)) if number not in whole)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"The scores need {needed / 1e9:.1f} GB and {self.folder} has {free / 1e9:.1f} GB free: make room, "
                "pass data.scores_dir=FOLDER on another disk, or fewer candidates (data.test_candidates=1k)."
            )
        return whole, [self.path(number).name for number in there if number not in whole]

    def bytes_of(self, number: int) -> int:
        """Size of a block's file."""
        rows, columns = self.shape(number)
        return HEADER_BYTES + 4 * rows * columns + len(self.fingerprint)

    def shape(self, number: int) -> tuple[int, int]:
        """(images, captions) of a block."""
        block = self.blocks[number]
        return block.stop - block.start, len(self.folds[block.fold].captions)

    def path(self, number: int) -> Path:
        block = self.blocks[number]
        return self.folder / f"fold{block.fold:03d}_images{block.start:07d}-{block.stop - 1:07d}.npy"

    def write(self, number: int, scores: np.ndarray) -> None:
        """Saves a block's scores (images, captions) float32.

        Raises:
            UserError: a score is NaN or infinite, or the file cannot be written.
        """
        if not np.isfinite(scores).all():
            raise UserError("The model gives scores that are NaN or infinite, which have no order: check its weights.")
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(scores, dtype=np.float32))
        content.write(self.fingerprint.encode())
        with atomic_write(self.path(number), "wb") as file:
            file.write(content.getvalue())

    def read(self, number: int) -> np.ndarray:
        """A block's scores, (images, captions) float32.

        Raises:
            UserError: the file is missing, damaged or of other scores.
        """
        scores = self._load(number)
        if scores is None:
            raise UserError(
                f"{self.path(number)} is missing or damaged: run the same command again, which scores what is missing. "
                "Over several machines the folder must be one that all of them share (data.scores_dir=FOLDER)."
            )
        return scores

    def _load(self, number: int) -> np.ndarray | None:
        try:
            content = self.path(number).read_bytes()
        except OSError:
            return None
        if len(content) != self.bytes_of(number) or not content.endswith(self.fingerprint.encode()):
            return None
        try:
            scores: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except Exception:  # of a damaged header NumPy raises whatever its parsing does
            return None
        return scores if scores.shape == self.shape(number) and scores.dtype == np.float32 else None


TOP_MATCHES = 10


@dataclass(frozen=True, eq=False)
class ScoringRun:
    """Candidates, their division, the files of the scores, what scores them, and what is told of each scored block."""

    candidates: RetrievalCandidates
    folds: Sequence[Fold]
    blocks: Sequence[Block]
    files: ScoreFiles
    scorer: PairScorer
    progress: Callable[[int], None]

    def score(self, images: ScoringBlock) -> None:
        """Scores a block and saves it; nothing for a block that comes empty."""
        if images.region_features:
            fold = self.folds[self.blocks[images.number].fold]
            tokens = self.candidates.captions.tokens
            scores = self.scorer.score(images.tag_ids, images.region_features, tokens, fold.captions)
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
        """The first captions of the first fold, which stand for matches if there are no scores."""
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

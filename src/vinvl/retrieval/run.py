"""One scoring run over the test candidates: what its scores depend on, the files they are in, and what these say."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vinvl.captioning.files import CaptionRecords
from vinvl.retrieval.data import Block, Fold, RetrievalCandidates
from vinvl.retrieval.recall import best_columns, best_images
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
    digest = _hashed(weights)
    text, tokens = candidates.region_text, candidates.tokens
    used = np.concatenate([fold.images for fold in folds])
    stored = candidates.images[used]
    captions = np.concatenate([fold.captions for fold in folds])
    probed = stored[np.linspace(0, len(stored) - 1, min(PROBED_IMAGES, len(stored))).astype(np.int64)]
    arrays = [np.array([len(fold.images) for fold in folds]), text.store.num_regions[stored], captions]
    arrays += [tokens.lengths()[captions], *(tokens[int(caption)] for caption in captions)]
    arrays += [text.tag_ids(int(image)) for image in stored]
    arrays += [text.region_rows(int(image)) for image in probed]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"|")
    digest.update("\n".join(str(image_id) for image_id in candidates.records.image_ids[used]).encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def candidates_digest(records: CaptionRecords, folds: Sequence[Fold]) -> str:
    """24 hexadecimal digits that change with which images and captions the folds have."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for fold in folds:
        ids = records.image_ids[fold.images].tolist(), records.caption_ids[fold.captions].tolist()
        digest.update(json.dumps([list(map(str, one)) for one in ids]).encode())
    return digest.hexdigest()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """24 hexadecimal digits that change with weights."""
    return _hashed(weights).hexdigest()


def _hashed(weights: Mapping[str, Tensor]) -> "hashlib.blake2b":
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest


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
        path, elsewhere = self.folder / DESCRIPTION, "pass data.scores_dir=FOLDER"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"for the scores cannot be made ({error.strerror})"
            raise UserError(f"The folder {self.folder} {reason}: {elsewhere}.") from error
        if not path.exists():
            write_text_atomically(path, json.dumps({**description, "fingerprint": self.fingerprint}, indent=2) + "\n")
        elif read_json(path).get("fingerprint") != self.fingerprint:
            raise UserError(f"{path} is of other scores than these: remove the folder, or {elsewhere}.")
        there = [number for number in range(len(self.blocks)) if self.path(number).exists()]
        whole = self.whole()
        needed = sum(self.bytes_of(number) for number in range(len(self.blocks)) if number not in whole)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"The scores need {needed / 1e9:.1f} GB and {self.folder} has {free / 1e9:.1f} GB free: make room, "
                f"{elsewhere} on another disk, or fewer candidates (data.test_candidates=1k)."
            )
        return whole, [self.path(number).name for number in there if number not in whole]

    def whole(self) -> frozenset[int]:
        """The blocks that are on the disk, and whole."""
        return frozenset(number for number in range(len(self.blocks)) if self._load(number) is not None)

    def fold_of(self, number: int) -> Fold:
        return self.folds[self.blocks[number].fold]

    def shape(self, number: int) -> tuple[int, int]:
        """(images, captions) of a block."""
        return self.blocks[number].stop - self.blocks[number].start, len(self.fold_of(number).captions)

    def bytes_of(self, number: int) -> int:
        """Size of a block's file."""
        rows, columns = self.shape(number)
        return HEADER_BYTES + 4 * rows * columns + len(self.fingerprint)

    def path(self, number: int) -> Path:
        fold, start, stop = self.blocks[number]
        return self.folder / f"fold{fold:03d}_images{start:07d}-{stop - 1:07d}.npy"

    def write(self, number: int, scores: np.ndarray) -> None:
        """Saves a block's scores (images, captions) float32.

        Raises:
            UserError: a score is NaN or infinite, or the file cannot be written.
        """
        if not np.isfinite(scores).all():
            raise UserError("The model gives scores that are NaN or infinite, which have no order: check its weights.")
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(scores, dtype=np.float32))
        with atomic_write(self.path(number), "wb") as file:
            file.write(content.getvalue() + self.fingerprint.encode())

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

    def blocks_of(self, fold: int) -> Iterator[tuple[Block, np.ndarray]]:
        """The blocks of a fold with their scores, read one at a time."""
        for number, block in enumerate(self.blocks):
            if block.fold == fold:
                yield block, self.read(number)


TOP_MATCHES = 10
UNSCORED = -np.inf  # of what stands for matches where there are no scores


class Matches(NamedTuple):
    """The best captions of one image, best first."""

    position: int  # of the image in its split
    image_id: str
    top: list[dict[str, Any]]
    filled_in: bool = False  # without the model


class BestMatches:
    """What the files of results say of the scores in a run's files."""

    def __init__(self, files: ScoreFiles, records: CaptionRecords) -> None:
        self.files = files
        self.records = records

    def of_images(self, number: int) -> Iterator[Matches]:
        """The best captions of each image of a block."""
        (_, start, stop), fold, scores = self.files.blocks[number], self.files.fold_of(number), self.files.read(number)
        best = best_columns(scores, TOP_MATCHES)
        for image, row, columns in zip(fold.images[start:stop].tolist(), scores, best, strict=True):
            top = self._captions(fold.captions[columns], row[columns])
            yield Matches(image, str(self.records.image_ids[image]), top)

    def of_captions(self) -> Iterator[dict[str, Any]]:
        """For each caption of each fold: what it is, and its best images."""
        for number, fold in enumerate(self.files.folds):
            images, scores = best_images(fold, partial(self.files.blocks_of, number), TOP_MATCHES)
            for caption, best, found in zip(fold.captions.tolist(), images, scores, strict=True):
                yield {**described(self.records, caption), "top": self._images(fold.images[best], found)}

    def of_left_out_image(self, image_id: str) -> Matches:
        """The first captions of the first fold: of an image without regions none is more likely than another."""
        captions = self.files.folds[0].captions[:TOP_MATCHES]
        return Matches(0, image_id, self._captions(captions, np.full(len(captions), UNSCORED)), filled_in=True)

    def of_left_out_captions(self, records: CaptionRecords) -> Iterator[dict[str, Any]]:
        """For each caption of images without regions: what it is, and the first images of the first fold."""
        images = self.files.folds[0].images[:TOP_MATCHES]
        top = self._images(images, np.full(len(images), UNSCORED))
        for caption in range(int(records.offsets[-1])):
            yield {**described(records, caption), "top": top, "filled_in": True}

    def _captions(self, captions: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        pairs = zip(captions.tolist(), probabilities(scores), strict=True)
        return [{**described(self.records, caption), "score": score} for caption, score in pairs]

    def _images(self, images: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        pairs = zip(self.records.image_ids[images], probabilities(scores), strict=True)
        return [{"image_id": str(image_id), "score": score} for image_id, score in pairs]


def described(records: CaptionRecords, caption: int) -> dict[str, Any]:
    """A caption of the records for the file of results."""
    assert records.captions is not None
    caption_id, image = records.caption_ids[caption], np.searchsorted(records.offsets, caption, side="right") - 1
    return {
        "caption_id": int(caption_id) if isinstance(caption_id, np.integer) else str(caption_id),
        "caption": records.captions[caption],
        "image_id": str(records.image_ids[image]),
    }


def probabilities(scores: np.ndarray) -> list[float]:
    """The softmax probabilities of "matched" for scores."""
    # Beyond 700 the exponential has no number; there stand the pairs that a cheap score has ordered.
    return [round(float(1 / (1 + np.exp(min(-score, 700.0)))), 6) for score in scores.astype(np.float64)]

"""Scores of images with captions that are there already: a matrix, Oscar's by number, or our folder of scores."""

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from vinvl.captioning.files import CaptionRecords
from vinvl.examples import Outcome
from vinvl.retrieval.data import Block, Fold, RetrievalDataModule
from vinvl.retrieval.recall import FoldRanks, first_matches, fold_ranks
from vinvl.retrieval.run import DESCRIPTION, ScoreFiles, candidates_digest
from vinvl.retrieval.task import RetrievalTask, describe_folds, figures_of, fold_examples, recall_rows, with_mean
from vinvl.run.errors import UserError
from vinvl.run.files import json_object, reading
from vinvl.run.tensor_files import load_tensor_file, unlike_plain
from vinvl.run.values import shown
from vinvl.said import Scored

FORMS = "a .npy, .npz or .pt of one matrix (images, captions), or the folder of scores that vinvl.evaluate leaves"
HEADERS = 1 << 20  # bytes of an .npz beside the scores


def score(data: RetrievalDataModule, records: CaptionRecords, path: Path, missing: str) -> Scored:
    """Recall in both directions. Rows and columns are images and captions in the order of the split.

    Raises UserError if the scores are not of all pairs, or hold what is no number; `missing` changes nothing.
    """
    folds = data.test_folds(len(records), records.offsets, data.split_of["test"])
    blocks = of_folder(data, records, folds, path) if path.is_dir() else of_matrix(folds, path)
    ranks = [fold_ranks(fold, partial(list, one)) for fold, one in zip(folds, blocks, strict=True)]
    scores = with_mean(list(map(figures_of, ranks)), folds)
    rows = [("candidates", describe_folds(folds)), *recall_rows(scores)]
    return Scored(scores, RetrievalTask.headline, rows, examples_of(records, folds, ranks, blocks))


Blocks = list[tuple[Block, np.ndarray]]


def examples_of(
    records: CaptionRecords, folds: list[Fold], ranks: list[FoldRanks], blocks: list[Blocks]
) -> Iterator[Outcome]:
    for fold, of_fold, one in zip(folds, ranks, blocks, strict=True):
        yield from fold_examples(records, fold, of_fold, first_matches(fold, partial(list, one)))


def of_folder(data: RetrievalDataModule, records: CaptionRecords, folds: list[Fold], folder: Path) -> list[Blocks]:
    """The scores of each fold in a folder of ours; UserError if some are missing or damaged."""
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} has no {DESCRIPTION}, which a folder of scores has: give {FORMS}.")
    told = json_object(folder / DESCRIPTION)
    if told.get("candidates") not in (None, candidates_digest(records, folds)):  # None: of an earlier version
        raise UserError(f"{folder} has scores of other images or captions than those of this split: give its scores.")
    files = ScoreFiles(folder, str(told.get("fingerprint")), folds, data.blocks("test", folds))
    whole = files.whole()
    for number, block in enumerate(files.blocks):
        if number not in whole or not np.isfinite(files.read(number)).all():
            raise UserError(
                f"{files.path(number)} with the scores of images {block.start:,} to {block.stop - 1:,} is missing, "
                "damaged or of other candidates: evaluate its checkpoint again, with the data of this command."
            )
    return [list(files.blocks_of(number)) for number in range(len(folds))]


def of_matrix(folds: list[Fold], path: Path) -> list[Blocks]:
    """The scores of each fold in a matrix over the images of all folds; UserError if it is of other pairs."""
    last = folds[-1]
    images, captions = int(last.images.max()) + 1, int(last.captions.max()) + 1
    matrix = read_matrix(path, images, captions)
    if matrix.shape != (images, captions):
        turned = "; it looks turned: give its transpose" if matrix.shape == (captions, images) else ""
        raise UserError(
            f"{path} has scores of shape {' × '.join(map(str, matrix.shape))}, and the split has {images:,} images and "
            f"{captions:,} captions: give a row for each image and a column for each caption{turned}."
        )
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise UserError(f"{path} has the score {matrix[row, column]} in row {row}, column {column}, counted from 0.")
    return [
        [(Block(number, 0, len(fold.images)), matrix[np.ix_(fold.images, fold.captions)])]
        for number, fold in enumerate(folds)
    ]


def read_matrix(path: Path, images: int, captions: int) -> np.ndarray:
    """The one matrix of a file, of floats; of Oscar's `{number: score}`, image by image, that of these shapes.

    Raises UserError, naming the file, if it is damaged or something else. No code of the file is run.
    """
    with reading(path), open(path, "rb") as file:
        begin = file.read(6)
    try:
        content: Any
        if path.suffix in (".pt", ".pth"):
            content = load_tensor_file(path, whole=True)
        elif begin == b"\x93NUMPY":
            content = np.load(path, mmap_mode="r", allow_pickle=False)  # no more than the header is read
        else:
            content = _packed(path, 16 * images * captions + HEADERS)
        if isinstance(content, dict):
            return by_number(content, path, images, captions)
        if isinstance(content, torch.Tensor):
            if problem := unlike_plain(content):
                raise UserError(f"{path} {problem}: give {FORMS}.")
            content = content.detach().double().numpy()
        matrix = np.asarray(content)
    except UserError:
        raise
    except UnpicklingError:  # torch's own words are about how to open it all the same
        raise UserError(f"{path} is damaged or holds more than tensors, so it was not opened: give {FORMS}.") from None
    except Exception as error:  # of a hostile or damaged file NumPy and torch raise whatever their reading does
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}): give {FORMS}.") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {matrix.dtype} of shape {matrix.shape}: give {FORMS}.")
    return matrix.astype(np.float64, copy=False)


def _packed(path: Path, most: int) -> np.ndarray:
    """The one array of an .npz file, which may have so many bytes unpacked."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no file of NumPy: give {FORMS}.")
    with zipfile.ZipFile(path) as archive:
        names, stored = archive.namelist(), sum(member.file_size for member in archive.infolist())
    if len(names) != 1:
        raise UserError(f"{path} holds {shown(', '.join(names)) or 'nothing'}: give a file of one matrix.")
    if stored > most:
        raise UserError(f"{path} has {stored:,} bytes unpacked, more than the scores of this split: give its scores.")
    with np.load(path, allow_pickle=False) as content:
        array: np.ndarray = content[content.files[0]]
        return array


def by_number(content: dict[Any, Any], path: Path, images: int, captions: int) -> np.ndarray:
    """Oscar's results of retrieval: pair i · captions + j → score of image i with caption j."""
    if set(content) != set(range(images * captions)):
        raise UserError(
            f"{path} has scores of {len(content):,} pairs by number, and {images:,} images with {captions:,} captions "
            f"make {images * captions:,}, from 0: it is of other candidates, or not whole."
        )
    return np.array([float(content[number]) for number in range(images * captions)]).reshape(images, captions)

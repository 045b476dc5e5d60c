"""Scores of images with captions that are there already: a matrix, Oscar's by number, or our folder of scores."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vinvl.captioning.files import CaptionRecords
from vinvl.examples import Example
from vinvl.retrieval.data import Block, Fold, RetrievalDataModule
from vinvl.retrieval.recall import FoldRanks, first_matches, fold_ranks
from vinvl.retrieval.run import DESCRIPTION, ScoreFiles
from vinvl.retrieval.task import RetrievalTask, describe_folds, figures_of, fold_examples, recall_rows, with_mean
from vinvl.run.errors import UserError
from vinvl.run.files import read_json, reading
from vinvl.run.tensor_files import load_tensor_file
from vinvl.said import Scored

FORMS = "a .npy, .npz or .pt of one matrix (images, captions), or the folder of scores that vinvl.evaluate leaves"


def score(data: RetrievalDataModule, records: CaptionRecords, path: Path, missing: str) -> Scored:
    """Recall in both directions. Rows and columns are images and captions in the order of the split.

    Raises UserError if the scores are not of all pairs, or hold what is no number; `missing` changes nothing.
    """
    folds = data.test_folds(len(records), records.offsets, data.split_of["test"])
    blocks = of_folder(data, folds, path) if path.is_dir() else of_matrix(folds, path)
    ranks = [fold_ranks(fold, partial(list, one)) for fold, one in zip(folds, blocks, strict=True)]
    scores = with_mean(list(map(figures_of, ranks)), folds)
    rows = [("candidates", describe_folds(folds)), *recall_rows(scores)]
    return Scored(scores, RetrievalTask.headline, rows, examples_of(records, folds, ranks, blocks))


Blocks = list[tuple[Block, np.ndarray]]


def examples_of(
    records: CaptionRecords, folds: list[Fold], ranks: list[FoldRanks], blocks: list[Blocks]
) -> Iterator[Example]:
    for fold, of_fold, one in zip(folds, ranks, blocks, strict=True):
        yield from fold_examples(records, fold, of_fold, first_matches(fold, partial(list, one)))


def of_folder(data: RetrievalDataModule, folds: list[Fold], folder: Path) -> list[Blocks]:
    """The scores of each fold in a folder of ours; UserError if some are missing or damaged."""
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} has no {DESCRIPTION}, which a folder of scores has: give {FORMS}.")
    fingerprint = str(read_json(folder / DESCRIPTION).get("fingerprint"))
    files = ScoreFiles(folder, fingerprint, folds, data.blocks("test", folds))
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
    try:
        with reading(path):
            content: Any = (
                load_tensor_file(path) if path.suffix in (".pt", ".pth") else np.load(path, allow_pickle=False)
            )
        if isinstance(content, dict):
            return by_number(content, path, images, captions)
        if isinstance(content, np.lib.npyio.NpzFile):
            if len(content.files) != 1:
                raise UserError(f"{path} holds {', '.join(content.files) or 'nothing'}: give a file of one matrix.")
            content = content[content.files[0]]
        matrix = content.double().numpy() if isinstance(content, torch.Tensor) else np.asarray(content)
    except UserError:
        raise
    except Exception as error:  # of a hostile or damaged file NumPy and torch raise whatever their reading does
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}): give {FORMS}.") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {matrix.dtype} of shape {matrix.shape}: give {FORMS}.")
    return matrix.astype(np.float64, copy=False)


def by_number(content: dict[Any, Any], path: Path, images: int, captions: int) -> np.ndarray:
    """Oscar's results of retrieval: pair i · captions + j → score of image i with caption j."""
    if set(content) != set(range(images * captions)):
        raise UserError(
            f"{path} has scores of {len(content):,} pairs by number, and {images:,} images with {captions:,} captions "
            f"make {images * captions:,}, from 0: it is of other candidates, or not whole."
        )
    return np.array([float(content[number]) for number in range(images * captions)]).reshape(images, captions)

"""Scores on the disk, a file for each block, so that a scoring run can be killed and taken up again."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.json_files import read_json
from vinvl.data.retrieval_candidates import Block, Fold
from vinvl.errors import UserError
from vinvl.files import atomic_write, write_text_atomically

DESCRIPTION = "candidates.json"  # beside the blocks: what they are scores of
HEADER_BYTES = 128  # of a .npy file of a small shape


class ScoreFiles:
    """The score matrices of the folds, (I, C) float32 each, in blocks of rows.

    A block is a .npy file that appears under its name only when it is whole, and is followed by the fingerprint (which
    np.load does not look at), so that a file that is cut short and one of another run are known as such.
    """

    def __init__(self, folder: Path, fingerprint: str, folds: Sequence[Fold], blocks: Sequence[Block]) -> None:
        """`fingerprint`: of all that the scores depend on."""
        self.folder = folder
        self.fingerprint = fingerprint
        self.folds = folds
        self.blocks = blocks

    def prepare(self, description: dict[str, Any]) -> None:
        """Makes the folder, or checks that the one there is of the same scores.

        Raises:
            UserError: it cannot be made, is of other scores, or the disk has no room for what is missing.
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

    def check_room(self, finished: frozenset[int]) -> None:
        """Refuses scores that the disk cannot hold.

        Raises:
            UserError: says how much there is and how much is needed.
        """
        needed = sum(self.bytes_of(number) for number in range(len(self.blocks)) if number not in finished)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"The scores need {needed / 1e9:.1f} GB and {self.folder} has {free / 1e9:.1f} GB free: make room, "
                "pass data.scores_dir=FOLDER on another disk, or fewer candidates (data.test_candidates=1k)."
            )

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

    def finished(self) -> tuple[frozenset[int], list[str]]:
        """The blocks whose files are whole and of these scores, and the names of files there that are not."""
        whole, bad = set(), []
        for number in range(len(self.blocks)):
            path = self.path(number)
            if not path.exists():
                continue
            if self._load(number) is None:
                bad.append(path.name)
            else:
                whole.add(number)
        return frozenset(whole), bad

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

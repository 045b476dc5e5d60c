"""The indexed form of a corpus file: a folder of plain arrays and a manifest, read through memory maps.

| file | what it holds |
|---|---|
| tokens.bin | uint16 or int32: the text and the second text of row 0, of row 1, … |
| lengths.bin | (N, 2) uint16: tokens of the text and of the second text |
| starts.bin | (N,) int64: where the tokens of a row begin |
| kinds.bin | (N,) uint8, `RowKind` |
| images.bin | (N,) int32: the row's image, a place in image_ids.bin |
| lines.bin | (N,) uint32: the row's line in the corpus file |
| image_ids.bin | (I,) UTF-8 of fixed width, sorted, all different |
| manifest.json | what the index was made of; written last |
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vinvl.data.text import RaggedTokens
from vinvl.pretraining.corpus.rows import RowKind
from vinvl.run.errors import UserError
from vinvl.run.files import read_json

MANIFEST = "manifest.json"
FORMAT = "vinvl corpus index 1"
ROWS = -1


class ArrayKind(NamedTuple):
    """What an array of an index may be."""

    dtypes: re.Pattern[str]
    shape: tuple[int | None, ...]  # ROWS for the rows of the corpus, None for any number


ARRAYS = {
    "tokens": ArrayKind(re.compile("<u2|<i4"), (None,)),
    "lengths": ArrayKind(re.compile("<u2"), (ROWS, 2)),
    "starts": ArrayKind(re.compile("<i8"), (ROWS,)),
    "kinds": ArrayKind(re.compile(r"\|u1"), (ROWS,)),
    "images": ArrayKind(re.compile("<i4"), (ROWS,)),
    "lines": ArrayKind(re.compile("<u4"), (ROWS,)),
    "image_ids": ArrayKind(re.compile(r"\|S[1-9]\d{0,3}"), (None,)),
}
REMEDY = "build it again with python -m vinvl.pretraining.corpus build"


class Corpus:
    """The rows of one corpus file by number, 0 <= row < N; opening looks at all of it once.

    Pickling keeps the folder alone; forked and spawned data workers share the pages of the maps.

    Attributes:
        manifest: what the index was made of.
        lengths: (N, 2) uint16, tokens of the text and of the second text that the row itself gives.
        kinds: (N,) uint8, `RowKind`.
        images: (N,) int32, places in `image_ids`.
        image_ids: (I,) bytes, sorted.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            UserError: there is no index, or it is damaged or of another version.
        """
        self._open(Path(folder))
        problem = self._problem()
        if problem is not None:
            raise UserError(f"{self.folder} is damaged: {problem}; {REMEDY}.")

    def _open(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(self.folder)
        self._tokens = self._map("tokens")
        self.lengths = self._map("lengths")
        self._starts = self._map("starts")
        self.kinds = self._map("kinds")
        self.images = self._map("images")
        self._lines = self._map("lines")
        self.image_ids = self._map("image_ids")

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self._open(folder)  # which has been looked at

    def __len__(self) -> int:
        return len(self.kinds)

    def __repr__(self) -> str:
        return f"Corpus({self.source!r}: {len(self):,} rows, {len(self.image_ids):,} images)"

    @property
    def source(self) -> str:
        """The corpus file that the index was made of."""
        return str(self.manifest["file"])

    def image_id(self, row: int) -> str:
        return bytes(self.image_ids[self.images[row]]).decode()

    def describe(self, row: int) -> str:
        """Names a row for a message: "coco.jsonl line 17 (image 391895)"."""
        return f"{self.source} line {self._lines[row]} (image {self.image_id(row)})"

    def texts(self, rows: np.ndarray, sides: np.ndarray) -> RaggedTokens:
        """Token ids of the text (side 0) or second text (side 1) of each of n rows; (n,) integers both."""
        lengths = self.lengths[rows, sides].astype(np.int64)
        starts = self._starts[rows] + np.where(sides == 1, self.lengths[rows, 0], 0)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        return RaggedTokens(self._tokens[flat_ranges(starts, lengths)], offsets)

    def _problem(self) -> str | None:
        """What would be read past an array's end, or as no text, in an index whose bytes have changed."""
        ends = self._starts + self.lengths.sum(axis=1, dtype=np.int64)
        if self._starts.min() < 0 or self._starts.max() > len(self._tokens) or ends.max() > len(self._tokens):
            return "rows begin or end where there are no tokens"
        if self.images.min() < 0 or self.images.max() >= len(self.image_ids):
            return "rows are of images that it has not"
        if (
            self.kinds.max() > max(RowKind)
            or not 0 <= self._tokens.min() <= self._tokens.max() < self.manifest["vocab_size"]
        ):
            return "rows are of no kind, or have no words"
        try:
            for start in range(0, len(self.image_ids), 2**16):
                np.char.decode(self.image_ids[start : start + 2**16], "utf-8")
        except UnicodeDecodeError:
            return "its ids of images are no text"
        return None

    def problems(self) -> list[str]:
        """Reads everything; what is wrong, a sentence each; [] if the index is sound."""
        found = []
        for name in ARRAYS:
            if file_digest(self.folder / f"{name}.bin") != self.manifest["arrays"][name]["digest"]:
                found.append(f"{self.folder / name}.bin is not what was written; {REMEDY}.")
        return found

    def _map(self, name: str) -> np.ndarray:
        path, facts = self.folder / f"{name}.bin", self.manifest["arrays"][name]
        dtype, shape = np.dtype(facts["dtype"]), tuple(facts["shape"])
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        try:
            size = path.stat().st_size
            if size != expected:
                raise UserError(f"{path} has {size:,} bytes and should have {expected:,}; {REMEDY}.")
            # A plain array over the map: indexing np.memmap itself costs a microsecond more each time.
            return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); {REMEDY}.") from error


def flat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(Σ lengths,) int64: starts[0], starts[0] + 1, … lengths[0] of them, then those of starts[1], …"""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def file_digest(path: Path) -> str:
    """Hexadecimal digest of a file's content; UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {REMEDY}.") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is no corpus index (it has no {MANIFEST}); {REMEDY}.")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} is not of the format '{FORMAT}'; {REMEDY}.")
    if not _describes_an_index(manifest):
        raise UserError(f"{folder / MANIFEST} does not describe the arrays of an index; {REMEDY}.")
    return manifest


def _describes_an_index(manifest: dict[str, Any]) -> bool:
    """Whether all keys are there, and arrays of plain numbers that fit each other: a foreign file may say anything."""
    counts = [manifest.get(name) for name in ("kinds", "sources", "tags")]
    texts = [manifest.get(name) for name in ("file", "file_digest", "tokenizer")]
    numbers = [manifest.get(name) for name in ("rows", "vocab_size", "file_bytes", "file_modified_ns")]
    arrays = manifest.get("arrays")
    if not all(isinstance(entry, dict) and {int}.issuperset(map(type, entry.values())) for entry in counts):
        return False
    if not all(isinstance(entry, str) for entry in texts):
        return False
    if not all(type(entry) is int for entry in numbers) or not isinstance(arrays, dict):
        return False
    return arrays.keys() == ARRAYS.keys() and all(
        isinstance(facts, dict)
        and isinstance(facts.get("digest"), str)
        and isinstance(facts.get("dtype"), str)
        and ARRAYS[name].dtypes.fullmatch(facts["dtype"]) is not None
        and _fits(facts.get("shape"), ARRAYS[name].shape, manifest["rows"])
        for name, facts in arrays.items()
    )


def _fits(shape: Any, expected: tuple[int | None, ...], rows: int) -> bool:
    """Whether a shape is as expected; None stands for any number, and ROWS for the rows of the corpus."""
    if not isinstance(shape, list) or len(shape) != len(expected):
        return False
    wanted = (rows if size == ROWS else size for size in expected)
    return all(
        type(size) is int and size > 0 and want in (None, size) for size, want in zip(shape, wanted, strict=True)
    )

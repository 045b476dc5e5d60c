"""Reading a store file through to find what is wrong with its contents, some megabytes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from vinvl.regions.shard import IdLookup, Shard
from vinvl.run.errors import UserError

# Detectors do not clip the boxes that they regress, so a sound box may stick out a little.
BOX_TOLERANCE = 0.05
# Nor do they keep a box that they shrink to nothing from turning over: the published box coder counts its last pixel,
# so such a box is up to one pixel of the network's input less than nothing wide.
INVERSION_TOLERANCE = 0.01
_BLOCK_BYTES = 8 * 2**20


def verify_shard(shard: Shard) -> list[str]:
    """The problems of one store file as sentences: one for each kind, with its count and first example.

    A box is out of bounds if it sticks out of its image by more than `BOX_TOLERANCE` of the image's width or height,
    and inverted if it ends by more than `INVERSION_TOLERANCE` of that before it begins.
    """
    problems: list[str] = []
    try:
        for problem in (*IdLookup(shard.image_ids).problems(), *_undecodable_ids(shard.image_ids)):
            problems.append(f"{shard.header.path}: {problem}")
        problems.extend((*quick_problems(shard), *_problems_of_rows(shard)))
    except UserError as error:
        problems.append(str(error))
    return problems


def quick_problems(shard: Shard) -> Iterator[str]:
    """What is wrong with offsets, sizes, classes, attributes and the checksums of these and of ids, as sentences.

    Raises UserError where an array cannot be read.
    """
    path, header = shard.header.path, shard.header
    falls = _falls(shard)
    if len(falls):
        yield f"{path}: offsets fall after image number {falls[0]}; they must never fall."
    bad = np.flatnonzero((shard.sizes <= 0).any(axis=1))
    if len(bad):
        yield f"{path}: {len(bad)} images have a size that is not positive, the first is image number {bad[0]}."
    for name in ("offsets", "sizes", "image_ids"):
        yield from unlike_checksum(shard, name, crc32(getattr(shard, name).data))
    for name, names in (("classes", header.label_map.classes), ("attributes", header.label_map.attributes)):
        # Without names any index but a negative one is as good as another.
        limit = len(names) or np.iinfo(np.int32).max
        check = _Check(f"have {name} outside of the label map (0 to {limit - 1})", _outside_of(limit))
        yield from _problems_of(shard, name, [check])


def unlike_written(shard: Shard) -> Iterator[str]:
    """What of a file is not as it was written, as sentences; all of it is read."""
    try:
        yield from quick_problems(shard)
        for name in ("features", "boxes", "class_scores", "attribute_scores"):
            yield from _problems_of(shard, name, [])
    except UserError as error:
        yield str(error)


def _falls(shard: Shard) -> np.ndarray:
    """The images whose rows end before they begin."""
    return np.flatnonzero(np.diff(shard.offsets) < 0)


def _problems_of_rows(shard: Shard) -> Iterator[str]:
    """What is wrong with features, boxes and scores."""
    offsets, sizes, sound_offsets = shard.offsets, shard.sizes, not len(_falls(shard))

    def size_at(start: int, boxes: np.ndarray) -> np.ndarray:
        """(r, 2): width and height of each box's image."""
        return sizes[np.searchsorted(offsets, np.arange(start, start + len(boxes)), side="right") - 1]

    def inverted(start: int, boxes: np.ndarray) -> np.ndarray:
        allowed = INVERSION_TOLERANCE * size_at(start, boxes) if sound_offsets else 0
        return np.any(boxes[:, :2] - boxes[:, 2:] > allowed, axis=1)

    def out_of_bounds(start: int, boxes: np.ndarray) -> np.ndarray:
        if not sound_offsets:  # only with those is known which image a row belongs to
            return np.zeros(len(boxes), dtype=bool)
        size = np.tile(size_at(start, boxes), 2)  # (r, 4): W, H, W, H
        outside = (boxes < -BOX_TOLERANCE * size) | (boxes > (1 + BOX_TOLERANCE) * size)
        return np.any(outside, axis=1)

    outside = f"have boxes more than {BOX_TOLERANCE:.0%} of the image's size outside of the image"
    of_boxes = [_Check("have inverted boxes (x2 < x1 or y2 < y1)", inverted), _Check(outside, out_of_bounds)]
    for name in ("features", "boxes", "class_scores", "attribute_scores"):
        finite = _Check(f"have {name} that are NaN or infinite", _not_finite)
        yield from _problems_of(shard, name, [finite, *of_boxes] if name == "boxes" else [finite])


def _undecodable_ids(ids: np.ndarray) -> Iterator[str]:
    for start in range(0, len(ids), 65536):
        try:
            np.char.decode(ids[start : start + 65536], "utf-8")
        except UnicodeDecodeError:
            yield "image_ids hold bytes that are not UTF-8."
            return


@dataclass
class _Check:
    """A search for bad rows: `find_bad(first row, block)` gives (r,) bool."""

    what: str
    find_bad: Callable[[int, np.ndarray], np.ndarray]
    count: int = 0
    first: int = -1

    def look(self, start: int, block: np.ndarray) -> None:
        bad = np.flatnonzero(self.find_bad(start, block))
        if len(bad) and not self.count:
            self.first = start + int(bad[0])
        self.count += len(bad)


def _problems_of(shard: Shard, name: str, checks: list[_Check]) -> Iterator[str]:
    """Sentences for the checks that find bad rows, and one if the array is not as it was written."""
    checksum = 0
    for start, block in _blocks(shard, name):
        checksum = crc32(block.data, checksum)
        for check in checks:
            check.look(start, block)
    for check in checks:
        if check.count:
            yield f"{shard.header.path}: {check.count} regions {check.what}, first in {_place(shard, check.first)}."
    yield from unlike_checksum(shard, name, checksum)


def _place(shard: Shard, row: int) -> str:
    if len(_falls(shard)):
        return f"row {row}"
    image = int(np.searchsorted(shard.offsets, row, side="right")) - 1
    return f"image {shard.image_ids[image].decode('utf-8', 'replace')!r}, region {row - int(shard.offsets[image])}"


def unlike_checksum(shard: Shard, name: str, checksum: int) -> Iterator[str]:
    """A sentence if an array of this checksum is not the one that was written; none where the file has no checksums."""
    checksums = shard.header.checksums
    if checksums is not None and checksums[name] != checksum:
        yield (
            f"{shard.header.path}: {name} are not as they were written (their checksum differs): the file was damaged "
            "or edited, copy or write it again."
        )


def _not_finite(start: int, block: np.ndarray) -> np.ndarray:
    return ~np.isfinite(block).reshape(len(block), -1).all(axis=1)


def _outside_of(limit: int) -> Callable[[int, np.ndarray], np.ndarray]:
    def find_bad(start: int, block: np.ndarray) -> np.ndarray:
        outside = (block < 0) | (block >= limit)
        return np.any(outside.reshape(len(block), -1), axis=1)

    return find_bad


def _blocks(shard: Shard, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of one row array, some megabytes each."""
    row_bytes = shard.header.arrays[name].row_bytes
    if row_bytes == 0:
        return
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, shard.header.num_regions, step):
        yield start, shard.rows(name, start, min(start + step, shard.header.num_regions))

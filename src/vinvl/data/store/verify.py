"""Reading a store file through to find what is wrong with its contents, some megabytes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from vinvl.data.store.shard import Shard
from vinvl.errors import UserError

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
        problems.extend(f"{shard.header.path}: {problem}" for problem in _problems(shard))
    except UserError as error:
        problems.append(str(error))
    return problems


def _problems(shard: Shard) -> Iterator[str]:
    offsets, sizes = shard.offsets, shard.sizes
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if len(falls):
        yield f"offsets fall after image number {falls[0]}; they must never fall."
    yield from _id_problems(shard.image_ids)
    bad_sizes = np.flatnonzero((sizes <= 0).any(axis=1))
    if len(bad_sizes):
        yield f"{len(bad_sizes)} images have a size that is not positive, the first is image number {bad_sizes[0]}."

    def image_of(rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(offsets, rows, side="right") - 1

    def locate(row: int) -> str:
        # Which image a row belongs to is only known with sound offsets.
        if len(falls):
            return f"row {row}"
        image = int(image_of(np.array([row]))[0])
        return f"image {shard.image_ids[image].decode('utf-8', 'replace')!r}, region {row - int(offsets[image])}"

    def size_at(start: int, boxes: np.ndarray) -> np.ndarray:
        """(r, 2): width and height of each box's image."""
        return sizes[image_of(np.arange(start, start + len(boxes)))]

    def inverted(start: int, boxes: np.ndarray) -> np.ndarray:
        allowed = INVERSION_TOLERANCE * size_at(start, boxes) if not len(falls) else 0
        return np.any(boxes[:, :2] - boxes[:, 2:] > allowed, axis=1)

    def out_of_bounds(start: int, boxes: np.ndarray) -> np.ndarray:
        size = np.tile(size_at(start, boxes), 2)  # (r, 4): W, H, W, H
        outside = (boxes < -BOX_TOLERANCE * size) | (boxes > (1 + BOX_TOLERANCE) * size)
        return np.any(outside, axis=1)

    for name in ("features", "boxes", "class_scores", "attribute_scores"):
        yield from _bad_rows(shard, name, _not_finite, f"have {name} that are NaN or infinite", locate)
    yield from _bad_rows(shard, "boxes", inverted, "have inverted boxes (x2 < x1 or y2 < y1)", locate)
    if not len(falls):
        what = f"have boxes more than {BOX_TOLERANCE:.0%} of the image's size outside of the image"
        yield from _bad_rows(shard, "boxes", out_of_bounds, what, locate)
    labels = shard.header.label_map
    for name, names in (("classes", labels.classes), ("attributes", labels.attributes)):
        # Without names any index but a negative one is as good as another.
        limit = len(names) or np.iinfo(np.int32).max
        what = f"have {name} outside of the label map (0 to {limit - 1})"
        yield from _bad_rows(shard, name, _outside_of(limit), what, locate)


def _id_problems(ids: np.ndarray) -> Iterator[str]:
    order = np.argsort(ids, kind="stable")
    sorted_ids = ids[order]
    repeats = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
    if len(repeats):
        image_id = sorted_ids[repeats[0]].decode("utf-8", "replace")
        yield f"image ids are repeated {len(repeats)} times, such as {image_id!r}."
    if len(ids) and sorted_ids[0] == b"":
        yield f"image number {order[0]} has an empty id."
    for start in range(0, len(ids), 65536):
        try:
            np.char.decode(ids[start : start + 65536], "utf-8")
        except UnicodeDecodeError:
            yield "image_ids hold bytes that are not UTF-8."
            return


def _bad_rows(
    shard: Shard,
    name: str,
    find_bad: Callable[[int, np.ndarray], np.ndarray],
    what: str,
    locate: Callable[[int], str],
) -> Iterator[str]:
    """A sentence if `find_bad(first row, block)`, (r,) bool, finds any bad row of the array `name`."""
    count, first = 0, -1
    for start, block in _blocks(shard, name):
        bad = np.flatnonzero(find_bad(start, block))
        if len(bad) and not count:
            first = start + int(bad[0])
        count += len(bad)
    if count:
        yield f"{count} regions {what}, first in {locate(first)}."


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

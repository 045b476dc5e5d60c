"""Boxes in pixels from pixels, from shares of the image or the cells of a grid, and how large images are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.regions.formats.rows import ID_PATTERN, FeatureOptions, at, checked_size, id_by_pattern
from vinvl.regions.formats.tsv import IdTable, line_parts
from vinvl.regions.regions import BOX_NUMBERS
from vinvl.run.errors import UserError
from vinvl.run.files import json_object, parse_json
from vinvl.run.values import json_members, shown

GEOMETRY_TOLERANCE = 0.02  # of the image: published boxes are rounded to pixels or hundredths
LARGEST_SHARE = 2.0  # regressed boxes end a little outside of the image; in pixels hardly one is as small


@dataclass(frozen=True)
class Sizes:
    """Width and height of images; picklable, the table is opened in the process that reads."""

    options: FeatureOptions
    path: Path | None = None  # the file that tells them besides the features
    table: Path | None = None  # folder of an `IdTable` of it

    @cached_property
    def _table(self) -> IdTable | None:
        return IdTable(self.table) if self.table else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("options", "path", "table")}

    def find(self, image_id: str, own: tuple[int, int] | None) -> tuple[int, int] | None:
        """The size of an image, `own` if its features tell it; UserError if the file says another."""
        row = None
        if self._table is not None and (row := self._table.find(image_id)) is None and self.options.id_pattern:
            row = self._table.find(id_by_pattern(image_id, self.options.id_pattern, ID_PATTERN))
        given = None if row is None else (int(row[0]), int(row[1]))
        if given and own and given != own:
            raise UserError(
                f"its size is {own[0]} x {own[1]}, but {self.path} says {given[0]} x {given[1]}: one of the two is of "
                "another picture; leave out features.sizes, or give that of these pictures."
            )
        return given or own

    def boxes(
        self,
        image_id: str,
        geometry: np.ndarray | None,
        boxes: np.ndarray | None,
        own: tuple[int, int] | None,
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Boxes (R, 4) in pixels, width and height, of what tells them.

        Where there is geometry (R, 6), checked already, boxes are made of it, so that the region rows of the store are
        those of the file; only their scale is the image's. A size that nothing tells is found by holding boxes in
        pixels against the geometry. Raises UserError if the two do not belong together, or the size is not to be had.
        """
        size = self.find(image_id, own)
        if size is None and boxes is not None:  # boxes in pixels leave nothing to assume
            size = _size_between(geometry, boxes)
        elif size is None:
            size = self.options.assume_size
        if size is None:
            assume = (
                " features.assume_size=[1000,1000] for boxes in thousandths (the rows that a model reads stay the same)"
            )
            more = f", or{assume}" if boxes is None else ", such as COCO's annotations"
            raise UserError(f"nothing tells its width and height, which boxes need: pass features.sizes=FILE{more}.")
        edge = np.array([*size, *size], dtype=np.float32)
        if geometry is None:
            assert boxes is not None
            return boxes, size
        if boxes is not None and not (np.abs(boxes / edge - geometry[:, :4]) <= GEOMETRY_TOLERANCE).all():
            raise UserError("its boxes are not those of its features: not of one run, or other order.")
        return geometry[:, :4].astype(np.float32) * edge, size


def check_geometry(geometry: np.ndarray, what: str, remedy: str = "") -> None:
    """Raises UserError if (R, 6) or (R, 4) are not x1/W, y1/H, x2/W, y2/H (and w/W, h/H); `what` names them."""
    if geometry.ndim != 2 or geometry.shape[1] not in (4, BOX_NUMBERS):
        raise UserError(f"{what} have shape {geometry.shape}, expected (R, {BOX_NUMBERS}) shares of the image.")
    spans = geometry[:, 2:4] - geometry[:, 0:2]
    if np.isfinite(geometry).all() and geometry.size and (reach := float(np.abs(geometry).max())) > LARGEST_SHARE:
        raise UserError(f"{what} reach {reach:.6g}, expected shares of the image from 0 to 1{remedy}.")
    if not np.isfinite(geometry).all() or (geometry.shape[1] > 4 and (np.abs(spans - geometry[:, 4:]) > 1e-2).any()):
        raise UserError(f"{what} are not x1/W, y1/H, x2/W, y2/H, w/W, h/H{remedy}.")


def _size_between(geometry: np.ndarray | None, boxes: np.ndarray) -> tuple[int, int] | None:
    """Width and height from the boxes that reach furthest, in pixels and as shares of the image."""
    if geometry is None or not len(boxes) or boxes.max() <= LARGEST_SHARE:  # shares too, which tell no size
        return None
    size = []
    for column in (2, 3):
        region = int(np.argmax(geometry[:, column]))
        share = float(geometry[region, column])
        length = float(boxes[region, column]) / share if share > 0 else 0.0
        if not 0.5 < length < 2**31 - 1:
            return None
        size.append(round(length))
    return size[0], size[1]


# Grids: a feature for each cell of a picture.


def grid_rows(grid: np.ndarray, options: FeatureOptions) -> tuple[np.ndarray, int, int]:
    """Features (H * W, D) of a grid, H and W; rows of cells follow each other from the top.

    Of (D, H, W) or (H, W, D), also behind a dimension of 1, D is `features.dim`, or 2048, or the longest. Of (N, D) or
    (D, N), N is the number of cells in `features.grid`, or else a square. Raises UserError for other shapes.
    """
    told = f"a grid of shape {grid.shape}"
    grid = grid[0] if grid.ndim == 4 and len(grid) == 1 else grid
    if grid.ndim == 3:
        dim = options.dim or (2048 if 2048 in grid.shape else max(grid.shape))
        if (grid.shape[0] == dim) == (grid.shape[2] == dim):
            raise UserError(f"{told} is none of (D, H, W) or (H, W, D) with D = {dim}; pass features.dim=D.")
        if len(grid) == 1 < grid.shape[1] and options.grid is None:
            remedy = f"pass features.grid=[1,{grid.shape[1]}] if it is of cells"
            raise UserError(f"{told} may be of regions behind a dimension of 1: {remedy}.")
        grid = grid.transpose(1, 2, 0) if grid.shape[0] == dim else grid
        sides, grid = (grid.shape[0], grid.shape[1]), grid.reshape(-1, dim)
    else:
        cells = math.prod(options.grid or ()) if options.grid else len(grid)
        sides = options.grid or (math.isqrt(cells), math.isqrt(cells))
        if grid.ndim == 2 and (
            cells == grid.shape[1] != len(grid) if options.transposed is None else options.transposed
        ):
            grid = grid.T
        if grid.ndim != 2 or not math.prod(sides) == len(grid) > 0:
            wanted = f"({sides[0]} * {sides[1]}, D)" if options.grid else "(H * H, D); pass features.grid=[H,W]"
            raise UserError(f"{told} is none of (D, H, W), (H, W, D) or {wanted}.")
    if options.grid not in (None, sides):
        raise UserError(f"{told} has {sides[0]} x {sides[1]} cells, features.grid says {list(options.grid or ())}.")
    return grid, *sides


def cell_boxes(height: int, width: int, size: tuple[int, int] = (1, 1)) -> np.ndarray:
    """(height * width, 4) float32, the boxes of the cells of a grid over an image of that size, row by row."""
    rows, columns = np.divmod(np.arange(height * width), width)
    shares = np.stack([columns / width, rows / height, (columns + 1) / width, (rows + 1) / height], axis=1)
    return (shares * [*size, *size]).astype(np.float32)


# Image sizes from a file, for features that do not say how large their pictures were.


def sizes_in(path: Path) -> Iterator[tuple[object, Sequence[int]]]:
    """Image ids with width and height, from one of three kinds of file.

    A TSV of id and {"height": …, "width": …}, or a list of one such, as the published extractor wants it (`hw.tsv`); a
    JSON of COCO's form with `images` of `id`, `width` and `height`; or a JSON {id: [width, height]}. Raises UserError
    for anything else, and for a size that is none.
    """
    for name, width, height in _sizes_of_tsv(path) if path.suffix == ".tsv" else _sizes_of_json(path):
        with at(f"{path}: image {shown(name)}"):
            size = checked_size(width, height)
        yield name, size


def _sizes_of_json(path: Path) -> Iterator[tuple[object, object, object]]:
    holds = "image ids with [width, height]"
    first = next(iter(json_members(path, holds)), ("", None))[0]
    if first in ("images", "info", "licenses", "annotations", "categories", "type"):  # as COCO has it
        images = json_object(path).get("images")
        if not isinstance(images, list):
            raise UserError(f"{path} has no list of images; give a JSON {{id: [width, height]}} or of COCO's form.")
        for number, image in enumerate(images, start=1):
            if not isinstance(image, dict) or not {"id", "width", "height"} <= set(image):
                raise UserError(f"{path} image {number} lacks id, width or height.")
            yield image["id"], image["width"], image["height"]
        return
    for name, value in json_members(path, holds):
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(f"{path}: image {name[:40]!r} has {shown(value)}, [width, height] was expected.")
        yield name, value[0], value[1]


def _sizes_of_tsv(path: Path) -> Iterator[tuple[object, object, object]]:
    rows = (columns for part in line_parts(path) for _, columns, *_ in part.rows())
    for number, columns in enumerate(rows, start=1):
        if columns:
            place, name = f"{path} line {number}", columns[0]
            value: Any = parse_json(b"\t".join(columns[1:]).strip(), place)
            value = value[0] if isinstance(value, list) and value else value
            if not isinstance(value, dict) or not {"width", "height"} <= set(value):
                raise UserError(f"{place} has no width and height.")
            yield name.decode("utf-8", "replace").strip(), value["width"], value["height"]

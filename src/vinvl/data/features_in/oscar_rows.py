"""Rows of the TSV files of Oscar and VinVL: `features.tsv` of either dialect, and `predictions.tsv` with features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vinvl.data.features_in.base64_arrays import base64_rows, number_of_regions
from vinvl.data.features_in.lines import RowReader
from vinvl.data.features_in.objects import ObjectNames, joined, own_features, read_objects
from vinvl.data.features_in.predictions import PredictionsFile, PredictionsReader
from vinvl.data.features_in.rows import GEOMETRY, ReadOptions, checked_regions, id_in
from vinvl.data.id_table import IdTable
from vinvl.data.json_files import parse_json
from vinvl.data.record_fields import shown
from vinvl.data.store import Regions
from vinvl.errors import UserError


@dataclass(frozen=True)
class OscarRows:
    """`RowFormat` of `features.tsv`, whose rows are joined to `predictions.tsv` by image id.

    Attributes:
        options: what the files do not say.
        names: of classes and attributes.
        predictions: None if there are none, or if the TSV itself is of predictions that carry features.
        sizes: folder of an `IdTable` of width and height.
        of_predictions: the TSV is a `predictions.tsv`.
    """

    options: ReadOptions
    names: ObjectNames
    predictions: PredictionsFile | None = None
    sizes: Path | None = None
    of_predictions: bool = False

    @contextmanager
    def reader(self) -> Iterator[RowReader]:
        sizes = SizesOrAssumed(self.sizes, self.options.assume_size)
        if self.of_predictions:
            yield lambda line: self._prediction(line, sizes)
        elif self.predictions is None:
            yield lambda line: self._features(line, sizes, None)
        else:
            with self.predictions.opened() as predictions:
                yield lambda line: self._features(line, sizes, predictions)

    def _features(
        self, line: bytes, sizes: SizesOrAssumed, predictions: PredictionsReader | None
    ) -> tuple[str, Regions]:
        columns = line.split(b"\t")
        image_id = id_in(columns[0])
        try:
            rows = region_rows(columns, self.options.oscar_dim)
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from None
        features, geometry = split_geometry(rows, self.options.oscar_dim)
        objects = predictions.objects(image_id) if predictions else None
        found = joined(image_id, features, geometry, objects, sizes.of(image_id, objects is None), self.names)
        return image_id, checked_regions(found, self.options)

    def _prediction(self, line: bytes, sizes: SizesOrAssumed) -> tuple[str, Regions]:
        columns = line.split(b"\t")
        image_id = id_in(columns[0])
        image = f"image {image_id!r}"
        objects = read_objects(parse_json(columns[1] if len(columns) > 1 else b"", image), image)
        found = joined(image_id, own_features(objects, image), None, objects, sizes.of(image_id, False), self.names)
        return image_id, checked_regions(found, self.options)


class SizesOrAssumed:
    """Sizes of a file, else the one that is assumed."""

    def __init__(self, folder: Path | None, assumed: tuple[int, int] | None) -> None:
        self._table = IdTable(folder) if folder else None
        self._assumed = assumed

    def of(self, image_id: str, may_assume: bool) -> tuple[int, int] | None:
        """Width and height, None if they are not known; boxes in pixels leave nothing to assume."""
        size = self._table.find(image_id) if self._table else None
        if size is not None:
            return int(size[0]), int(size[1])
        return self._assumed if may_assume else None


def region_rows(columns: list[bytes], feature_dim: int) -> np.ndarray:
    """(R, D) or (R, D + 6) float32 of a row: `id, {"num_boxes", "features"}` or `id, number of boxes, …, features`.

    Raises:
        UserError: columns are missing, or the base64 is damaged or of another length.
    """
    if len(columns) < 2:
        raise UserError("the row has one column, expected an image id, a number of boxes and features.")
    widths = feature_dim + GEOMETRY, feature_dim
    if columns[1].lstrip().startswith(b"{"):
        content = parse_json(columns[1], "column 2")
        if not isinstance(content, dict) or not isinstance(content.get("features"), str):
            raise UserError(f"column 2 is {shown(content)}, expected num_boxes and features.")
        return base64_rows(content["features"], number_of_regions(content.get("num_boxes")), widths, "features", "<f4")
    if len(columns) < 3:
        raise UserError("the row has two columns, expected an image id, a number of boxes and features.")
    return base64_rows(columns[-1], number_of_regions(columns[1]), widths, "features", "<f4")


def split_geometry(rows: np.ndarray, feature_dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(R, D) features and (R, 6) geometry, None if the rows have none."""
    return rows[:, :feature_dim], rows[:, feature_dim:] if rows.shape[1] == feature_dim + GEOMETRY else None

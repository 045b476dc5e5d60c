"""Rows of the TSV files of bottom-up-attention and of LXMERT, whose columns have fixed places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vinvl.regions.formats.fields import base64_rows, number_of_regions
from vinvl.regions.formats.lines import RowReader
from vinvl.regions.formats.rows import (
    FeatureOptions,
    FoundImage,
    KnownNames,
    checked_regions,
    checked_size,
    id_in,
    shifted,
)
from vinvl.regions.regions import Regions
from vinvl.run.errors import UserError

BOTTOM_UP_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features"
)  # fmt: skip


@dataclass(frozen=True)
class ColumnRows:
    """`RowFormat` of a TSV with these columns. LXMERT's numbers leave the background out: its 0 is the store's 1."""

    columns: tuple[str, ...]
    options: FeatureOptions
    known: KnownNames

    @contextmanager
    def reader(self) -> Iterator[RowReader]:
        yield self._read

    def _read(self, line: bytes) -> tuple[str, Regions]:
        values = line.split(b"\t")
        if len(values) != len(self.columns):
            expected = f"{len(self.columns)}: {', '.join(self.columns)}"
            raise UserError(f"the row has {len(values)} columns, expected {expected}.")
        row = dict(zip(self.columns, values, strict=True))
        image_id = id_in(values[0])
        try:
            count = number_of_regions(row["num_boxes"])
            found = FoundImage(
                image_id,
                features=base64_rows(row["features"], count, None, "features", "<f4"),
                boxes=base64_rows(row["boxes"], count, (4,), "boxes", "<f4"),
                size=checked_size(*(row.get(f"image_{side}", row.get(f"img_{side}")) for side in "wh"), "the row"),
                **(self._objects(row, count) if "objects_id" in row else {}),
            )
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from None
        return image_id, checked_regions(found, self.options)

    def _objects(self, row: Mapping[str, bytes], count: int) -> dict[str, np.ndarray]:
        offset = 1 if self.options.class_offset is None else self.options.class_offset
        columns = {
            name: base64_rows(row[name], count, (1,), name, "<i8" if name.endswith("id") else "<f4")
            for name in ("objects_id", "attrs_id", "objects_conf", "attrs_conf")
        }
        return {
            "classes": shifted(columns["objects_id"][:, 0], offset, self.known.classes, "objects_id"),
            "class_scores": columns["objects_conf"][:, 0],
            "attributes": shifted(columns["attrs_id"], offset, self.known.attributes, "attrs_id"),
            "attribute_scores": columns["attrs_conf"],
        }

"""Rows of the TSV files of bottom-up-attention and of LXMERT, whose columns have fixed places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vinvl.regions.formats.fields import base64_rows, number_of_regions
from vinvl.regions.formats.lines import RowReader
from vinvl.regions.formats.rows import (
    FoundImage,
    KnownNames,
    ReadOptions,
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
class BottomUpRows:
    """`RowFormat` of bottom-up-attention's TSV, which has no classes."""

    options: ReadOptions

    @contextmanager
    def reader(self) -> Iterator[RowReader]:
        yield self._read

    def _read(self, line: bytes) -> tuple[str, Regions]:
        row = columns_of(line, BOTTOM_UP_COLUMNS)
        image_id = id_in(row["image_id"])
        try:
            count = number_of_regions(row["num_boxes"])
            found = FoundImage(
                image_id,
                features=base64_rows(row["features"], count, None, "features", "<f4"),
                boxes=base64_rows(row["boxes"], count, (4,), "boxes", "<f4"),
                size=checked_size(row["image_w"], row["image_h"], "the row"),
            )
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from None
        return image_id, checked_regions(found, self.options)


@dataclass(frozen=True)
class LxmertRows:
    """`RowFormat` of LXMERT's TSV. Its classes and attributes leave the background out: its 0 is the store's 1."""

    options: ReadOptions
    known: KnownNames

    @contextmanager
    def reader(self) -> Iterator[RowReader]:
        yield self._read

    def _read(self, line: bytes) -> tuple[str, Regions]:
        row = columns_of(line, LXMERT_COLUMNS)
        image_id = id_in(row["img_id"])
        offset = 1 if self.options.class_offset is None else self.options.class_offset
        try:
            count = number_of_regions(row["num_boxes"])
            classes = base64_rows(row["objects_id"], count, (1,), "objects_id", "<i8")[:, 0]
            attributes = base64_rows(row["attrs_id"], count, (1,), "attrs_id", "<i8")
            found = FoundImage(
                image_id,
                features=base64_rows(row["features"], count, None, "features", "<f4"),
                boxes=base64_rows(row["boxes"], count, (4,), "boxes", "<f4"),
                size=checked_size(row["img_w"], row["img_h"], "the row"),
                classes=shifted(classes, offset, self.known.classes, "objects_id"),
                class_scores=base64_rows(row["objects_conf"], count, (1,), "objects_conf", "<f4")[:, 0],
                attributes=shifted(attributes, offset, self.known.attributes, "attrs_id"),
                attribute_scores=base64_rows(row["attrs_conf"], count, (1,), "attrs_conf", "<f4"),
            )
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from None
        return image_id, checked_regions(found, self.options)


def columns_of(line: bytes, names: tuple[str, ...]) -> dict[str, bytes]:
    """The columns of a row by name. Raises UserError if there are more or fewer."""
    columns = line.split(b"\t")
    if len(columns) != len(names):
        raise UserError(f"the row has {len(columns)} columns, expected {len(names)}: {', '.join(names)}.")
    return dict(zip(names, columns, strict=True))

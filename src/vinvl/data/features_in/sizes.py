"""Image sizes from a file, for features that do not say how large their pictures were."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.features_in.left_out import LeftOut
from vinvl.data.features_in.lines import LONGEST_LINE
from vinvl.data.features_in.rows import checked_size
from vinvl.data.id_table import IdBlock, IdTable
from vinvl.data.json_files import parse_json, read_json
from vinvl.data.json_members import json_members
from vinvl.data.record_fields import checked_id, shown
from vinvl.errors import UserError

BLOCK_IDS = 100_000

SizeOf = tuple[object, object, object]


def write_sizes(path: Path, scratch: Path, left_out: LeftOut) -> IdTable:
    """A table of (width, height) in a new folder, from one of three kinds of file.

    A TSV of id and {"height": …, "width": …}, or a list of one such, as the published extractor wants it (`hw.tsv`); a
    JSON of COCO's form with `images` of `id`, `width` and `height`; or a JSON {id: [width, height]}.

    Raises:
        UserError: it is none of these, or has a size that is none, or (unless skipped) an id twice.
    """
    return IdTable.write(scratch, _blocks(_sizes(path), path), path, left_out.add)


def _blocks(sizes: Iterator[SizeOf], path: Path) -> Iterator[IdBlock]:
    while block := list(islice(sizes, BLOCK_IDS)):
        names = [str(checked_id(name, f"{path}: image id")) for name, _, _ in block]
        values = [checked_size(width, height, f"{path}: image {name!r}") for name, width, height in block]
        yield np.array([name.encode() for name in names], dtype=np.bytes_), np.array(values, dtype=np.int64)


def _sizes(path: Path) -> Iterator[SizeOf]:
    if path.suffix == ".tsv":
        yield from _tsv_sizes(path)
        return
    if _is_coco(path):
        images = read_json(path).get("images")
        if not isinstance(images, list):
            raise UserError(f"{path} has no list of images; give a JSON {{id: [width, height]}} or of COCO's form.")
        for number, image in enumerate(images, start=1):
            if not isinstance(image, dict) or not {"id", "width", "height"} <= set(image):
                raise UserError(f"{path} image {number} lacks id, width or height.")
            yield image["id"], image["width"], image["height"]
        return
    for name, value in json_members(path, "image ids with [width, height]"):
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(f"{path}: image {name[:40]!r} has {shown(value)}, [width, height] was expected.")
        yield name, value[0], value[1]


def _is_coco(path: Path) -> bool:
    """Whether a member of the object is a list of images, or what COCO has before that."""
    first = next(iter(json_members(path, "image ids with [width, height]")), ("", None))
    return first[0] in ("images", "info", "licenses", "annotations", "categories", "type")


def _tsv_sizes(path: Path) -> Iterator[SizeOf]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
                if not line.strip():
                    continue
                place = f"{path} line {number}"
                name, _, content = line.partition(b"\t")
                value: Any = parse_json(content.strip(), place)
                value = value[0] if isinstance(value, list) and value else value
                if not isinstance(value, dict) or not {"width", "height"} <= set(value):
                    raise UserError(f"{place} has no width and height.")
                yield name.decode("utf-8", "replace").strip(), value["width"], value["height"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error

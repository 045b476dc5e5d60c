"""Reads the statements of NLVR2 (Suhr et al. 2019): a sentence about two pictures that is true or false."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa

from vinvl.data.table import TEXT, TEXTS, Form, RecordTable
from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list
from vinvl.run.values import FilledText, Id, decoded, decoded_file, decoded_records, shown

NLVR2 = Form(
    noun="statements",
    called="identifier",
    columns={  # the official identifiers read split-set-pair-sentence
        "identifier": TEXT,
        "left_image_id": TEXT,
        "right_image_id": TEXT,
        "sentence": TEXT,
        "label": pa.bool_(),  # whether the sentence is true
        "left_tags": TEXTS,  # these two of the published folder, as one text each: ";" is a token there
        "right_tags": TEXTS,
    },
    images=("left_image_id", "right_image_id"),
    annotation="label",
)


class Statement(msgspec.Struct, gc=False):
    identifier: Id
    sentence: FilledText
    label: bool | str | None = None
    left_image_id: Id | None = None
    right_image_id: Id | None = None


def read_nlvr2(path: str | Path) -> RecordTable:
    """Reads one split from JSON Lines, the official form despite the name .json, or from one JSON list.

    Keys used: "identifier", "sentence" and, unless it is missing in every record, "label": "True" or "False" in any
    case, or a JSON boolean. The pictures of "dev-308-1-0" are "dev-308-1-img0" (left) and "dev-308-1-img1", as the
    official files are called without ".png", unless the record has the keys "left_image_id" and "right_image_id",
    which the official files do not have: with them statements about your own pictures can have any identifier.

    A list of the published folder ({"q", "o", "img_id", "label"}) has no identifiers: statements are called by file and
    number, and consistency cannot be had.

    Raises UserError, naming file and line or record (counted from 1), for records that are not as described, for
    identifiers that occur twice and for a split of which only some statements have labels.
    """
    return RecordTable.of(NLVR2, _published_rows(path) if _is_published(path) else _rows(path), path)


def _rows(path: str | Path) -> Iterator[tuple[Any, ...]]:
    for file, number, one in decoded_records(path, msgspec.json.Decoder(Statement)):
        place, left, right, label = f"{file} {number}", one.left_image_id, one.right_image_id, one.label
        if left is None and right is None:
            pair, _, sentence = str(one.identifier).rpartition("-")
            if not pair or not sentence:
                raise UserError(
                    f"{place}: no pictures can be derived from the identifier {shown(str(one.identifier))}, which does "
                    "not read split-set-pair-sentence; give left_image_id and right_image_id."
                )
            left, right = f"{pair}-img0", f"{pair}-img1"
        elif left is None or right is None:
            stated = "right_image_id" if left is None else "left_image_id"
            raise UserError(f"{place} has {stated} only; give both left_image_id and right_image_id, or none of them.")
        if isinstance(label, str):
            if label.lower() not in ("true", "false"):
                raise UserError(f'{place}: label is {shown(label)}, expected "True" or "False".')
            label = label.lower() == "true"
        yield file, number, one.identifier, left, right, one.sentence, label, None, None


class PublishedStatement(msgspec.Struct, gc=False):
    """`img_id` and `o`, the tags, by side: left and right."""

    q: FilledText
    img_id: dict[Literal["left", "right"], Id]
    o: dict[Literal["left", "right"], str]
    label: Literal[0, 1] | None = None


def _is_published(path: str | Path) -> bool:
    """Whether a list of records has those of the published folder, told by the first."""
    if not begins_a_list(path):
        return False
    first = next(iter(decoded_file(path, list[msgspec.Raw], "list of statements")), msgspec.Raw(b"{}"))
    return {"q", "img_id"} <= decoded(first, msgspec.json.Decoder(dict[str, Any]), str(path), "$[0]").keys()


def _published_rows(path: str | Path) -> Iterator[tuple[Any, ...]]:
    for file, number, one in decoded_records(path, msgspec.json.Decoder(PublishedStatement)):
        if len(one.img_id) < 2 or not one.img_id.keys() <= one.o.keys():
            raise UserError(f"{file} {number} needs a left and a right image in img_id, and the tags of both in o.")
        (first, left), (second, right) = one.img_id.items()  # which is first is what their order says, as published
        tags = ([one.o[side]] if one.o[side] else [] for side in (first, second))
        label = None if one.label is None else bool(one.label)
        yield file, number, f"{Path(path).stem}#{number}", left, right, one.q, label, *tags

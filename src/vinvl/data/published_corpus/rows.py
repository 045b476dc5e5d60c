"""One line of the published corpus TSV: which image, which label, and the text."""

from __future__ import annotations

from typing import NamedTuple

from vinvl.data.record_fields import checked_id
from vinvl.errors import UserError

CHUNKED_DATASETS = frozenset({"googlecc", "sbu", "oi", "objects365", "tagoi"})
"""Their features come in many files; the image info names which."""


class PublishedRow(NamedTuple):
    """A checked line. A question's second text is the answer that `label_id` names, a caption's the image's tags."""

    dataset: str
    image_id: str
    label_id: str
    label_info: str
    is_question: bool
    text: str


def dataset_of(line: bytes) -> str:
    """The dataset that a line begins with; "cc" is googlecc's short name."""
    name = line.partition(b"\t")[0].partition(b"_")[0].strip().decode("utf-8", "replace")
    return "googlecc" if name == "cc" else name


def published_row(line: bytes, place: str) -> PublishedRow:
    """Takes a line apart and checks it as the published code does. `place` names it ("corpus.tsv line 3").

    Raises:
        UserError: columns are missing, do not fit each other, or the text is empty.
    """
    try:
        columns = [column.strip() for column in line.decode("utf-8").split("\t")]
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if len(columns) < 3:
        raise UserError(
            f"{place} has {len(columns)} columns; image info, label info and text, with tabs, were expected."
        )
    dataset = dataset_of(line)
    image, label = columns[0].split("_"), columns[1].split("_")
    needed = 3 if dataset in CHUNKED_DATASETS else 2
    if len(image) < needed:
        parts = "dataset, chunk and image id" if needed == 3 else "dataset and image id"
        raise UserError(f"{place}: the image info is {columns[0][:40]!r}, expected {parts}, joined by _.")
    if image[0] != label[0]:
        raise UserError(f"{place} names the datasets {image[0][:40]!r} and {label[0][:40]!r}; they must be the same.")
    is_question = "qa" in label
    image_place = -2 if is_question else -1
    if len(label) < 1 - image_place or image[-1] != label[image_place]:
        raise UserError(
            f"{place}: the image is {image[-1][:40]!r} and the label info {columns[1][:60]!r}, "
            "which is of another image."
        )
    if not columns[2]:
        raise UserError(f"{place} has no text; write one or leave the row out.")
    image_id = str(checked_id(image[-1], f"{place}: the image id"))
    return PublishedRow(dataset, image_id, label[-1], columns[1], is_question, columns[2])

"""Reads the statements of NLVR2 (Suhr et al. 2019): a sentence about two pictures that is true or false."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vinvl.data.columns import TextColumn, checked_mask, select_texts
from vinvl.data.records import (
    Record,
    RecordSources,
    checked_record,
    parts_to_join,
    refuse_mixed,
    refuse_repeated_ids,
    required_id,
    required_text,
    shown,
)
from vinvl.run.errors import UserError
from vinvl.run.files import json_records

_OWN_ID = "give every statement an identifier of its own"


@dataclass(frozen=True, eq=False)
class NLVR2Records:
    """N statements of one split, in the order of the file, held in NumPy arrays only (see `vinvl.data.columns`).

    - identifiers (N,): text of fixed width, all different; the official ones read split-set-pair-sentence.
    - image_ids (N, 2): text of fixed width, the left and the right picture.
    - sentences: never blank.
    - labels (N,) bool: whether the sentence is true; None for a split without labels.
    - sources: file and record or line number, for messages.
    """

    identifiers: np.ndarray
    image_ids: np.ndarray
    sentences: TextColumn
    labels: np.ndarray | None
    sources: RecordSources

    def __len__(self) -> int:
        return len(self.identifiers)

    def describe(self, index: int) -> str:
        """Names a record for a message: "dev.json line 17 (identifier dev-308-1-0)"."""
        return f"{self.sources[index]} (identifier {self.identifiers[index]})"

    def select(self, keep: np.ndarray) -> "NLVR2Records":
        """The records where `keep` (N,) bool is True, in their order; ValueError for anything else than such a mask."""
        keep = checked_mask(keep, len(self))
        return NLVR2Records(
            identifiers=self.identifiers[keep],
            image_ids=self.image_ids[keep],
            sentences=select_texts(self.sentences, keep),
            labels=None if self.labels is None else self.labels[keep],
            sources=self.sources.select(keep),
        )


def read_nlvr2(path: str | Path) -> NLVR2Records:
    """Reads one split from JSON Lines, the official form despite the name .json, or from one JSON list.

    Keys used: "identifier", "sentence" and, unless it is missing in every record, "label": "True" or "False" in any
    case, or a JSON boolean. The pictures of "dev-308-1-0" are "dev-308-1-img0" (left) and "dev-308-1-img1", as the
    official files are called without ".png", unless the record has the keys "left_image_id" and "right_image_id",
    which the official files do not have: with them statements about your own pictures can have any identifier.

    Raises UserError, naming file and line or record (counted from 1), for records that are not as described, for
    identifiers that occur twice and for a split of which only some statements have labels.
    """
    file, numbers = f"{path} record", []
    identifiers, image_ids, sentences, labels = [], [], [], []
    for file, number, value in json_records(path):
        place = f"{file} {number}"
        record = checked_record(value, place, "identifier and sentence")
        identifier = str(required_id(record, "identifier", place))
        numbers.append(number)
        identifiers.append(identifier)
        image_ids.append(_image_ids(record, identifier, place))
        sentences.append(required_text(record, "sentence", place))
        labels.append(_label(record, place))
    if not identifiers:
        raise UserError(f"{path} holds no statements; an empty split cannot be used.")
    sources = RecordSources.of_file(file, numbers)
    labelled = np.array([label is not None for label in labels])
    refuse_mixed(labelled, sources, "label")
    identifier_array = np.array(identifiers, dtype=np.str_)
    refuse_repeated_ids(identifier_array, sources, "identifier", _OWN_ID)
    return NLVR2Records(
        identifiers=identifier_array,
        image_ids=np.array(image_ids, dtype=np.str_),
        sentences=TextColumn.from_texts(sentences),
        labels=np.array(labels, dtype=np.bool_) if labelled.all() else None,
        sources=sources,
    )


def concatenate(parts: Sequence[NLVR2Records]) -> NLVR2Records:
    """Joins records, as train and dev are joined; order is kept.

    Raises UserError if an identifier occurs twice or only some parts have labels; ValueError if there are no parts.
    """
    parts = parts_to_join(parts)
    sources = RecordSources.concatenate([part.sources for part in parts])
    identifiers = np.concatenate([part.identifiers for part in parts])
    labels = [part.labels for part in parts if part.labels is not None]
    labelled = [part.labels is not None for part in parts]
    refuse_mixed(np.repeat(labelled, [len(part) for part in parts]), sources, "label")
    refuse_repeated_ids(identifiers, sources, "identifier", _OWN_ID)
    return NLVR2Records(
        identifiers=identifiers,
        image_ids=np.concatenate([part.image_ids for part in parts]),
        sentences=TextColumn.concatenate([part.sentences for part in parts]),
        labels=np.concatenate(labels) if labels else None,
        sources=sources,
    )


def _image_ids(record: Record, identifier: str, place: str) -> tuple[str, str]:
    """(left, right): as the record states them, otherwise made from the identifier."""
    stated = [key for key in ("left_image_id", "right_image_id") if record.get(key) is not None]
    if len(stated) == 1:
        raise UserError(f"{place} has {stated[0]} only; give both left_image_id and right_image_id, or none of them.")
    if stated:
        return str(required_id(record, "left_image_id", place)), str(required_id(record, "right_image_id", place))
    pair, _, sentence = identifier.rpartition("-")
    if not pair or not sentence:
        raise UserError(
            f"{place}: no pictures can be derived from the identifier {shown(identifier)}, which does not read "
            "split-set-pair-sentence; give left_image_id and right_image_id."
        )
    return f"{pair}-img0", f"{pair}-img1"


def _label(record: Record, place: str) -> bool | None:
    label = record.get("label")
    if label is None or isinstance(label, bool):
        return label
    spelled = label.lower() if isinstance(label, str) else None
    if spelled not in ("true", "false"):
        raise UserError(f'{place}: label is {shown(label)}, expected "True" or "False".')
    return spelled == "true"

"""Reads the question files of GQA (Hudson and Manning 2019)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.columns import (
    CategoricalColumn,
    TextColumn,
    categories_or_none,
    checked_mask,
    joined_categories,
    select_categories,
    select_texts,
)
from vinvl.data.records import (
    Record,
    RecordSources,
    checked_id,
    checked_record,
    optional_text,
    parts_to_join,
    refuse_mixed,
    refuse_repeated_ids,
    required_id,
    required_text,
    shown,
)
from vinvl.run.errors import UserError
from vinvl.run.values import json_members

UNSTATED_TYPE = "unstated"
"""Type of the questions that state none, while others do."""

_BLOCK = 1 << 16  # records held as Python objects before they are packed


@dataclass(frozen=True, eq=False)
class GQARecords:
    """Q questions, in the order of the files, held in NumPy arrays only (see `vinvl.data.columns`).

    - question_ids (Q,): text of fixed width, all different.
    - image_ids (Q,): text of fixed width, "n578564" or "2386621".
    - questions: never blank.
    - answers: one per question, never blank; None for a split without answers.
    - structural_types: verify, query, choose, logical, compare; None if no record states one.
    - semantic_types: obj, attr, rel, cat, global; None if no record states one.
    - balanced (Q,) bool: whether the question is in the balanced subset.
    - sources: file and record number, for messages.
    """

    question_ids: np.ndarray
    image_ids: np.ndarray
    questions: TextColumn
    answers: CategoricalColumn | None
    structural_types: CategoricalColumn | None
    semantic_types: CategoricalColumn | None
    balanced: np.ndarray
    sources: RecordSources

    def __len__(self) -> int:
        return len(self.question_ids)

    def describe(self, index: int) -> str:
        """Names a record for a message: "train_all_questions_0.json record 17 (question 02930152)"."""
        return f"{self.sources[index]} (question {self.question_ids[index]})"

    def select(self, keep: np.ndarray) -> "GQARecords":
        """The records where `keep` (Q,) bool is True, in their order; ValueError for anything else than such a mask."""
        keep = checked_mask(keep, len(self))

        def categories(column: CategoricalColumn | None) -> CategoricalColumn | None:
            return None if column is None else select_categories(column, keep)

        return GQARecords(
            question_ids=self.question_ids[keep],
            image_ids=self.image_ids[keep],
            questions=select_texts(self.questions, keep),
            answers=categories(self.answers),
            structural_types=categories(self.structural_types),
            semantic_types=categories(self.semantic_types),
            balanced=self.balanced[keep],
            sources=self.sources.select(keep),
        )


def read_gqa(paths: str | Path | Sequence[str | Path]) -> GQARecords:
    """Reads one split from one or more official JSON files, joined in the given order.

    A path that is a folder stands for its *.json files in name order: `train_all_questions` comes as a folder of ten.
    Each file is one object, question id -> record. Of a record these keys are used: "question", "imageId", "answer"
    (missing in test splits: then in every record), "types" with "structural" and "semantic" (optional) and "isBalanced"
    (optional, taken as true).

    Memory: a file is read in pieces and never held whole. A question takes about 150 bytes once read, twice that while
    the parts are joined: some 2 and 4 GB for the 14 million questions of train_all.

    Raises UserError, naming file and record (counted from 1), for files and records that are not as described, for
    question ids that occur twice and for a split of which only some questions have answers.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    files = [file for path in paths for file in _files(Path(path))]
    if not files:
        raise UserError("No GQA question file is named; give at least one file or folder.")
    return concatenate([block for file in files for block in _blocks(file)])


def concatenate(parts: Sequence[GQARecords]) -> GQARecords:
    """Joins records, as train and val are joined; order is kept.

    Raises UserError if a question id occurs twice or only some parts have answers; ValueError if there are no parts.
    """
    parts = parts_to_join(parts)
    lengths = [len(part) for part in parts]
    sources = RecordSources.concatenate([part.sources for part in parts])
    question_ids = np.concatenate([part.question_ids for part in parts])
    refuse_mixed(np.repeat([part.answers is not None for part in parts], lengths), sources, "answer")
    refuse_repeated_ids(question_ids, sources, "id", "give every question an id of its own")
    return GQARecords(
        question_ids=question_ids,
        image_ids=np.concatenate([part.image_ids for part in parts]),
        questions=TextColumn.concatenate([part.questions for part in parts]),
        answers=joined_categories([part.answers for part in parts], lengths, ""),
        structural_types=joined_categories([part.structural_types for part in parts], lengths, UNSTATED_TYPE),
        semantic_types=joined_categories([part.semantic_types for part in parts], lengths, UNSTATED_TYPE),
        balanced=np.concatenate([part.balanced for part in parts]),
        sources=sources,
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"))
    if not files:
        raise UserError(f"{path} is a folder without .json files; it should hold the question files of one GQA split.")
    return files


@dataclass
class _Lists:
    """The columns of `GQARecords` while a block of records is read."""

    question_ids: list[str] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    structural_types: list[str | None] = field(default_factory=list)
    semantic_types: list[str | None] = field(default_factory=list)
    balanced: list[bool] = field(default_factory=list)

    def add(self, question_id: str, value: Any, place: str) -> None:
        """Checks one record and takes what is needed of it."""
        record = checked_record(value, place, "question and imageId")
        types = record.get("types")
        types = {} if types is None else checked_record(types, f"{place}: types", "structural and semantic")
        self.question_ids.append(question_id)
        self.image_ids.append(str(required_id(record, "imageId", place)))
        self.questions.append(required_text(record, "question", place))
        self.answers.append(None if record.get("answer") is None else required_text(record, "answer", place))
        self.structural_types.append(optional_text(types, "structural", place))
        self.semantic_types.append(optional_text(types, "semantic", place))
        self.balanced.append(_is_balanced(record, place))

    def freeze(self, path: Path, first_number: int) -> GQARecords:
        """Packs the lists; the first record is number `first_number` of its file."""
        numbers = range(first_number, first_number + len(self.question_ids))
        sources = RecordSources.of_file(f"{path} record", numbers)
        refuse_mixed(np.array([answer is not None for answer in self.answers]), sources, "answer")
        return GQARecords(
            question_ids=np.array(self.question_ids, dtype=np.str_),
            image_ids=np.array(self.image_ids, dtype=np.str_),
            questions=TextColumn.from_texts(self.questions),
            answers=categories_or_none(self.answers, ""),
            structural_types=categories_or_none(self.structural_types, UNSTATED_TYPE),
            semantic_types=categories_or_none(self.semantic_types, UNSTATED_TYPE),
            balanced=np.array(self.balanced, dtype=np.bool_),
            sources=sources,
        )


def _blocks(path: Path) -> Iterator[GQARecords]:
    """The records of one file, some ten thousand at a time; at least one block."""
    number, lists = 0, _Lists()
    for number, (key, value) in enumerate(json_members(path, "question ids with their questions"), start=1):
        place = f"{path} record {number}"
        question_id = str(checked_id(key, f"{place}: the question id"))
        lists.add(question_id, value, f"{place} (question {question_id})")
        if len(lists.question_ids) == _BLOCK:
            yield lists.freeze(path, number - _BLOCK + 1)
            lists = _Lists()
    if number == 0:
        raise UserError(f"{path} holds no questions; an empty split cannot be used.")
    if lists.question_ids:
        yield lists.freeze(path, number - len(lists.question_ids) + 1)


def _is_balanced(record: Record, place: str) -> bool:
    balanced = record.get("isBalanced", True)
    if not isinstance(balanced, bool):
        raise UserError(f"{place}: isBalanced is {shown(balanced)}, expected true or false.")
    return balanced

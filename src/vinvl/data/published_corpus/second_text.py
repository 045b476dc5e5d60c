"""What follows the text in a row of the published corpus: the image's tags, or the answer to the question."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vinvl.data.published_corpus.labels import LabelFile, LabelReader
from vinvl.data.published_corpus.rows import PublishedRow
from vinvl.data.published_corpus.settings import PublishedCorpus
from vinvl.data.record_fields import checked_text, shown
from vinvl.errors import UserError

REMEMBERED = 1024  # tags of images: the captions of an image often stand together


@dataclass(frozen=True)
class LabelFiles:
    """The label files of the datasets, prepared for reading; None where there is none.

    Attributes:
        tags: predictions_gt.tsv of each dataset; empty where tags are left to the store.
        answers: QA_fileB.tsv of each dataset that has one.
    """

    tags: dict[str, LabelFile]
    answers: dict[str, LabelFile]

    @classmethod
    def prepare(cls, corpus: PublishedCorpus, folder: Path, *, store_tags: bool) -> LabelFiles:
        """Makes the arrays of all label files below `folder`. Raises UserError as `LabelFile.prepare` does."""
        tags, answers = {}, {}
        for dataset, labels in corpus.label_folders.items():
            if not store_tags:
                file, ids = labels / "predictions_gt.tsv", labels / "imageid2idx.json"
                tags[dataset] = LabelFile.prepare(file, ids, folder / dataset / "tags")
            if (labels / "QA_fileB.tsv").is_file():
                file, ids = labels / "QA_fileB.tsv", labels / "QA_qaid2idx.json"
                answers[dataset] = LabelFile.prepare(file, ids, folder / dataset / "answers")
        return cls(tags, answers)


class SecondTexts:
    """Looks up second texts; a context manager, for it keeps files open.

    Args:
        files: the label files.
        ground_truth_tags: take the annotated objects of an image instead of the predicted ones where it has them.
    """

    def __init__(self, files: LabelFiles, *, ground_truth_tags: bool) -> None:
        self._files = files
        self._ground_truth_tags = ground_truth_tags
        self._readers: dict[LabelFile, LabelReader] = {}
        self._remembered: dict[tuple[str, str], list[str]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def keys(self, row: PublishedRow, place: str) -> dict[str, Any]:
        """The keys that a corpus row has besides its text: {"answer": …}, {"tags": […]}, or {} for the store's tags.

        Raises:
            UserError: the label is missing, damaged or empty; the sentence names `place`.
        """
        if row.is_question:
            file = self._files.answers.get(row.dataset)
            if file is None:
                raise UserError(f"{place} is a question, and the labels of {row.dataset} have no QA_fileB.tsv.")
            return {"answer": self._answer(file, row.label_id, place)}
        if row.dataset not in self._files.tags:
            return {}
        key = row.dataset, row.label_id
        tags = self._remembered.get(key)
        if tags is None:
            tags = self._tags(self._files.tags[row.dataset], row.label_id, place)
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = tags
        return {"tags": tags}

    def _answer(self, file: LabelFile, label_id: str, place: str) -> str:
        """The labels joined by blanks, as the published code joins them."""
        label = self._reader(file).label(label_id, place)
        what = f"{file.path}, label {label_id!r}"
        labels = label.get("labels")
        if not isinstance(labels, list):
            raise UserError(f"{what}: labels is {shown(labels)}, expected a list of answers.")
        answer = " ".join(checked_text(name, f"{what}: an answer") for name in labels).strip()
        if not answer:
            raise UserError(f"{what}, which {place} asks for, has no answer; leave the row out.")
        return answer

    def _tags(self, file: LabelFile, label_id: str, place: str) -> list[str]:
        label = self._reader(file).label(label_id, place)
        what = f"{file.path}, label {label_id!r}"
        key = "gt_objects" if self._ground_truth_tags and "gt_objects" in label else "objects"
        objects = label.get(key)
        if not isinstance(objects, list):
            raise UserError(f"{what}: {key} is {shown(objects)}, expected a list of objects.")
        try:
            names = [entry["class"].strip() for entry in objects]
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{what}: {key} holds an object without a class, or one that is no text.") from None
        checked_text(" ".join(names), f"{what}: a class")
        tags = [name for name in names if name]
        if not tags:
            raise UserError(f"{what}, which {place} asks for, has no {key}; leave the row out, or pass --store-tags.")
        return tags

    def _reader(self, file: LabelFile) -> LabelReader:
        reader = self._readers.get(file)
        if reader is None:
            reader = self._readers[file] = LabelReader(file)
            self._stack.callback(reader.close)
        return reader

"""Rows of the published corpus, its settings, and its files of labels, read by id in little memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import yaml

from vinvl.run.errors import UserError
from vinvl.run.files import parse_json, read_bytes
from vinvl.run.values import checked_id, checked_text, json_members, shown

# One line of the published corpus TSV: which image, which label, and the text.


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


# The yaml file of a published Oscar+ corpus: which files belong to it.


_DATASET_NAME = re.compile(r"[A-Za-z0-9-]+")  # becomes a file name


@dataclass(frozen=True)
class PublishedCorpus:
    """What the yaml names.

    Attributes:
        rows: TSV of image info, label info and text.
        label_folders: dataset → folder of its predictions_gt.tsv and QA_fileB.tsv, for the datasets that are used.
    """

    rows: Path
    label_folders: dict[str, Path]

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(self.label_folders)


def read_settings(path: str | Path, datasets: Sequence[str] | None = None) -> PublishedCorpus:
    """Reads the yaml of a published corpus.

    Args:
        path: the yaml; `corpus_file` and the folders of `image_label_path` are relative to its folder.
        datasets: use these of the datasets that `corpus` joins by "_"; None for all.

    Raises:
        UserError: it is missing, no yaml, lacks a key or a file, or does not name one of `datasets`.
    """
    path = Path(path)
    content = _read_yaml(path)
    listed = tuple(dict.fromkeys(_text(content, "corpus", path).split("_")))
    unfit = [name for name in listed if not _DATASET_NAME.fullmatch(name)]
    if unfit:
        raise UserError(
            f"{path}: corpus names the dataset {unfit[0][:40]!r}; names are letters and digits, joined by _."
        )
    unknown = [name for name in datasets or () if name not in listed]
    if unknown:
        raise UserError(f"{path} has no dataset '{unknown[0]}'; its corpus is {', '.join(listed)}.")
    used = listed if datasets is None else tuple(name for name in listed if name in datasets)
    if not used:
        raise UserError(f"{path}: no dataset is left to convert; its corpus is {', '.join(listed)}.")
    folders = content.get("image_label_path")
    if not isinstance(folders, dict):
        raise UserError(f"{path} has no image_label_path; it should map each dataset to the folder of its labels.")
    for name in used:
        if not isinstance(folders.get(name), str) or "\0" in folders[name]:
            raise UserError(f"{path}: image_label_path has no folder for {name}; add it or leave the dataset out.")
    rows = path.parent / _text(content, "corpus_file", path)
    if not rows.is_file():
        raise UserError(f"{path}: its corpus_file {rows} does not exist; check the path.")
    return PublishedCorpus(rows, {name: path.parent / folders[name] for name in used})


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid yaml ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is no yaml of a published corpus: it should have corpus_file, corpus, image_label_path."
        )
    return content


def _text(content: dict[Any, Any], key: str, path: Path) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserError(f"{path} has no {key}, or one that is no text; a published corpus names it.")
    return value


BLOCK_BYTES = 2**24
BLOCK_IDS = 100_000
LONGEST_LINE = 2**26


@dataclass(frozen=True)
class LabelFile:
    """A label file whose ids, line numbers and line offsets are in a folder as arrays; small to send to workers."""

    path: Path
    id_file: Path
    arrays: Path

    @classmethod
    def prepare(cls, path: Path, id_file: Path, arrays: Path) -> LabelFile:
        """Makes the arrays: `ids` sorted UTF-8 of fixed width, `lines` and `offsets` int64.

        Raises:
            UserError: a file is missing, or `id_file` names lines that `path` does not have.
        """
        offsets = line_offsets(path)
        blocks = list(_blocks(id_file, path, len(offsets)))
        if not blocks:
            raise UserError(f"{id_file} names no label; it should map ids to the lines of {path}.")
        ids = np.concatenate([block for block, _ in blocks])
        order = np.argsort(ids, kind="stable")
        arrays.mkdir(parents=True)
        np.save(arrays / "ids.npy", ids[order])
        np.save(arrays / "offsets.npy", offsets[np.concatenate([lines for _, lines in blocks])[order]])
        return cls(path, id_file, arrays)


class LabelReader:
    """Labels by id; holds an open file, so that each process has its own."""

    def __init__(self, file: LabelFile) -> None:
        self._file = file
        self._ids = np.load(file.arrays / "ids.npy", mmap_mode="r")
        self._offsets = np.load(file.arrays / "offsets.npy", mmap_mode="r")
        self._tsv = file.path.open("rb")

    def close(self) -> None:
        self._tsv.close()

    def label(self, label_id: str, place: str) -> dict[str, Any]:
        """The JSON object of a label. `place` names the row that asks for it.

        Raises:
            UserError: there is no such label, or its line is another's or no JSON object.
        """
        key = label_id.encode()
        # At the width of the ids, or NumPy would copy them all to the key's; a longer key is then unlike what is found.
        position = int(self._ids.searchsorted(np.array(key, dtype=self._ids.dtype)))
        if position == len(self._ids) or self._ids[position] != key:
            raise UserError(
                f"{place}: {self._file.id_file} has no label {label_id[:40]!r}, so the row has no second text."
            )
        self._tsv.seek(int(self._offsets[position]))
        line = self._tsv.readline(LONGEST_LINE)
        name, _, content = line.partition(b"\t")
        if name.strip() != key:
            found = name[:40].decode("utf-8", "replace").strip()
            raise UserError(
                f"{place}: {self._file.id_file} sends label {label_id[:40]!r} to a line of {self._file.path} that is "
                f"of {found!r}; the two files do not belong together."
            )
        what = f"{self._file.path}, label {label_id!r}"
        value = parse_json(content.split(b"\t")[0].strip(), what)
        if not isinstance(value, dict):
            raise UserError(f"{what} is {shown(value)}, expected a JSON object.")
        return value


def line_offsets(path: Path) -> np.ndarray:
    """(lines,) int64: the byte where each line of a TSV begins.

    Raises:
        UserError: the TSV is missing or unreadable.
    """
    begins, position = [np.zeros(1, dtype=np.int64)], 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                begins.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + position + 1)
                position += len(block)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check image_label_path in the yaml.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    offsets = np.concatenate(begins)
    return offsets[offsets < position]


def _blocks(id_file: Path, path: Path, lines: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, lines) of a hundred thousand labels at a time: as Python objects they would take ten times as much."""
    listed = json_members(id_file, "label ids with their line numbers")
    while members := list(islice(listed, BLOCK_IDS)):
        for name, line in members:
            checked_id(name, f"{id_file}: id")
            if type(line) is not int or not 0 <= line < lines:
                raise UserError(
                    f"{id_file} sends label {name[:40]!r} to line {shown(line)}; "
                    f"{path} has the lines 0 to {lines - 1:,}."
                )
        ids = np.array([name.encode() for name, _ in members], dtype=np.bytes_)
        yield ids, np.array([line for _, line in members], dtype=np.int64)


# What follows the text in a row of the published corpus: the image's tags, or the answer to the question.


REMEMBERED = 1024  # tags of images: the captions of an image often stand together


@dataclass(frozen=True)
class LabelFiles:
    """The label files of the datasets, prepared for reading; None if there is none.

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

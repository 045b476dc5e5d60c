"""The published Oscar+ corpus (a yaml, a TSV of texts, TSVs of labels) → one corpus file a dataset and split."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import yaml

from vinvl.data.stores import make_once, refuse_other
from vinvl.regions.formats.convert import mark_of_files
from vinvl.regions.formats.tsv import IdTable
from vinvl.run.errors import UserError
from vinvl.run.files import parse_json, put_in_place, read_bytes, reading, work_folder
from vinvl.run.lines import Chunk, pool_map, split_file
from vinvl.run.values import checked_id, checked_text, json_members, shown

CHUNK_BYTES = 4 * 2**20
TRAIN, VALIDATION = "train", "val"
MADE_OF = "made_of.txt"

# The yaml: which files belong to the corpus.

_DATASET_NAME = re.compile(r"[A-Za-z0-9-]+")  # becomes a file name


class Settings(msgspec.Struct):
    """What the yaml names; files and folders are relative to its own."""

    corpus: str  # datasets, joined by "_"
    corpus_file: str  # TSV of image info, label info and text
    image_label_path: dict[str, Any]  # of each dataset the folder of its predictions_gt.tsv and QA_fileB.tsv


def read_settings(path: str | Path, datasets: Sequence[str] | None = None) -> tuple[Path, dict[str, Path]]:
    """The TSV of a published corpus, and the label folder of each dataset that is used.

    Args:
        path: the yaml.
        datasets: use these of those that it names; None for all.

    Raises:
        UserError: it is missing, no yaml, lacks a key or a file, or does not name one of `datasets`.
    """
    path = Path(path)
    try:
        settings = msgspec.convert(yaml.safe_load(read_bytes(path)), Settings)
    except (yaml.YAMLError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no yaml of a published corpus, with corpus, corpus_file and image_label_path "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
    listed = tuple(dict.fromkeys(settings.corpus.split("_")))
    for name in listed:
        if not _DATASET_NAME.fullmatch(name):
            raise UserError(
                f"{path}: corpus names the dataset {name[:40]!r}; names are letters and digits, joined by _."
            )
    for name in datasets or ():
        if name not in listed:
            raise UserError(f"{path} has no dataset '{name}'; its corpus is {', '.join(listed)}.")
    folders = {}
    for name in listed if datasets is None else [name for name in listed if name in datasets]:
        folder = settings.image_label_path.get(name)
        if not isinstance(folder, str) or "\0" in folder:
            raise UserError(f"{path}: image_label_path has no folder for {name}; add it or leave the dataset out.")
        folders[name] = path.parent / folder
    if not folders:
        raise UserError(f"{path}: no dataset is left to convert; its corpus is {', '.join(listed)}.")
    rows = path.parent / settings.corpus_file
    if not rows.is_file():
        raise UserError(f"{path}: its corpus_file {rows} does not exist; check the path.")
    return rows, folders


# A line of the TSV: which image, which label, and the text.

CHUNKED_DATASETS = frozenset({"googlecc", "sbu", "oi", "objects365", "tagoi"})
"""Their features come in many files; the image info names which."""


class PublishedRow(NamedTuple):
    """A checked line. A question's second text is the answer that `label_id` names, a caption's the image's tags."""

    dataset: str
    chunk: str  # "" where the dataset has none
    image_id: str
    label_id: str
    label_info: str
    is_question: bool
    text: str

    @property
    def full_id(self) -> str:
        """As the corpus calls the image, "coco_391983" or "googlecc_0_5", which no other image is called."""
        return "_".join(part for part in (self.dataset, self.chunk, self.image_id) if part)


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
        raise UserError(f"{place} has {len(columns)} columns; image info, label info, text, with tabs, were expected.")
    dataset, image, label = dataset_of(line), columns[0].split("_"), columns[1].split("_")
    parts = "dataset, chunk and image id" if dataset in CHUNKED_DATASETS else "dataset and image id"
    is_question = "qa" in label
    if len(image) < (3 if dataset in CHUNKED_DATASETS else 2):
        raise UserError(f"{place}: the image info is {columns[0][:40]!r}, expected {parts}, joined by _.")
    if image[0] != label[0]:
        raise UserError(f"{place} names the datasets {image[0][:40]!r} and {label[0][:40]!r}; they must be the same.")
    # A question's label info ends in image and question, a caption's in the image.
    if len(label) < 2 + is_question or label[-1 - is_question] != image[-1]:
        found = f"the image is {image[-1][:40]!r} and the label info {columns[1][:60]!r}"
        raise UserError(f"{place}: {found}, which is of another image.")
    if not columns[2]:
        raise UserError(f"{place} has no text; write one or leave the row out.")
    image_id = str(checked_id(image[-1], f"{place}: the image id"))
    chunk = image[-2] if dataset in CHUNKED_DATASETS else ""
    return PublishedRow(dataset, chunk, image_id, label[-1], columns[1], is_question, columns[2])


def refuse_shared_ids(chunks: Sequence[Chunk], datasets: Sequence[str]) -> None:
    """Refuses two of the datasets that have an image of the same id, which one store of regions could not tell apart.

    An image id is the last part of the image info. It is unique within a dataset: labels are looked up by it.
    """
    if len(datasets) < 2:
        return
    parts = [_ids_by_dataset(chunk, datasets) for chunk in chunks]
    ids = {dataset: np.unique(np.concatenate([part[dataset] for part in parts])) for dataset in datasets}
    for one, other in combinations(datasets, 2):
        shared = np.intersect1d(ids[one], ids[other], assume_unique=True)
        if not len(shared):
            continue
        image = shared[0].decode("utf-8", "replace")
        raise UserError(
            f"{chunks[0].path}: {one} and {other} both have an image '{image}' ({len(shared):,} such images in all), "
            f"which a store could not tell apart; pass --prefix-image-ids {other} to call the latter's "
            f"'{other}_{image}', as their store must, or --prefix-image-ids none if the same id is the same image."
        )


def _ids_by_dataset(chunk: Chunk, datasets: Sequence[str]) -> dict[str, np.ndarray]:
    found: dict[str, set[bytes]] = {dataset: set() for dataset in datasets}
    for line in chunk.content().split(b"\n"):
        ids = found.get(dataset_of(line))
        if ids is not None:
            ids.add(line.partition(b"\t")[0].strip().rpartition(b"_")[2])
    return {dataset: np.array([*ids], dtype=np.bytes_) for dataset, ids in found.items()}


# Label files: a TSV of id and JSON, and a JSON of ids with their line numbers; read by id in little memory.

BLOCK_BYTES = 2**24
LONGEST_LINE = 2**26
REMEMBERED = 1024  # second texts: the captions of an image often stand together


class LabelFile(NamedTuple):
    """A label file whose ids and the bytes where their lines begin are in a folder, an `IdTable`; small to send."""

    path: Path
    id_file: Path
    table: Path

    @classmethod
    def prepare(cls, path: Path, id_file: Path, table: Path) -> LabelFile:
        """Makes the table. Raises UserError if a file is missing, or `id_file` names lines that are not in `path`."""
        offsets = line_offsets(path)

        def places() -> Iterator[tuple[str, tuple[int]]]:
            for name, line in json_members(id_file, "label ids with their line numbers"):
                if type(line) is not int or not 0 <= line < len(offsets):
                    raise UserError(
                        f"{id_file} sends label {name[:40]!r} to line {shown(line)}; "
                        f"{path} has the lines 0 to {len(offsets) - 1:,}."
                    )
                yield name, (int(offsets[line]),)

        IdTable.of_members(table, id_file, places(), what="label")
        return cls(path, id_file, table)


Labels = Mapping[tuple[str, bool], LabelFile]
"""Label files by dataset and whether they hold answers or tags."""


def prepare_labels(folders: Mapping[str, Path], tables: Path, *, store_tags: bool) -> Labels:
    """The label files of datasets, without those of tags if `store_tags`; their tables are made in `tables`."""
    files = {}
    for dataset, folder in folders.items():
        if not store_tags:
            pair = folder / "predictions_gt.tsv", folder / "imageid2idx.json"
            files[dataset, False] = LabelFile.prepare(*pair, tables / dataset / "tags")
        if (folder / "QA_fileB.tsv").is_file():
            pair = folder / "QA_fileB.tsv", folder / "QA_qaid2idx.json"
            files[dataset, True] = LabelFile.prepare(*pair, tables / dataset / "answers")
    return files


def line_offsets(path: Path) -> np.ndarray:
    """(lines,) int64: the byte where each line of a TSV begins. Raises UserError if it is missing or unreadable."""
    begins, position = [np.zeros(1, dtype=np.int64)], 0
    with reading(path), path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            begins.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + position + 1)
            position += len(block)
    offsets = np.concatenate(begins)
    return offsets[offsets < position]


class LabelReader:
    """What follows the text of a row, by the id of its label; keeps the label file open until `stack` ends.

    Args:
        answers: whether the labels are answers, or else tags.
        ground_truth_tags: take the annotated objects of an image instead of the predicted ones where it has them.
    """

    def __init__(self, file: LabelFile, answers: bool, ground_truth_tags: bool, stack: ExitStack) -> None:
        self._file, self._answers, self._ground_truth_tags = file, answers, ground_truth_tags
        self._table = IdTable(file.table)
        self._tsv = stack.enter_context(file.path.open("rb"))
        self._remembered: dict[str, dict[str, Any]] = {}

    def keys(self, label_id: str, place: str) -> dict[str, Any]:
        """The keys that a corpus row has besides its text: {"answer": …} or {"tags": […]}. `place` names the row.

        Raises:
            UserError: the label is missing, damaged, empty, or its line is another's.
        """
        if (found := self._remembered.get(label_id)) is None:
            label, what = self._label(label_id, place), f"{self._file.path}, label {label_id!r}"
            found = (
                {"answer": _answer(label, what, place)} if self._answers else {"tags": self._tags(label, what, place)}
            )
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[label_id] = found
        return found

    def _label(self, label_id: str, place: str) -> dict[str, Any]:
        (path, id_file, _), found = self._file, self._table.find(label_id)
        if found is None:
            raise UserError(f"{place}: {id_file} has no label {label_id[:40]!r}, so the row has no second text.")
        self._tsv.seek(int(found[0]))
        name, _, content = self._tsv.readline(LONGEST_LINE).partition(b"\t")
        if name.strip() != label_id.encode():
            raise UserError(
                f"{place}: {id_file} sends label {label_id[:40]!r} to a line of {path} that is of "
                f"{name[:40].decode('utf-8', 'replace').strip()!r}; the two files do not belong together."
            )
        what = f"{path}, label {label_id!r}"
        value = parse_json(content.split(b"\t")[0].strip(), what)
        if not isinstance(value, dict):
            raise UserError(f"{what} is {shown(value)}, expected a JSON object.")
        return value

    def _tags(self, label: dict[str, Any], what: str, place: str) -> list[str]:
        key = "gt_objects" if self._ground_truth_tags and "gt_objects" in label else "objects"
        objects = label.get(key)
        if not isinstance(objects, list):
            raise UserError(f"{what}: {key} is {shown(objects)}, expected a list of objects.")
        try:
            tags = [name for entry in objects if (name := entry["class"].strip())]
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{what}: {key} holds an object without a class, or one that is no text.") from None
        checked_text(" ".join(tags), f"{what}: a class")
        if not tags:
            raise UserError(f"{what}, which {place} asks for, has no {key}; leave the row out, or pass --store-tags.")
        return tags


def _answer(label: dict[str, Any], what: str, place: str) -> str:
    """The labels joined by blanks, as the published code joins them."""
    labels = label.get("labels")
    if not isinstance(labels, list):
        raise UserError(f"{what}: labels is {shown(labels)}, expected a list of answers.")
    answer = " ".join(checked_text(name, f"{what}: an answer") for name in labels).strip()
    if not answer:
        raise UserError(f"{what}, which {place} asks for, has no answer; leave the row out.")
    return answer


# All of it, completely or not at all.


class Conversion(NamedTuple):
    """What was written: rows by (split, dataset), rows left out by their dataset, and some images of validation."""

    rows: Counter[tuple[str, str]]
    skipped: Counter[str]
    validation: set[str]


def convert_published_corpus(
    settings: str | Path,
    output: str | Path,
    *,
    datasets: Sequence[str] | None = None,
    prefix_image_ids: Sequence[str] | Literal["all", "published"] | None = None,
    store_tags: bool = False,
    ground_truth_tags: bool = False,
    validation_share: float = 0.01,
    workers: int = 1,
) -> Conversion:
    """Writes `output`/train/DATASET.jsonl and `output`/val/DATASET.jsonl of a published Oscar+ corpus.

    Captions get the tags of their image, questions their answer, as `OscarTSVDataset` of published Oscar reads them.
    The split of an image is decided by its id alone, so that it is the same on every machine.

    Args:
        settings: the yaml of the corpus.
        output: folder to make; new, or empty.
        datasets: of those that the yaml names; None for all. Rows of others are counted and left out.
        prefix_image_ids: datasets whose name is put in front of their image ids ("gqa_2386621"), or "all"; "published"
            is of all, and of chunked ones with the chunk ("googlecc_0_5"), as their image info has them. None puts it
            nowhere and refuses datasets that have an id in common; [] takes the same id for the same image.
        store_tags: leave the tags of captions out, for those of the region store; label files are not needed then.
        ground_truth_tags: annotated objects instead of predicted ones where an image has them.
        validation_share: from 0, which writes no validation split, to less than 1. It is doubled until two images
            fall into it, which can be mismatched: of a few images 1 % are none.
        workers: processes; 1 does it in this process.

    Raises:
        UserError: a file is missing or damaged, a row does not fit its labels, or `output` cannot be made. Nothing is
            left of `output` then.
    """
    (rows, folders), target = read_settings(settings, datasets), Path(output)
    if not 0 <= validation_share < 1:
        raise UserError(f"--validation-share is {validation_share}: give a share from 0 to less than 1.")
    prefixed = frozenset(folders if prefix_image_ids in ("all", "published") else prefix_image_ids or ())
    if strangers := prefixed - folders.keys():
        raise UserError(f"--prefix-image-ids names {min(strangers)}, which is not converted: {', '.join(folders)}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; delete it or choose another folder.")
    chunks, _ = split_file(rows, CHUNK_BYTES)
    if not chunks:
        raise UserError(f"{rows} is empty; a corpus TSV has a row a line.")
    if prefix_image_ids is None or prefixed:
        refuse_shared_ids(chunks, [name for name in folders if name not in prefixed])
    with work_folder(target) as work:
        labels = prepare_labels(folders, work / "scratch", store_tags=store_tags)
        convert = partial(
            convert_chunk,
            datasets=frozenset(folders),
            prefixed=prefixed,
            with_chunks=prefix_image_ids == "published",
            labels=labels,
            ground_truth_tags=ground_truth_tags,
        )
        conversion, fresh = _with_validation(chunks, convert, work, workers, validation_share)
        (fresh / MADE_OF).write_text(mark_of_corpus(Path(settings)) + "\n", encoding="utf-8")
        put_in_place(fresh, target)
    return conversion


def make_published_corpus(settings: Path, output: Path, validation_share: float, workers: int) -> None:
    """Makes `output` where it is not there, with ids as `data=oscarplus_published` has them.

    Raises UserError as `convert_published_corpus` does, and where it is there and made of another corpus.
    """

    def make() -> str:
        done = convert_published_corpus(
            settings, output, prefix_image_ids="published", validation_share=validation_share, workers=workers
        )
        return f"{output}: {done.rows.total():,} rows of {', '.join(sorted({name for _, name in done.rows}))}"

    if make_once(settings, output, make) and (said := output / MADE_OF).is_file():
        refuse_other(output, said.read_text(encoding="utf-8").strip(), settings, mark_of_corpus(settings))


def mark_of_corpus(settings: Path) -> str:
    """What a converted corpus says that it was made of; see `mark_of_source`."""
    return mark_of_files(settings.name, [settings, read_settings(settings)[0]])


Converted = tuple[dict[tuple[str, str], bytes], Counter[str], set[str]]
"""JSON lines by (split, dataset), rows left out by dataset, and an image of validation or two."""


def convert_chunk(
    chunk: Chunk,
    datasets: frozenset[str],
    prefixed: frozenset[str],
    with_chunks: bool,
    labels: Labels,
    ground_truth_tags: bool,
    validation_share: float,
) -> Converted:
    """The lines of a part of the corpus TSV; arguments as `convert_published_corpus` has them.

    Raises:
        UserError: a line does not fit.
    """
    lines: dict[tuple[str, str], list[bytes]] = {}
    skipped: Counter[str] = Counter()
    validation: set[str] = set()
    with ExitStack() as stack:
        readers = {key: LabelReader(file, key[1], ground_truth_tags, stack) for key, file in labels.items()}
        for number, line in enumerate(chunk.content().split(b"\n"), start=chunk.first_line):
            if not line.strip():
                continue
            dataset, place = dataset_of(line), f"{chunk.path} line {number}"
            if dataset not in datasets:
                skipped[dataset[:40]] += 1
                continue
            row = published_row(line, place)
            reader = readers.get((dataset, row.is_question))
            if reader is None and row.is_question:
                raise UserError(f"{place} is a question, and the labels of {dataset} have no QA_fileB.tsv.")
            image_id = f"{dataset}_{row.image_id}" if dataset in prefixed else row.image_id
            image_id = row.full_id if with_chunks else image_id
            second = {} if reader is None else reader.keys(row.label_id, place)
            record = {"image_id": image_id, "text": row.text, **second, "source": dataset, "id": row.label_info}
            split = VALIDATION if share_of(row.image_id) < validation_share else TRAIN
            if split == VALIDATION and len(validation) < 2:
                validation.add(row.full_id)
            lines.setdefault((split, dataset), []).append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return {key: b"".join(records) for key, records in lines.items()}, skipped, validation


def share_of(image_id: str) -> float:
    """A number from [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=4).digest(), "little") / 2**32


def _with_validation(
    chunks: Sequence[Chunk], convert: partial[Converted], work: Path, workers: int, share: float
) -> tuple[Conversion, Path]:
    """What was written into a folder below `work`, with a share of the images as validation that has some."""
    (folder := work / f"share {share}").mkdir()
    conversion = _write(chunks, partial(convert, validation_share=share), folder, workers)
    if not 0 < share < 0.5 or len(conversion.validation) > 1:
        return conversion, folder
    return _with_validation(chunks, convert, work, workers, 2 * share)


def _write(chunks: Sequence[Chunk], convert: partial[Converted], folder: Path, workers: int) -> Conversion:
    """Appends the lines of the chunks, in order, to the files below `folder`."""
    done = Conversion(Counter(), Counter(), set())
    with ExitStack() as stack:
        files = {}
        for found, skipped, validation in pool_map(convert, chunks, workers, stack):
            for (split, dataset), lines in found.items():
                if (split, dataset) not in files:
                    (folder / split).mkdir(exist_ok=True)
                    files[split, dataset] = stack.enter_context((folder / split / f"{dataset}.jsonl").open("wb"))
                files[split, dataset].write(lines)
                done.rows[split, dataset] += lines.count(b"\n")
            done.skipped.update(skipped)
            done.validation.update(validation)
    if not done.rows:
        there = ", ".join(sorted(done.skipped)[:8]) or "no rows"
        raise UserError(f"{chunks[0].path} has no rows of the datasets to convert; it has {there}.")
    return done

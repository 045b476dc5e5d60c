"""The published corpus, line by line, → one corpus file a dataset and split, completely or not at all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from vinvl.pretraining.published_rows import LabelFiles, SecondTexts, dataset_of, published_row, read_settings
from vinvl.run.errors import UserError
from vinvl.run.files import put_in_place, work_folder
from vinvl.run.lines import Chunk, pool_map, split_file

# Whether two datasets of the published corpus use one image id, which one store of regions could not hold twice.


def refuse_shared_ids(chunks: Sequence[Chunk], datasets: Sequence[str]) -> None:
    """Looks through the first column of a corpus TSV; ids of the given datasets are to be used as they are.

    An image id is the last part of the image info. It is unique within a dataset: labels are looked up by it.

    Raises:
        UserError: two of the datasets have an image of the same id.
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


CHUNK_BYTES = 4 * 2**20
TRAIN, VALIDATION = "train", "val"


@dataclass(frozen=True)
class ConversionOptions:
    """How rows are written.

    Attributes:
        datasets: those that are converted; rows of others are counted and left out.
        prefixed: datasets whose name is put in front of their image ids: "gqa_2386621".
        ground_truth_tags: annotated objects instead of predicted ones where an image has them.
        validation_share: of the images whose rows go to the validation split.
    """

    datasets: frozenset[str]
    prefixed: frozenset[str]
    ground_truth_tags: bool
    validation_share: float


@dataclass(frozen=True)
class Conversion:
    """What was written: rows by (split, dataset), and rows left out by their dataset."""

    rows: Counter[tuple[str, str]]
    skipped: Counter[str]


def convert_published_corpus(
    settings: str | Path,
    output: str | Path,
    *,
    datasets: Sequence[str] | None = None,
    prefix_image_ids: Sequence[str] | Literal["all"] | None = None,
    store_tags: bool = False,
    ground_truth_tags: bool = False,
    validation_share: float = 0.01,
    workers: int = 1,
) -> Conversion:
    """Writes `output`/train/DATASET.jsonl and `output`/val/DATASET.jsonl of a published Oscar+ corpus.

    Captions get the tags of their image, questions their answer, as `OscarTSVDataset` of published Oscar reads them.
    An image belongs to one split: which one is decided by its id alone, so that it is the same on every machine.
    Image ids are those of the corpus, which are unique within a dataset.

    Args:
        settings: the yaml of the corpus.
        output: folder to make; new, or empty.
        datasets: of those that the yaml names; None for all.
        prefix_image_ids: datasets whose name is put in front of their image ids, or "all". None puts it nowhere and
            refuses datasets that have an id in common; [] takes the same id for the same image.
        store_tags: leave the tags of captions out, for those of the region store; label files are not needed then.
        ground_truth_tags: see `ConversionOptions`.
        validation_share: from 0, which writes no validation split, to less than 1.
        workers: processes; 1 does it in this process.

    Raises:
        UserError: a file is missing or damaged, a row does not fit its labels, or `output` cannot be made. Nothing is
            left of `output` then.
    """
    corpus, target = read_settings(settings, datasets), Path(output)
    if not 0 <= validation_share < 1:
        raise UserError(f"--validation-share is {validation_share}: give a share from 0 to less than 1.")
    prefixed = _prefixed(prefix_image_ids, corpus.datasets)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; delete it or choose another folder.")
    chunks, _ = split_file(corpus.rows, CHUNK_BYTES)
    if not chunks:
        raise UserError(f"{corpus.rows} is empty; a corpus TSV has a row a line.")
    if prefix_image_ids is None or prefixed:
        refuse_shared_ids(chunks, [name for name in corpus.datasets if name not in prefixed])
    options = ConversionOptions(frozenset(corpus.datasets), prefixed, ground_truth_tags, validation_share)
    with work_folder(target) as work:
        fresh, scratch = work / "fresh", work / "scratch"
        fresh.mkdir()
        scratch.mkdir()
        labels = LabelFiles.prepare(corpus, scratch, store_tags=store_tags)
        conversion = _write(chunks, partial(convert_chunk, labels=labels, options=options), fresh, workers)
        put_in_place(fresh, target)
    return conversion


def _prefixed(names: Sequence[str] | Literal["all"] | None, datasets: Sequence[str]) -> frozenset[str]:
    prefixed = frozenset(datasets if names == "all" else names or ())
    strangers = sorted(prefixed - set(datasets))
    if strangers:
        raise UserError(f"--prefix-image-ids names {strangers[0]}, which is not converted: {', '.join(datasets)}.")
    return prefixed


@dataclass(frozen=True)
class ConvertedChunk:
    """JSON lines by (split, dataset), how many they are, and rows left out by dataset."""

    lines: dict[tuple[str, str], bytes]
    rows: Counter[tuple[str, str]]
    skipped: Counter[str]


def convert_chunk(chunk: Chunk, labels: LabelFiles, options: ConversionOptions) -> ConvertedChunk:
    """Converts the lines of a part of the corpus TSV. Raises UserError for a line that does not fit."""
    lines: dict[tuple[str, str], list[str]] = {}
    skipped: Counter[str] = Counter()
    with SecondTexts(labels, ground_truth_tags=options.ground_truth_tags) as second:
        for number, line in enumerate(chunk.content().split(b"\n"), start=chunk.first_line):
            if not line.strip():
                continue
            dataset = dataset_of(line)
            if dataset not in options.datasets:
                skipped[dataset[:40]] += 1
                continue
            place = f"{chunk.path} line {number}"
            row = published_row(line, place)
            in_validation = options.validation_share > 0 and _share_of(row.image_id) < options.validation_share
            image_id = f"{dataset}_{row.image_id}" if dataset in options.prefixed else row.image_id
            record = {"image_id": image_id, "text": row.text, **second.keys(row, place)}
            record |= {"source": dataset, "id": row.label_info}
            key = VALIDATION if in_validation else TRAIN, dataset
            lines.setdefault(key, []).append(json.dumps(record, ensure_ascii=False) + "\n")
    texts = {key: "".join(records).encode() for key, records in lines.items()}
    return ConvertedChunk(texts, Counter({key: len(records) for key, records in lines.items()}), skipped)


def _share_of(image_id: str) -> float:
    """A number from [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=4).digest(), "little") / 2**32


def _write(chunks: Sequence[Chunk], work: partial[ConvertedChunk], folder: Path, workers: int) -> Conversion:
    """Appends the lines of the chunks, in order, to the files below `folder`."""
    rows: Counter[tuple[str, str]] = Counter()
    skipped: Counter[str] = Counter()
    with ExitStack() as stack:
        files = {}
        for part in pool_map(work, chunks, workers, stack):
            for key, lines in part.lines.items():
                if key not in files:
                    path = folder / key[0] / f"{key[1]}.jsonl"
                    path.parent.mkdir(exist_ok=True)
                    files[key] = stack.enter_context(path.open("wb"))
                files[key].write(lines)
            rows.update(part.rows)
            skipped.update(part.skipped)
    if not rows:
        found = ", ".join(sorted(skipped)[:8]) or "no rows"
        raise UserError(f"{chunks[0].path} has no rows of the datasets to convert; it has {found}.")
    return Conversion(rows, skipped)

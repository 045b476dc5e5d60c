"""Corpus files of one download: read by its kind (`vinvl.pretraining.builders`), named, split, counted and written."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from vinvl.pretraining import builders
from vinvl.pretraining.builders import FoundText, Given, LineTable
from vinvl.pretraining.published import TRAIN, VALIDATION, share_of
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, refuse_existing
from vinvl.run.values import Id, checked_id, checked_text, decoded


class Kind(NamedTuple):
    """What can be read: what is given, by what, and what its image ids get in front."""

    read: Callable[[Given], Iterator[FoundText]]
    prefix: str
    files: str


# The prefixes are those of the published corpus. Visual Genome's images have the ids that GQA calls them by.
KINDS = {
    "coco_captions": Kind(builders.coco_captions, "coco_", "captions_train2017.json, or dataset_coco.json"),
    "flickr30k": Kind(
        builders.flickr30k, "flickr30k_", "dataset_flickr30k.json, results_20130124.token or results.csv"
    ),
    "conceptual_captions": Kind(builders.conceptual_captions, "googlecc_", "Train_GCC-training.tsv"),
    "sbu": Kind(builders.sbu, "sbu_", "sbu-captions-all.json, or SBU_…_urls.txt SBU_…_captions.txt"),
    "vqa": Kind(builders.vqa, "coco_", "QUESTIONS.json ANNOTATIONS.json, of several splits in turn"),
    "gqa": Kind(builders.gqa, "gqa_", "train_balanced_questions.json, or the folder train_all_questions"),
    "vg_qa": Kind(builders.vg_qa, "gqa_", "question_answers.json"),
    "open_images": Kind(builders.open_images, "", "predictions.jsonl or captions.json of vinvl.predict"),
}


class Made(NamedTuple):
    """What was written: rows by file, different images, those of them without regions, and rows left out by reason."""

    rows: dict[Path, int]
    images: int
    without_regions: int | None
    left_out: Counter[str]


class ImageTags(msgspec.Struct, gc=False):
    image_id: Id
    tags: list[str]


_IMAGE_TAGS = msgspec.json.Decoder(ImageTags)


def make_corpus(
    kind: str,
    files: Sequence[str | Path],
    output: str | Path,
    *,
    splits: Sequence[str] | None = None,
    prefix: str | None = None,
    ids: str | Path | None = None,
    tags: str | Path | None = None,
    store: str | Path | Sequence[str | Path] | None = None,
    validation_share: float = 0.0,
) -> Made:
    """Writes `output`/train/KIND.jsonl and, where a share is asked for, `output`/val/KIND.jsonl.

    Rows are read, written and forgotten one by one: of a row 8 bytes are held, of an image 8 more, and 16 of a line of
    `ids` and `tags`. What split an image is in depends on its id alone, as in `convert_published_corpus`.

    Args:
        kind: one of `KINDS`, which says what `files` are.
        splits: of Karpathy's files; None takes train and restval.
        prefix: in front of image ids; None takes that of the published corpus.
        ids: for captions of the web, a list of row numbers or addresses with image ids; other rows are left out.
        tags: JSONL of image_id and tags, for captions; images that it lacks are left out. None takes the store's.
        store: region stores, in which the images are looked for.
        validation_share: from 0 to less than 1.

    Raises:
        UserError: names file and record. Nothing is left of the output then.
    """
    _refuse_options(kind, files, splits, ids, tags, validation_share)
    targets = {split: Path(output) / split / f"{kind}.jsonl" for split in (TRAIN, VALIDATION)}
    for target in targets.values():
        refuse_existing(target)
    lines = None if ids is None else builders.read_ids(Path(ids))
    given = Given([*map(Path, files)], None if splits is None else tuple(splits), lines, Counter())
    tag_lines = None if tags is None else LineTable(Path(tags), lambda line, place: str(_tags(line, place).image_id))
    prefix = KINDS[kind].prefix if prefix is None else prefix
    images = _ImageCounts(None if store is None else RegionStore(store))
    rows: Counter[Path] = Counter()
    own_ids = array("q")
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for one in KINDS[kind].read(given):
            record = _record(one, kind, prefix, tag_lines, given.left_out)
            if record is None:
                continue
            images.add(record["image_id"])
            target = targets[VALIDATION if share_of(str(one.image_id)) < validation_share else TRAIN]
            if target not in opened:
                opened[target] = stack.enter_context(atomic_write(target, "wb"))
            opened[target].write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            rows[target] += 1
            own_ids.append(hash(record["id"]))
        if not rows:
            reasons = f" ({told_of(given.left_out)})" if given.left_out else ""
            raise UserError(f"{files[0]}: nothing in it becomes a row{reasons}; {kind} is made of {KINDS[kind].files}.")
        images.refuse_strangers()
        _refuse_twins(own_ids, KINDS[kind].read(given), kind)
    return Made(dict(rows), images.count(), images.without_regions(), given.left_out)


def _refuse_twins(own_ids: array[int], again: Iterator[FoundText], kind: str) -> None:
    """Raises UserError where records have one id, of which `again` tells the name."""
    numbers, counts = np.unique(np.array(own_ids, dtype=np.int64), return_counts=True)
    if twins := set(numbers[counts > 1].tolist()):
        one = next(one for one in again if hash(f"{kind}_{one.own_id}") in twins)
        raise UserError(
            f"{one.place}: the id {one.own_id} is there more than once (of {len(twins):,} such ids the first): give "
            "each file and record once."
        )


def told_of(left_out: Counter[str]) -> str:
    """12 of split test, 3 without an answer."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())


def _refuse_options(kind: str, files: Sequence[Any], splits: Any, ids: Any, tags: Any, share: float) -> None:
    if not 0 <= share < 1:
        raise UserError(f"--validation-share is {share}: give a share from 0 to less than 1.")
    if twins := [name for name, count in Counter(Path(file).resolve() for file in files).items() if count > 1]:
        raise UserError(f"{twins[0]} is given more than once.")
    for value, option, kinds in (
        (splits, "--splits", ("coco_captions", "flickr30k")),
        (ids, "--ids", ("conceptual_captions", "sbu")),
        (tags, "--tags", tuple(name for name in KINDS if name not in ("vqa", "gqa", "vg_qa"))),
    ):
        if value is not None and kind not in kinds:
            raise UserError(f"{option} is for {' and '.join(kinds)}, not for {kind}.")


def _tags(line: bytes, place: str) -> ImageTags:
    return decoded(line.rstrip(), _IMAGE_TAGS, place)


def _record(
    one: FoundText, kind: str, prefix: str, tags: LineTable | None, left_out: Counter[str]
) -> dict[str, Any] | None:
    """The corpus row, or None where it cannot be one, which is counted."""
    checked_id(one.image_id, f"{one.place}: the image id")
    image_id = str(checked_id(f"{prefix}{one.image_id}", f"{one.place}: the image id"))
    text = checked_text(one.text, f"{one.place}: the text").strip()
    if not _is_seen(text):
        left_out["without a text"] += 1
        return None
    second: dict[str, Any] = {}
    if one.answer is not None:
        answer = checked_text(one.answer, f"{one.place}: the answer").strip()
        second["answer"] = answer if _is_seen(answer) else ""
    elif tags is not None:
        line = tags.find(image_id)
        second["tags"] = [] if line is None else [tag for tag in _tags(line, str(tags.path)).tags if _is_seen(tag)]
    if not all(second.values()):
        left_out[
            "without an answer" if one.answer is not None else f"of images without tags in {tags and tags.path}"
        ] += 1
        return None
    url = {} if one.url is None else {"url": one.url}
    return {"image_id": image_id, "text": text, **second, "source": kind, "id": f"{kind}_{one.own_id}", **url}


def _is_seen(text: str) -> bool:
    """Whether there is anything but blanks and what no one sees, of which a tokenizer makes nothing."""
    return any(character.isprintable() and not character.isspace() for character in text)


class _ImageCounts:
    """Counts different images, and those that a store lacks, by numbers of 64 bits."""

    def __init__(self, store: RegionStore | None) -> None:
        self._store, self._seen, self._missing, self._last = store, array("q"), array("q"), ""

    def add(self, image_id: str) -> None:
        if image_id == self._last:
            return
        self._last = image_id
        self._seen.append(hash(image_id))
        if self._store is not None and image_id not in self._store:
            self._missing.append(self._seen[-1])

    def count(self) -> int:
        return len(np.unique(np.array(self._seen, dtype=np.int64)))

    def without_regions(self) -> int | None:
        return None if self._store is None else len(np.unique(np.array(self._missing, dtype=np.int64)))

    def refuse_strangers(self) -> None:
        """Raises UserError where no image at all is in the store."""
        if self._store is not None and self._seen and len(self._missing) == len(self._seen):
            like = self._store.image_ids[0] if len(self._store) else "none"
            raise UserError(
                f"{self._store!r} has regions of none of the images, the last being {self._last!r}; its ids are like "
                f"{str(like)!r}: pass --prefix, or the store of these images."
            )

"""Reads captions: Karpathy's dataset_coco.json and dataset_flickr30k.json, COCO's own JSON, JSONL of your own."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.compute as pc
from msgspec import Raw, Struct
from msgspec.json import Decoder
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.captioning.records import FOUND, CaptionRecords, OnMissingCaptions
from vinvl.data.module import NULL_REMOVES, plain
from vinvl.data.table import ID, TEXT, Form, RecordTable, as_lists
from vinvl.run.errors import UserError
from vinvl.run.files import no_cycle_collection
from vinvl.run.values import FilledText, Id, checked_id, decoded, decoded_file, decoded_items, decoded_lines, shown

Row = tuple[Any, ...]


class OwnImage(Struct, gc=False):
    image_id: Id
    file_name: str | None = None
    domain: str | None = None
    captions: list[str] | None = None
    caption: str | None = None


class CocoImage(Struct, gc=False):
    id: Id
    file_name: str | None = None
    domain: str | None = None


class CocoCaption(Struct, gc=False):
    id: Id
    image_id: Id
    caption: str


class CocoFile(Struct):
    images: list[Raw]
    annotations: list[Raw] | None = None


class Sentence(Struct, gc=False):
    raw: str
    sentid: Id | None = None


class InSplit(Struct, gc=False):
    split: FilledText


class KarpathyImage(Struct, gc=False):
    filename: str | None = None
    cocoid: Id | None = None
    sentences: list[Sentence] | None = None


class KarpathyFile(Struct):
    images: list[Raw]


_ANNOTATIONS = Form("annotations", "id", {"caption_id": ID, "image_id": TEXT, "caption": TEXT})


def read_caption_jsonl(path: str | Path, on_missing_captions: OnMissingCaptions = "error") -> CaptionRecords:
    """Reads one split from JSONL, UTF-8, one image per line; blank lines are skipped.

    Keys: "image_id" (integer or text) and "captions", a list of texts, or "caption", one text; missing on every line of
    a file of images to predict captions for. Optional: "file_name", "domain". Captions are called by their image and
    number from 1, "391895#2".

    All readers: `on_missing_captions` "error" refuses images without captions and blank captions, "skip" leaves them
    out and counts them in `skipped`. UserError names file and record for what is not as described, for images and
    caption ids that occur twice.
    """

    def rows() -> Iterator[Row]:
        for line, one in decoded_lines(path, Decoder(OwnImage)):
            if one.captions is not None and one.caption is not None:
                raise UserError(f"{path} line {line} has both captions and caption; keep one of the two.")
            texts = one.captions if one.caption is None else [one.caption]
            ids = None if texts is None else [f"{one.image_id}#{number}" for number in range(1, len(texts) + 1)]
            yield f"{path} line", line, one.image_id, one.file_name or None, one.domain or None, _stripped(texts), ids

    return CaptionRecords.checked(RecordTable.of(FOUND, rows(), path), on_missing_captions)


def _stripped(texts: Sequence[str] | None) -> list[str] | None:
    return None if texts is None else [text.strip() for text in texts]


def read_coco_captions(path: str | Path, on_missing_captions: OnMissingCaptions = "error") -> CaptionRecords:
    """Reads the layout of COCO (Chen et al. 2015), which NoCaps (Agrawal et al. 2019) uses as well.

    The file is an object whose "images" list holds {"id"}, optionally with "file_name" and NoCaps' "domain", and whose
    "annotations" list holds {"id", "image_id", "caption"}. A file without "annotations" (image_info_test2014.json,
    NoCaps test) holds images only. Images come in the order of the file, each with its captions in the order of theirs.
    Raises as `read_caption_jsonl` does, and for annotations of images that the file lacks.
    """
    with no_cycle_collection():
        content = decoded_file(path, CocoFile, "COCO caption file")
        listed = enumerate(decoded_items(content.images, Decoder(CocoImage), path, "$.images"), start=1)
        named = ((number, one.id, one.file_name or None, one.domain or None, None, None) for number, one in listed)
        images = RecordTable.of(FOUND, ((f"{path} image", *row) for row in named), path)
        if content.annotations is not None:
            said = enumerate(decoded_items(content.annotations, Decoder(CocoCaption), path, "$.annotations"), start=1)
            rows = ((f"{path} annotation", number, one.id, one.image_id, one.caption.strip()) for number, one in said)
            images = _captioned(images, RecordTable.of(_ANNOTATIONS, rows, path), path)
        return CaptionRecords.checked(images, on_missing_captions)


def _captioned(images: RecordTable, captions: RecordTable, path: str | Path) -> RecordTable:
    """The images with their captions."""
    owners = pc.index_in(captions.table["image_id"], value_set=images.table["image_id"])
    unknown = owners.is_null()
    if owners.null_count:
        first = int(unknown.to_numpy().argmax())
        others = pc.count_distinct(captions.table["image_id"].filter(unknown)).as_py()
        raise UserError(
            f"{captions.describe(first)} is about image {captions['image_id'][first]}, which is not among the "
            f'"images" of {path} ({others:,} such images); add it or leave its annotations out.'
        )
    order = np.argsort(owners.to_numpy(), kind="stable")
    counts = np.bincount(owners.to_numpy(), minlength=len(images))
    table = images.table
    for name, column in (("captions", "caption"), ("caption_ids", "caption_id")):
        table = table.append_column(name, as_lists(captions[column].take(order), counts))
    return RecordTable(table, FOUND)


def read_karpathy(
    path: str | Path, splits: Sequence[str], on_missing_captions: OnMissingCaptions = "error"
) -> CaptionRecords:
    """Reads the images of some splits ("train", "restval", "val", "test") in the order of the file.

    The file is an object whose "images" list holds {"split", "filename", "sentences": [{"raw"}]}, with "cocoid" and
    each sentence's "sentid" if it has one. An image is called by its cocoid, or else by its filename without
    folder and suffix. Images of other splits are read only as far as their split. Raises as `read_caption_jsonl` does,
    and for splits that the file does not have.
    """
    splits = [splits] if isinstance(splits, str) else splits
    with no_cycle_collection():
        listed = decoded_file(path, KarpathyFile, "Karpathy split file").images
        split_of = [one.split for one in decoded_items(listed, Decoder(InSplit), path, "$.images")]
        unknown = [split for split in splits if split not in split_of]
        if listed and (unknown or not splits):
            wanted = f"no split {shown(unknown[0])}" if unknown else "no split to read named"
            raise UserError(f"{path} has {wanted}; it has {', '.join(dict.fromkeys(split_of))}.")
        rows = (
            _karpathy_row(value, number, path)
            for number, (value, split) in enumerate(zip(listed, split_of, strict=True))
            if split in splits
        )
        return CaptionRecords.checked(RecordTable.of(FOUND, rows, path), on_missing_captions)


_KARPATHY_IMAGE = Decoder(KarpathyImage)


def _karpathy_row(value: Raw, number: int, path: str | Path) -> Row:
    """Of image `number`, from 0, of the file."""
    one = decoded(value, _KARPATHY_IMAGE, str(path), f"$.images[{number}]")
    image_id = one.cocoid
    if image_id is None:
        name = checked_id(one.filename, f"{path} record {number + 1}, which has no cocoid: filename")
        image_id = PurePosixPath(str(name)).stem
    sentences = one.sentences or ()
    ids = [f"{image_id}#{n}" if said.sentid is None else said.sentid for n, said in enumerate(sentences, start=1)]
    texts = [said.raw.strip() for said in sentences]
    return f"{path} record", number + 1, image_id, one.filename or None, None, texts, ids


def read_caption_split(files: Any, split: str, on_missing_captions: str) -> CaptionRecords:
    """The captioned images of a split; a warning says what was skipped and how many.

    `files`: `{karpathy: FILE, splits: [NAME, …]}`, `{coco: FILE}` (also NoCaps) or `{jsonl: FILE}`.

    Raises:
        UserError: another form, or what the readers refuse.
    """
    if on_missing_captions not in ("error", "skip"):
        raise UserError(f"data.on_missing_captions is '{on_missing_captions}': choose error or skip.")
    handling: Any = on_missing_captions
    match plain(files):
        case {"karpathy": str(path), "splits": [*names], **others} if not others:
            records = read_karpathy(path, names, handling)
        case {"coco": str(path), **others} if not others:
            records = read_coco_captions(path, handling)
        case {"jsonl": str(path), **others} if not others:
            records = read_caption_jsonl(path, handling)
        case other:
            several = isinstance(other, dict) and len({"karpathy", "coco", "jsonl"} & other.keys()) > 1
            raise UserError(
                f"data.splits.{split} is {other!r}: give {'one of ' if several else ''}"
                "{karpathy: FILE, splits: [NAME, …]}, {coco: FILE} or {jsonl: FILE}"
                f"{f' ({NULL_REMOVES})' if several else ''}."
            )
    if records.skipped.images or records.skipped.blank_captions:
        rank_zero_warn(f"data.on_missing_captions=skip: split '{split}' goes without {records.skipped.describe()}.")
    return records

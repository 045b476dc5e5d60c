"""Captions of one split: Karpathy's dataset_coco.json and dataset_flickr30k.json, COCO's own JSON, your own JSONL."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw, Struct
from msgspec.json import Decoder
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.module import NULL_REMOVES, plain
from vinvl.data.table import ID, IDS, TEXT, TEXTS, Column, Form, RecordTable, as_lists, first_repeat, replaced
from vinvl.run.errors import UserError
from vinvl.run.files import no_cycle_collection
from vinvl.run.values import FilledText, Id, checked_id, decoded, decoded_file, decoded_items, decoded_lines, shown

CAPTIONS = Form(
    noun="images",
    called="image",
    columns={
        "image_id": TEXT,
        "file_name": TEXT,
        "domain": TEXT,  # "in-domain", "near-domain", "out-domain" of NoCaps
        "captions": TEXTS,  # without white space around them; at least one and none blank once they are checked
        "caption_ids": IDS,  # of each caption
        "open_images_id": TEXT,  # of NoCaps, whose pictures are files of Open Images
    },
    annotation="captions",
    filled={"file_name": "", "domain": "unstated", "open_images_id": ""},
    remedy="give every image one record with all its captions",
)
FOUND = replace(CAPTIONS, annotation="")  # by a reader: some records may have no captions, or blank ones

OnMissingCaptions = Literal["error", "skip"]
"""What to do about an image without captions or a blank caption: refuse the file, or leave it out and count it."""


@dataclass(frozen=True, eq=False)
class CaptionRecords(RecordTable):
    """N images with M captions in all, of different ids; there are no captions at all where they are to be predicted.

    `skipped` says what was left out of the file, "" if nothing was; a selection keeps it.
    """

    skipped: str = ""

    @classmethod
    def checked(cls, found: RecordTable, on_missing_captions: OnMissingCaptions) -> Self:
        """What a reader found (`FOUND`), without images that have no captions and without blank captions.

        Raises UserError, naming the record, if there are such and `on_missing_captions` is not "skip", if nothing is
        left, and if two captions have one id.
        """
        table, skipped = found.table, ""
        if "captions" in found:
            captions, counts = found["captions"].flat(), np.diff(found["captions"].starts())
            blank = pc.equal(captions.values, "").to_numpy()
            owners = np.repeat(np.arange(len(found)), counts)
            left = counts - np.bincount(owners[blank], minlength=len(found))
            if blank.any() or not left.all():
                skipped = _skipped(found, blank, owners, left, on_missing_captions)
                kept = pa.array(~blank)
                for name in ("captions", "caption_ids"):
                    table = replaced(table, name, as_lists(Column(found[name].flat().values.filter(kept)), left))
                table = table.filter(pa.array(left > 0))
        records = cls(table, CAPTIONS, skipped)
        ids = records["caption_ids"].flat().values if records.annotated else pa.chunked_array([], TEXT)
        if (repeat := first_repeat(ids)) is not None:
            first, second, count = repeat
            image, other = records.caption_image[[second, first]].tolist()
            raise UserError(
                f"{records.place(image)} has a caption with the id {ids[second]} of a caption of "
                f"{records.place(other)} ({count:,} such repeats); give every caption an id of its own."
            )
        return records

    @cached_property
    def captions(self) -> Column | None:
        """The M captions, image by image; None if there are only images to predict captions for."""
        return self["captions"].flat() if self.annotated else None

    @cached_property
    def offsets(self) -> np.ndarray:
        """(N + 1,) int64: the captions of image i are `captions[offsets[i]]` to `captions[offsets[i + 1] - 1]`."""
        return self["captions"].starts() if self.annotated else np.zeros(len(self) + 1, dtype=np.int64)

    @cached_property
    def caption_ids(self) -> np.ndarray:
        """(M,): int64 where every id is an integer, otherwise text."""
        return self["caption_ids"].flat().numpy() if self.annotated else np.zeros(0, dtype=np.int64)

    @property
    def caption_image(self) -> np.ndarray:
        """(M,) int64, the index of the image of each caption; made again at each call."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def captions_of(self, index: int) -> list[str]:
        """The captions of an image; [] if there are only images."""
        captions: list[str] = self["captions"][index] if self.annotated else []
        return captions


def _skipped(
    found: RecordTable, blank: np.ndarray, owners: np.ndarray, left: np.ndarray, on_missing_captions: str
) -> str:
    """Says what is left out; an image all of whose captions are blank counts twice. Raises as `checked` does.

    Args:
        blank, owners: (M,) whether each caption is blank, and its image.
        left: (N,) captions of each image that are not.
    """
    lacking = []  # (first image, it or its caption, what is wrong with that, how many, what they are called)
    if blank.any():
        first = int(blank.argmax())
        place = f"{found.describe(int(owners[first]))}, caption {found['caption_ids'].flat()[first]}"
        lacking.append((int(owners[first]), place, ", is blank", int(blank.sum()), "blank caption{}"))
    if not left.all():
        first = int((left == 0).argmax())
        place = found.describe(first)
        lacking.append((first, place, " has no captions", int((left == 0).sum()), "image{} without captions"))
    if on_missing_captions == "error":
        _, place, wrong, *_ = min(lacking, key=lambda kind: kind[0])
        raise UserError(f"{place}{wrong}; add one, or set on_missing_captions to skip.")
    if not left.any():
        others = "and all others have no captions; a split without any is of no use"
        raise UserError(f"{found.place(0)} {others}.")
    return " and ".join(
        f"{count:,} {kind.format('' if count == 1 else 's')} (the first: {place})"
        for _, place, _, count, kind in reversed(lacking)
    )


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
    open_images_id: str | None = None


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


ANNOTATIONS = Form("annotations", "id", {"caption_id": ID, "image_id": TEXT, "caption": TEXT})


def read_caption_jsonl(path: str | Path, on_missing_captions: OnMissingCaptions = "error") -> CaptionRecords:
    """Reads one split from JSONL, UTF-8, one image per line; blank lines are skipped.

    Keys: "image_id" (integer or text) and "captions", a list of texts, or "caption", one text; missing on every line of
    a file of images to predict captions for. Optional: "file_name", "domain". Captions are called by their image and
    number from 1, "391895#2".

    All readers: `on_missing_captions` "error" refuses images without captions and blank captions, "skip" leaves them
    out and says so in `skipped`. UserError names file and record for what is not as described, for images and
    caption ids that occur twice.
    """

    def rows() -> Iterator[Row]:
        for line, one in decoded_lines(path, Decoder(OwnImage)):
            if one.captions is not None and one.caption is not None:
                raise UserError(f"{path} line {line} has both captions and caption; keep one of the two.")
            texts = one.captions if one.caption is None else [one.caption]
            ids = None if texts is None else [f"{one.image_id}#{number}" for number in range(1, len(texts) + 1)]
            texts = None if texts is None else [text.strip() for text in texts]
            yield f"{path} line", line, one.image_id, one.file_name or None, one.domain or None, texts, ids, None

    return CaptionRecords.checked(RecordTable.of(FOUND, rows(), path), on_missing_captions)


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
        rows = (
            (f"{path} image", number, one.id, one.file_name or None, one.domain or None, None, None, one.open_images_id)
            for number, one in listed
        )
        images = RecordTable.of(FOUND, rows, path)
        if content.annotations is not None:
            said = enumerate(decoded_items(content.annotations, Decoder(CocoCaption), path, "$.annotations"), start=1)
            texts = ((f"{path} annotation", number, one.id, one.image_id, one.caption.strip()) for number, one in said)
            images = captioned(images, RecordTable.of(ANNOTATIONS, texts, path), f'the "images" of {path}')
        return CaptionRecords.checked(images, on_missing_captions)


def captioned(images: RecordTable, captions: RecordTable, listed: str) -> RecordTable:
    """The images, which `listed` names for messages, with their captions; UserError for captions of other images."""
    owners = pc.index_in(captions.table["image_id"], value_set=images.table["image_id"])
    unknown = owners.is_null()
    if owners.null_count:
        first = int(unknown.to_numpy().argmax())
        others = pc.count_distinct(captions.table["image_id"].filter(unknown)).as_py()
        raise UserError(
            f"{captions.describe(first)} is about image {captions['image_id'][first]}, which is not among "
            f"{listed} ({others:,} such images); add it or leave its captions out."
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
    return f"{path} record", number + 1, image_id, one.filename or None, None, texts, ids, None


def read_caption_split(files: Any, split: str, on_missing_captions: str) -> CaptionRecords:
    """The captioned images of a split; a warning says what was skipped and how many.

    `files`: `{karpathy: FILE, splits: [NAME, …]}`, `{coco: FILE}` (also NoCaps) or `{jsonl: FILE}`.

    Raises:
        UserError: another form, or what the readers refuse.
    """
    handling = checked_handling(on_missing_captions)
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
    tell_skipped(records, split)
    return records


def checked_handling(on_missing_captions: str) -> OnMissingCaptions:
    """One of the two; UserError for anything else."""
    if on_missing_captions not in ("error", "skip"):
        raise UserError(f"data.on_missing_captions is '{on_missing_captions}': choose error or skip.")
    return "error" if on_missing_captions == "error" else "skip"


def tell_skipped(records: CaptionRecords, split: str) -> None:
    """Warns of what a reader has left out."""
    if records.skipped:
        rank_zero_warn(
            f"data.on_missing_captions=skip: split '{split}' goes without {records.skipped}; "
            "mend the file to have them."
        )

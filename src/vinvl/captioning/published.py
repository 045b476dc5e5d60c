"""The captions of the published folders: the yaml of a split with its label and caption files, and NoCaps' image lists.

A split has the images of its label file in the order of that, whose rows are those of the feature file too.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml
from msgspec import MsgspecError, Raw, Struct, convert
from msgspec.json import Decoder

from vinvl.captioning.files import (
    ANNOTATIONS,
    FOUND,
    CaptionRecords,
    OnMissingCaptions,
    Row,
    captioned,
    read_coco_captions,
)
from vinvl.data.table import RecordTable
from vinvl.regions.formats.rows import id_in
from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list, no_cycle_collection, read_bytes, reading
from vinvl.run.values import FilledText, Id, decoded_file, decoded_items

BY_OPEN_IMAGES = "open_images_id"


class SplitFiles(Struct):
    """What the yaml of a split names; features, sizes and pictures are no business of captions."""

    label: FilledText
    caption: FilledText | None = None
    cbs_box: FilledText | None = None  # these four: of constrained search
    cbs_hierarchy: FilledText | None = None
    cbs_tokenforms: FilledText | None = None
    cbs_constraint: FilledText | None = None


class PublishedCaption(Struct, gc=False):
    image_id: Id
    caption: str
    id: Id | None = None


def read_published_split(
    path: str | Path, official: str | Path | None = None, on_missing_captions: OnMissingCaptions = "error"
) -> CaptionRecords:
    """The captioned images of a published split.

    Args:
        path: the yaml of the split, or its `{split}_caption.json` alone, whose images then are those that it names, in
            the order in which they first come. A yaml that names no captions is of images to predict captions for.
        official: NoCaps' own list of the images, with or without captions: records are called by its numbers and their
            images by its `open_images_id`, which the label file has.

    Raises:
        UserError: a file is missing or something else, captions are of images that the split does not have, or the
            label file and the official list are not of the same images; and as all readers of captions.
    """
    with no_cycle_collection():
        captions: RecordTable | None
        if begins_a_list(path):
            captions = _captions(Path(path))
            images, listed = _named_images(captions, path), str(path)
        else:
            files = files_of_split(Path(path), "label", "caption")
            images, listed = _images(files["label"]), str(files["label"])
            captions = _captions(files["caption"]) if "caption" in files else None
        if official is not None:
            return _as_official(images, listed, official, on_missing_captions)
        if captions is not None:
            images = captioned(images, captions, f"those of {listed}")
        return CaptionRecords.checked(images, on_missing_captions)


def files_of_split(path: Path, *keys: str) -> dict[str, Path]:
    """The files that a yaml names by some keys: relative to its folder, or to the working folder, as Oscar looks.

    Raises UserError if it is missing, no such yaml, or names a file that does not exist.
    """
    try:
        named = convert(yaml.safe_load(read_bytes(path)), SplitFiles)
    except (yaml.YAMLError, MsgspecError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no yaml of a published split, with label, feature and maybe caption "
            f"({' '.join(str(error).split())[:200]}); give one, or a list of captions such as train_caption.json."
        ) from None
    found = {}
    for key in keys:
        if (name := getattr(named, key)) is None:
            continue
        places = [path.parent / name, Path(name)]
        there = [place for place in places if "\0" not in name and place.is_file()]
        if not there:
            raise UserError(f"{path} names {name!r} as its {key}, and {places[0]} does not exist; get that file too.")
        found[key] = there[0]
    return found


def _images(path: Path) -> RecordTable:
    """Of the rows of a label file, whose ids alone are read."""

    def rows() -> Iterator[Row]:
        with reading(path), path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        image_id = id_in(line.split(b"\t", 1)[0])
                    except UserError as error:
                        raise UserError(f"{path} line {number}: {error}") from None
                    yield f"{path} line", number, image_id, None, None, None, None, None

    return RecordTable.of(FOUND, rows(), path)


def _captions(path: Path) -> RecordTable:
    """Of a list of {"image_id", "id", "caption"}; a caption without an id is called by its number in the list."""
    listed = decoded_items(decoded_file(path, list[Raw], "list of captions"), Decoder(PublishedCaption), path, "$")
    rows = (
        (f"{path} caption", number, f"#{number}" if one.id is None else one.id, one.image_id, one.caption.strip())
        for number, one in enumerate(listed, start=1)
    )
    return RecordTable.of(ANNOTATIONS, rows, path)


def _named_images(captions: RecordTable, path: str | Path) -> RecordTable:
    """The images that captions are of."""
    image_ids = captions.table["image_id"].combine_chunks()
    first = np.sort(pc.index_in(pc.unique(image_ids), value_set=image_ids).to_numpy())
    rows = ((f"{path} caption", int(n) + 1, image_ids[int(n)].as_py(), None, None, None, None, None) for n in first)
    return RecordTable.of(FOUND, rows, path)


def _as_official(
    images: RecordTable, listed: str, official: str | Path, on_missing_captions: OnMissingCaptions
) -> CaptionRecords:
    """The images of NoCaps' own list in the order of a label file, looked up by their ids in Open Images."""
    known = read_coco_captions(official, on_missing_captions)
    if BY_OPEN_IMAGES not in known:
        raise UserError(
            f"{official} gives no open_images_id of its images; give a list of NoCaps' own, nocaps_val_image_info.json "
            "or nocaps_val_4500_captions.json."
        )
    remedy = "the two are not of one split; get both again"
    places = pc.index_in(images.table["image_id"], value_set=known.table[BY_OPEN_IMAGES])
    if places.null_count:
        first = int(places.is_null().to_numpy().argmax())
        raise UserError(
            f"{images.place(first)}: image {images['image_id'][first]!r} is not in {official}, like "
            f"{places.null_count - 1:,} more of {len(images):,}: {remedy}."
        )
    order: Any = places.to_numpy()
    if len(left := np.setdiff1d(np.arange(len(known)), order)):
        raise UserError(f"{known.describe(int(left[0]))} and {len(left) - 1:,} more are not in {listed}: {remedy}.")
    return replace(known, table=known.table.take(order), form=replace(known.form, images=(BY_OPEN_IMAGES,)))

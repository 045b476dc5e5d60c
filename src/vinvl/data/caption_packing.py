"""From the images and captions that a reader found to `CaptionRecords`; blank and missing captions are dealt with."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np

from vinvl.data.caption_records import ONE_RECORD, UNSTATED_DOMAIN, CaptionRecords, SkippedCaptions
from vinvl.data.column_parts import categories_or_none, texts_or_none
from vinvl.data.columns import TextColumn
from vinvl.data.record_fields import checked_text
from vinvl.data.record_sources import RecordSources, id_array, refuse_repeated_ids
from vinvl.errors import UserError

OnMissingCaptions = Literal["error", "skip"]
"""What to do about an image without captions or a blank caption: refuse the file, or leave it out and count it."""

_REMEDY = "add one, or set on_missing_captions to skip"


class Caption(NamedTuple):
    """A caption as found in a file: its id and its text, which may be blank."""

    caption_id: int | str
    text: str


class CaptionedImage(NamedTuple):
    """An image as found in a file; `captions` is None where the file has no place for captions."""

    number: int
    image_id: str
    file_name: str | None
    domain: str | None
    captions: Sequence[Caption] | None


def numbered_caption(image_id: str, number: int, value: Any, place: str) -> Caption:
    """A caption without an id of its own is called by its image and its number from 1: "391895#2"."""
    return Caption(f"{image_id}#{number}", checked_text(value, f"{place}: caption {number}"))


def pack(images: Sequence[CaptionedImage], file: str, on_missing_captions: OnMissingCaptions) -> CaptionRecords:
    """Packs what a reader found; `file` as in `RecordSources.files`. White space around captions is dropped.

    If no image has a place for captions, the records are images only. Otherwise images without captions and blank
    captions raise UserError, naming the record, or are left out and counted: see `OnMissingCaptions`.
    """
    if on_missing_captions not in ("error", "skip"):
        raise UserError(f"on_missing_captions is {on_missing_captions!r}; set it to error or skip.")
    skip = on_missing_captions == "skip"
    sources = RecordSources.of_file(file, [image.number for image in images])
    refuse_repeated_ids(np.array([image.image_id for image in images], dtype=np.str_), sources, "image id", ONE_RECORD)
    if all(image.captions is None for image in images):
        return _records(images, file, SkippedCaptions())
    kept, skipped = [], SkippedCaptions()
    for image in images:
        place = f"{file} {image.number} (image {image.image_id})"
        captions = [Caption(caption.caption_id, caption.text.strip()) for caption in image.captions or ()]
        blank = [caption for caption in captions if not caption.text]
        if blank:
            first = f"{place}, caption {blank[0].caption_id}"
            if not skip:
                raise UserError(f"{first}, is blank; {_REMEDY}.")
            skipped += SkippedCaptions(blank_captions=len(blank), first_blank_caption=first)
        if len(blank) < len(captions):
            kept.append(image._replace(captions=[caption for caption in captions if caption.text]))
        elif skip:
            skipped += SkippedCaptions(images=1, first_image=place)
        else:
            raise UserError(f"{place} has no captions; {_REMEDY}.")
    if not kept:
        raise UserError(f"{file} {images[0].number} and all others have no captions; a split without any is of no use.")
    return _records(kept, file, skipped)


def _records(images: Sequence[CaptionedImage], file: str, skipped: SkippedCaptions) -> CaptionRecords:
    captions = list(chain.from_iterable(image.captions or () for image in images))
    counts = np.array([len(image.captions or ()) for image in images], dtype=np.int64)
    return CaptionRecords(
        image_ids=np.array([image.image_id for image in images], dtype=np.str_),
        file_names=texts_or_none([image.file_name for image in images]),
        domains=categories_or_none([image.domain for image in images], UNSTATED_DOMAIN),
        captions=TextColumn.from_texts(caption.text for caption in captions) if captions else None,
        offsets=np.insert(np.cumsum(counts), 0, 0),
        caption_ids=id_array([caption.caption_id for caption in captions]),
        sources=RecordSources.of_file(file, [image.number for image in images]),
        skipped=skipped,
    )

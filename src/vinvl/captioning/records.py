"""The captions of the images of one split, whatever file they came from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np

from vinvl.data.columns import (
    CategoricalColumn,
    TextColumn,
    categories_or_none,
    checked_mask,
    joined_categories,
    joined_texts,
    select_categories,
    select_texts,
    texts_or_none,
)
from vinvl.data.records import (
    RecordSources,
    checked_text,
    first_repeat,
    id_array,
    joined_ids,
    parts_to_join,
    refuse_mixed,
    refuse_repeated_ids,
)
from vinvl.run.errors import UserError

UNSTATED_DOMAIN = "unstated"
"""Domain of the images that state none, while others do."""


ONE_RECORD = "give every image one record with all its captions"


@dataclass(frozen=True)
class SkippedCaptions:
    """What a reader left out because it was told to: captions of nothing but white space, and images without captions.

    An image all of whose captions are blank counts under both. The first of each kind is named for messages.
    """

    blank_captions: int = 0
    first_blank_caption: str = ""
    images: int = 0
    first_image: str = ""

    def describe(self) -> str:
        """ "2 images without captions (the first: …) and 1 blank caption (the first: …)"; "nothing" if that is so."""
        images = "image without captions" if self.images == 1 else "images without captions"
        blanks = "blank caption" if self.blank_captions == 1 else "blank captions"
        kinds = [(self.images, images, self.first_image), (self.blank_captions, blanks, self.first_blank_caption)]
        return " and ".join(f"{n:,} {kind} (the first: {first})" for n, kind, first in kinds if n) or "nothing"

    def __add__(self, other: "SkippedCaptions") -> "SkippedCaptions":
        return SkippedCaptions(
            self.blank_captions + other.blank_captions,
            self.first_blank_caption or other.first_blank_caption,
            self.images + other.images,
            self.first_image or other.first_image,
        )


@dataclass(frozen=True, eq=False)
class CaptionRecords:
    """N images with M captions in all, in the order of the file, in NumPy arrays only (see `vinvl.data.columns`).

    - image_ids (N,): text of fixed width, all different, the decimal digits for integer ids.
    - file_names: empty if the file states none; None if no image has one.
    - domains: "in-domain", "near-domain", "out-domain" for NoCaps; None if no image has one.
    - captions: the M captions, image by image, without white space around them, never blank; None if there are only
      images to predict captions for.
    - offsets (N+1,) int64: the captions of image i are `captions[offsets[i]]` to `captions[offsets[i + 1] - 1]`, at
      least one; all zero where captions is None.
    - caption_ids (M,): int64 where every id is an integer, otherwise text; all different.
    - sources: file and record number of each image, for messages.
    - skipped: what the reader left out; nothing unless it was told to.
    """

    image_ids: np.ndarray
    file_names: TextColumn | None
    domains: CategoricalColumn | None
    captions: TextColumn | None
    offsets: np.ndarray
    caption_ids: np.ndarray
    sources: RecordSources
    skipped: SkippedCaptions

    def __post_init__(self) -> None:
        refuse_repeated_ids(self.image_ids, self.sources, "image id", ONE_RECORD)
        repeat = first_repeat(self.caption_ids)
        if repeat is not None:
            first, second, count = repeat
            image, other = self.caption_image[[second, first]].tolist()
            raise UserError(
                f"{self.sources[image]} has a caption with the id {self.caption_ids[second]} of a caption of "
                f"{self.sources[other]} ({count:,} such repeats); give every caption an id of its own."
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def caption_image(self) -> np.ndarray:
        """(M,) int64, the index of the image of each caption; made again at each call."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def captions_of(self, index: int) -> list[str]:
        """The captions of an image; [] if there are only images."""
        position = range(len(self))[index]
        if self.captions is None:
            return []
        return [self.captions[caption] for caption in range(self.offsets[position], self.offsets[position + 1])]

    def describe(self, index: int) -> str:
        """Names an image for a message: "dataset_coco.json record 17 (image 391895)"."""
        return f"{self.sources[index]} (image {self.image_ids[index]})"

    def describe_caption(self, caption_index: int) -> str:
        """Names a caption for a message: "dataset_coco.json record 17 (image 391895), caption 770337"."""
        position = range(len(self.caption_ids))[caption_index]
        image = int(np.searchsorted(self.offsets, position, side="right")) - 1
        return f"{self.describe(image)}, caption {self.caption_ids[position]}"

    def select(self, keep: np.ndarray) -> "CaptionRecords":
        """The images where `keep` (N,) bool is True with all their captions, in their order.

        `skipped` stays, as it tells what happened to the file. ValueError for anything else than such a mask.
        """
        keep = checked_mask(keep, len(self))
        counts = np.diff(self.offsets)
        keep_caption = np.repeat(keep, counts)
        return CaptionRecords(
            image_ids=self.image_ids[keep],
            file_names=None if self.file_names is None else select_texts(self.file_names, keep),
            domains=None if self.domains is None else select_categories(self.domains, keep),
            captions=None if self.captions is None else select_texts(self.captions, keep_caption),
            offsets=np.insert(np.cumsum(counts[keep]), 0, 0),
            caption_ids=self.caption_ids[keep_caption],
            sources=self.sources.select(keep),
            skipped=self.skipped,
        )


def concatenate(parts: Sequence[CaptionRecords]) -> CaptionRecords:
    """Joins records, as train and restval are joined; order is kept.

    Raises UserError if an image id or a caption id occurs twice or only some parts have captions; ValueError if there
    are no parts.
    """
    skipped = sum((part.skipped for part in parts), SkippedCaptions())
    parts = parts_to_join(parts)
    lengths = [len(part) for part in parts]
    captions = [part.captions for part in parts if part.captions is not None]
    sources = RecordSources.concatenate([part.sources for part in parts])
    refuse_mixed(np.repeat([part.captions is not None for part in parts], lengths), sources, "caption")
    return CaptionRecords(
        image_ids=np.concatenate([part.image_ids for part in parts]),
        file_names=joined_texts([part.file_names for part in parts], lengths),
        domains=joined_categories([part.domains for part in parts], lengths, UNSTATED_DOMAIN),
        captions=TextColumn.concatenate(captions) if captions else None,
        offsets=np.insert(np.cumsum(np.concatenate([np.diff(part.offsets) for part in parts])), 0, 0),
        caption_ids=joined_ids([part.caption_ids for part in parts]),
        sources=sources,
        skipped=skipped,
    )


# From the images and captions that a reader found to `CaptionRecords`; blank and missing captions are dealt with.


OnMissingCaptions = Literal["error", "skip"]
"""What to do about an image without captions or a blank caption: refuse the file, or leave it out and count it."""

_REMEDY = "add one, or set on_missing_captions to skip"


class Caption(NamedTuple):
    """A caption as found in a file: its id and its text, which may be blank."""

    caption_id: int | str
    text: str


class CaptionedImage(NamedTuple):
    """An image as found in a file; `captions` is None if the file has no place for captions."""

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

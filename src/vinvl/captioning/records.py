"""The captions of the images of one split, whatever file they came from."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vinvl.data.table import IDS, TEXT, TEXTS, Column, Form, RecordTable, as_lists, first_repeat, replaced
from vinvl.run.errors import UserError

UNSTATED_DOMAIN = "unstated"
"""Domain of the images that state none, while others do."""

CAPTIONS = Form(
    noun="images",
    called="image",
    columns={
        "image_id": TEXT,
        "file_name": TEXT,
        "domain": TEXT,  # "in-domain", "near-domain", "out-domain" of NoCaps
        "captions": TEXTS,  # without white space around them; at least one and none blank once they are checked
        "caption_ids": IDS,  # of each caption
    },
    annotation="captions",
    filled={"file_name": "", "domain": UNSTATED_DOMAIN},
    remedy="give every image one record with all its captions",
)
FOUND = replace(CAPTIONS, annotation="")
"""What a reader finds: records of which some may have no captions, or blank ones."""

OnMissingCaptions = Literal["error", "skip"]
"""What to do about an image without captions or a blank caption: refuse the file, or leave it out and count it."""

_REMEDY = "add one, or set on_missing_captions to skip"


@dataclass(frozen=True)
class SkippedCaptions:
    """What was left out because the reader was told to: blank captions, and images without captions.

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


@dataclass(frozen=True, eq=False)
class CaptionRecords(RecordTable):
    """N images with M captions in all, of different ids; there are no captions at all where they are to be predicted.

    `skipped` is what was left out of the file; a selection keeps it.
    """

    skipped: SkippedCaptions = SkippedCaptions()

    @classmethod
    def checked(cls, found: RecordTable, on_missing_captions: OnMissingCaptions) -> Self:
        """What a reader found (`FOUND`), without images that have no captions and without blank captions.

        Raises UserError, naming the record, if there are such and `on_missing_captions` is not "skip", if nothing is
        left, and if two captions have one id.
        """
        table, skipped = found.table, SkippedCaptions()
        if "captions" in found:
            captions = found["captions"]
            blank = pc.equal(captions.flat().values, "").to_numpy()
            counts = np.diff(captions.starts())
            owners = np.repeat(np.arange(len(found)), counts)
            left = counts - np.bincount(owners[blank], minlength=len(found))
            skipped = _skipped(found, blank, owners, left)
            if on_missing_captions == "error":
                _refuse_missing(skipped, left < counts, left == 0)
            if not left.any():
                others = "and all others have no captions; a split without any is of no use"
                raise UserError(f"{found.place(0)} {others}.")
            if skipped != SkippedCaptions():
                for name in ("captions", "caption_ids"):
                    kept = Column(found[name].flat().values.filter(pa.array(~blank)))
                    table = replaced(table, name, as_lists(kept, left))
                table = table.filter(pa.array(left > 0))
        records = cls(table, CAPTIONS, skipped)
        records._refuse_repeated_captions()
        return records

    def _refuse_repeated_captions(self) -> None:
        ids = self["caption_ids"].flat().values if self.annotated else pa.chunked_array([], TEXT)
        if (repeat := first_repeat(ids)) is not None:
            first, second, count = repeat
            image, other = self.caption_image[[second, first]].tolist()
            raise UserError(
                f"{self.place(image)} has a caption with the id {ids[second]} of a caption of {self.place(other)} "
                f"({count:,} such repeats); give every caption an id of its own."
            )

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


def _skipped(found: RecordTable, blank: np.ndarray, owners: np.ndarray, left: np.ndarray) -> SkippedCaptions:
    """What is to be left out.

    Args:
        blank, owners: (M,) whether each caption is blank, and its image.
        left: (N,) captions of each image that are not.
    """
    first_blank = first_image = ""
    if blank.any():
        first = int(blank.argmax())
        caption_id = found["caption_ids"].flat()[first]
        first_blank = f"{found.describe(int(owners[first]))}, caption {caption_id}"
    if not left.all():
        first_image = found.describe(int((left == 0).argmax()))
    return SkippedCaptions(int(blank.sum()), first_blank, int((left == 0).sum()), first_image)


def _refuse_missing(skipped: SkippedCaptions, has_blank: np.ndarray, empty: np.ndarray) -> None:
    """Refuses the first image (N,) bool that has a blank caption or none."""
    bad = has_blank | empty
    if bad.any() and has_blank[bad.argmax()]:
        raise UserError(f"{skipped.first_blank_caption}, is blank; {_REMEDY}.")
    if bad.any():
        raise UserError(f"{skipped.first_image} has no captions; {_REMEDY}.")

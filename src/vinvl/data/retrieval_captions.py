"""The captions that retrieval uses, as tokens beside the images they belong to."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vinvl.data.caption_records import CaptionRecords
from vinvl.data.text import RaggedTokens, Texts
from vinvl.errors import UserError


@dataclass(frozen=True, eq=False)
class CaptionTable:
    """The M captions in use of N images, image by image.

    Attributes:
        rows: (M,) int64: which caption of the records each one is.
        offsets: (N + 1,) int64: the captions of image i are `offsets[i]` to `offsets[i + 1] - 1`.
        tokens: of each caption, without special tokens.
    """

    rows: np.ndarray
    offsets: np.ndarray
    tokens: RaggedTokens

    @classmethod
    def of(
        cls, records: CaptionRecords, tokens_of: Callable[[Texts], RaggedTokens], captions_per_image: int | None
    ) -> "CaptionTable":
        """The first `captions_per_image` captions of each image, all for None, as `tokens_of` tokenizes them."""
        captions = records.captions
        if captions is None:
            raise UserError(f"{records.describe(0)} has no captions, like all of its split: retrieval needs them.")
        counts = np.diff(records.offsets)
        within = np.arange(len(captions)) - np.repeat(records.offsets[:-1], counts)
        kept = counts if captions_per_image is None else np.minimum(counts, captions_per_image)
        rows = np.flatnonzero(within < np.repeat(kept, counts))
        tokens = tokens_of([captions[row] for row in rows.tolist()])
        return cls(rows=rows, offsets=np.insert(np.cumsum(kept), 0, 0), tokens=tokens)

    def __len__(self) -> int:
        return len(self.rows)

    def image_of(self) -> np.ndarray:
        """(M,) int64: the image that each caption belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def captions_of(self, images: np.ndarray) -> np.ndarray:
        """The captions of the named images, in their order, as indices into this table."""
        spans = [np.arange(self.offsets[image], self.offsets[image + 1]) for image in images.tolist()]
        return np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)

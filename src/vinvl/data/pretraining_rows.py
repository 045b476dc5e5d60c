"""The rows of a corpus mixture with their images: what triplets are made of."""

from functools import cached_property

import numpy as np

from vinvl.data.corpus import Mixture, RowKind
from vinvl.data.corpus.index import flat_ranges
from vinvl.data.region_text import RegionText
from vinvl.data.text import RaggedTokens

BLOCK_ROWS = 1_000_000  # whose lengths are added up at once: bounds the memory of what lies between
SPECIAL_TOKENS = 3  # [CLS], and a [SEP] after each text


class CorpusRows:
    """Rows of a mixture, all of whose images are in the store; answers questions about many rows at once."""

    def __init__(self, mixture: Mixture, images: np.ndarray, region_text: RegionText) -> None:
        """`images` (N,) int32: where the image of each row lies in the store."""
        self.mixture = mixture
        self.images = images
        self.region_text = region_text
        self._lengths = mixture.column("lengths")
        self._kinds = mixture.column("kinds")

    def __len__(self) -> int:
        return len(self.mixture)

    @cached_property
    def _num_regions(self) -> np.ndarray:
        """(images,) int16, of the store's images; more than it can count are more than any limit anyway."""
        return np.minimum(self.region_text.store.num_regions, np.iinfo(np.int16).max).astype(np.int16)

    def image_of(self, rows: np.ndarray) -> np.ndarray:
        """Where the images of rows of any shape lie in the store."""
        images: np.ndarray = self.images[rows]
        return images

    def has_second(self, rows: np.ndarray) -> np.ndarray:
        """Whether rows of any shape have a second text; tags may be withheld."""
        kinds, given = self._kinds[rows], self._lengths[rows, 1] > 0
        if not self.region_text.limits.use_tags:
            return np.asarray(given & (kinds == RowKind.ANSWER))
        return np.asarray(np.where(kinds == RowKind.STORE_TAGS, self._num_regions[self.images[rows]] > 0, given))

    @cached_property
    def answer_rows(self) -> np.ndarray:
        """(A,) int64: the questions."""
        return np.flatnonzero(self._kinds == RowKind.ANSWER)

    def texts(self, rows: np.ndarray, sides: np.ndarray) -> RaggedTokens:
        """Token ids of the text (side 0) or the second text (side 1) of each of n rows; tags may be withheld."""
        kinds = np.where(sides == 1, self._kinds[rows], RowKind.ANSWER)  # a first text is never withheld
        found = self.mixture.texts(rows, sides)
        if not self.region_text.limits.use_tags:
            return _replaced(found, np.flatnonzero(kinds != RowKind.ANSWER), [])
        from_store = np.flatnonzero(kinds == RowKind.STORE_TAGS)
        if len(from_store) == 0:
            return found
        return _replaced(found, from_store, [self.region_text.tag_ids(int(i)) for i in self.images[rows[from_store]]])

    def lengths(self) -> np.ndarray:
        """(N,) int16: tokens, cut to the limit, and regions of each row.

        Tags of the store are counted as a token a region, which is enough to put like rows together and spares reading
        the regions of millions of images.
        """
        limits, lengths = self.region_text.limits, np.empty(len(self), dtype=np.int16)
        for start in range(0, len(self), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(self)))
            regions = np.minimum(self._num_regions[self.images[rows]], limits.max_regions)
            second = np.where(self._kinds[rows] == RowKind.STORE_TAGS, regions, self._lengths[rows, 1])
            second = np.where(self.has_second(rows), second, 0)
            tokens = np.minimum(self._lengths[rows, 0] + second + SPECIAL_TOKENS, limits.max_tokens)
            lengths[rows] = tokens + (regions if limits.use_regions else 0)
        return lengths


def _replaced(texts: RaggedTokens, which: np.ndarray, by: list[np.ndarray]) -> RaggedTokens:
    """The texts with the rows `which` (k,) replaced by `by`, or emptied where that is an empty list."""
    old = texts.lengths()
    lengths = old.copy()
    lengths[which] = [len(tokens) for tokens in by] if by else 0
    stay = np.ones(len(texts), dtype=bool)
    stay[which] = False
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    values = np.empty(int(offsets[-1]), dtype=np.int32)
    values[flat_ranges(offsets[:-1][stay], lengths[stay])] = texts.values[
        flat_ranges(texts.offsets[:-1][stay], old[stay])
    ]
    for row, tokens in zip(which.tolist(), by, strict=False):
        values[offsets[row] : offsets[row + 1]] = tokens
    return RaggedTokens(values, offsets)

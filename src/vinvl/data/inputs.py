"""What every dataset shares: a text and an image of the store → the tokens, tags and regions that a model sees."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vinvl.data.batch import Example, ImageRegions
from vinvl.data.tags import TagSource
from vinvl.data.text import assemble_pair
from vinvl.models.config import SpecialTokens
from vinvl.regions.regions import Regions, RegionSource


@dataclass(frozen=True)
class InputLimits:
    """What of an example the model gets to see.

    Attributes:
        max_tokens: text and tags and special tokens together.
        max_regions: regions kept, from the most confident on.
        use_tags: False withholds the object tags.
        use_regions: False withholds the region features.
    """

    max_tokens: int
    max_regions: int
    use_tags: bool = True
    use_regions: bool = True


@dataclass(frozen=True)
class RegionText:
    """Puts texts and images together.

    Attributes:
        store: the regions: a RegionStore, or what a detector has just found.
        tags: the object tags of its images, by their position in the store.
        limits: what the model gets to see.
        special: ids of the tokenizer's special tokens.
        finite: images whose numbers this process has found to be finite: looking costs as much as copying them.
    """

    store: RegionSource
    tags: TagSource
    limits: InputLimits
    special: SpecialTokens
    finite: set[int] = field(default_factory=set, compare=False)

    def example(
        self, text: np.ndarray, image: int, max_tokens: int | None = None, tagged: int | None = None
    ) -> Example:
        """`[CLS] text [SEP] tags [SEP]` with the image's regions; the caller adds labels and record.

        Args:
            text: (n,) token ids without special tokens.
            image: position in the store.
            max_tokens: where it is not the general limit.
            tagged: the place of the image among those of the records, for tags of these (`TagSource`).

        Raises:
            UserError: a feature of the image is not finite.
        """
        input_ids, token_type_ids = assemble_pair(
            text,
            self.tag_ids(image, tagged),
            max_tokens=self.limits.max_tokens if max_tokens is None else max_tokens,
            cls_token_id=self.special.cls_token_id,
            sep_token_id=self.special.sep_token_id,
        )
        return Example(input_ids, token_type_ids, self.image_regions(image))

    def tag_ids(self, image: int, tagged: int | None = None) -> np.ndarray:
        """(n,) int32 token ids of an image's tags; none where tags are withheld."""
        if not self.limits.use_tags:
            return np.zeros(0, dtype=np.int32)
        return self.tags.encode(self._tagged(image, tagged), self.limits.max_regions)

    def _tagged(self, image: int, tagged: int | None) -> int:
        if not self.tags.of_records:
            return image
        if tagged is None:
            raise ValueError("Tags of records are asked for by image.")
        return tagged

    def image_regions(self, image: int) -> ImageRegions:
        """The regions of an image, at most `max_regions`; none where regions are withheld.

        Raises:
            UserError: a feature or box is not finite.
        """
        regions: Regions = self.store.at(image)
        count = min(len(regions), self.limits.max_regions) if self.limits.use_regions else 0
        if count and image not in self.finite:
            regions.check_finite()
            self.finite.add(image)
        return ImageRegions(regions, count, image)

    def region_rows(self, image: int) -> np.ndarray:
        """(R, D) float32 region rows of `image_regions`."""
        return self.image_regions(image).rows()

    def image_lengths(self, images: np.ndarray, tagged: np.ndarray | None = None) -> np.ndarray:
        """(N,) int64: tags and regions of each image, before truncation of the text; `tagged` as `example` has it."""
        distinct, inverse = np.unique(images, return_inverse=True)
        lengths = np.zeros(len(distinct), dtype=np.int64)
        if self.limits.use_regions:
            lengths += np.minimum(self.store.num_regions[distinct], self.limits.max_regions)
        if self.limits.use_tags and not self.tags.of_records:
            lengths += self.tags.counts(distinct, self.limits.max_regions)
        lengths = lengths[inverse]
        if self.limits.use_tags and self.tags.of_records:
            assert tagged is not None, "tags of records are asked for by image"
            lengths += self.tags.counts(tagged, self.limits.max_regions)
        return lengths

    def describe(self, example: Example, image: int, words: Sequence[str], tagged: int | None = None) -> list[str]:
        """Lines that show a person what the model sees of an example; `words` are its tokens decoded."""
        tags = self.tags.text(self._tagged(image, tagged), self.limits.max_regions) or "(none)"
        return [
            f"  tokens    {' '.join(words)}",
            f"  tags      {tags if self.limits.use_tags else '(withheld: data.use_tags=false)'}",
            f"  regions   {len(example.regions)} rows of {example.regions.width} numbers",
        ]


@dataclass(frozen=True)
class PlacedImage:
    """An image, with what puts texts and it together.

    Attributes:
        region_text: of the store, or the detector's finds, that the image is in.
        image: its position there.
        tagged: as `RegionText.example` has it.
    """

    region_text: RegionText
    image: int
    tagged: int | None = None

"""Training data of image-text retrieval: each caption with its image, and a pair that does not match."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from vinvl.data.batch import Batch, Example, class_labels, collate
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.image_regions import ImageRegions
from vinvl.data.region_text import PlacedImage, RegionText
from vinvl.data.retrieval_captions import CaptionTable
from vinvl.data.retrieval_text import attention_mask_of, caption_first, parts_of
from vinvl.data.sampling import Draw
from vinvl.errors import UserError

MISMATCHED, MATCHED = 0, 1  # the classes, as published
WRONG_CAPTION_SHARE = 0.5  # of the mismatched pairs; the others have a wrong image (published Oscar)

Pair = tuple[Example, Example]


class RetrievalPairs(Dataset[Pair]):
    """One split: item i is caption i with its image, and a mismatched pair drawn anew in each epoch.

    Half of the mismatched pairs have a caption of another image and keep image and tags; the others have another image
    with its tags and keep the caption (published Oscar).
    """

    def __init__(
        self,
        records: CaptionRecords,
        captions: CaptionTable,
        images: np.ndarray,
        region_text: RegionText,
        *,
        attention_type: str,
        seed: int,
    ) -> None:
        """`images` (N,) int64: where the images lie in the store.

        Raises:
            UserError: there is one image only, so nothing can mismatch.
        """
        if len(records) < 2:
            raise UserError(f"{records.describe(0)} is the only training image: retrieval needs two at least.")
        self.records = records
        self.captions = captions
        self.images = images
        self.image_of = captions.image_of()
        self.region_text = region_text
        self.attention_type = attention_type
        self.seed = seed

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, draw: Draw) -> Pair:
        caption = draw.index
        image = int(self.image_of[caption])
        matched = self.example(caption, image)
        wrong_caption, wrong_image = self.mismatch(image, draw.generator(self.seed))
        if wrong_caption is None:
            mismatched = self.example(caption, wrong_image)
        else:
            mismatched = self.example(wrong_caption, image, matched.regions)
        return matched, replace(mismatched, label_ids=np.array([MISMATCHED]))

    def mismatch(self, image: int, generator: np.random.Generator) -> tuple[int | None, int]:
        """What does not match `image`: (a caption of another image, that image), or (None, another image)."""
        other = int(generator.integers(len(self.images) - 1))
        other += other >= image  # one number for every other image, without drawing twice
        if generator.random() >= WRONG_CAPTION_SHARE:
            return None, other
        first, last = self.captions.offsets[other : other + 2]
        return int(generator.integers(first, last)), other

    def example(self, caption: int, image: int, regions: ImageRegions | None = None) -> Example:
        """A caption with an image, labelled as matching; `regions` where the image has been read already."""
        placed = PlacedImage(self.region_text, int(self.images[image]))
        example = pair_example(self.captions.tokens[caption], placed, regions)
        return replace(example, label_ids=np.array([MATCHED]), record={"caption": caption, "image": image})

    def lengths(self) -> np.ndarray:
        """(M,) int64: tokens and regions of the matching pair, before truncation of the text."""
        return self.captions.tokens.lengths() + self.region_text.image_lengths(self.images)[self.image_of]

    def collate(self, items: Sequence[Pair]) -> Batch:
        """2B rows, all matched then all mismatched as published, with 2B labels."""
        rows = [pair[side] for side in (0, 1) for pair in items]
        pad_token_id = self.region_text.special.pad_token_id
        batch = collate_pairs(rows, pad_token_id, self.attention_type, class_labels(rows))
        return replace(batch, items=len(items))

    def show(self, item: Pair, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        """Lines that show a person a matched and a mismatched pair."""
        lines = []
        for title, example in zip(("matched", "mismatched"), item, strict=True):
            record: dict[str, Any] = example.record
            image, caption = record["image"], int(self.captions.rows[record["caption"]])
            assert self.records.captions is not None
            lines += [
                f"  {title}: image {self.records.image_ids[image]}",
                f"    caption   {self.records.captions[caption]}",
            ]
            described = self.region_text.describe(example, int(self.images[image]), words(example.input_ids))
            lines += [f"  {line}" for line in described]
        return lines


def pair_example(caption: np.ndarray, placed: PlacedImage, regions: ImageRegions | None = None) -> Example:
    """A caption, (n,) token ids, with an image, neither labelled nor recorded.

    `regions` where the image has been read already.
    """
    text = placed.region_text
    input_ids, token_type_ids = caption_first(
        caption, text.tag_ids(placed.image), max_tokens=text.limits.max_tokens, special=text.special
    )
    return Example(input_ids, token_type_ids, text.image_regions(placed.image) if regions is None else regions)


def collate_pairs(
    examples: Sequence[Example], pad_token_id: int, attention_type: str, labels: Tensor | None = None
) -> Batch:
    """A batch of captions with images whose parts see each other as `attention_type` says."""
    batch = collate(examples, pad_token_id=pad_token_id, labels=labels)
    if attention_type == "CLR":
        return batch
    return replace(batch, attention_mask=attention_mask_of(parts_of(batch), attention_type))

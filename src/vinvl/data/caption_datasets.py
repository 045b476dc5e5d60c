"""Captioned images as items: a caption to hide words of and train on, or an image to write a caption for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vinvl.data.batch import Batch, Example, collate
from vinvl.data.caption_masking import CaptionLimits, Replacements, hide_words
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.random_numbers import uniform_numbers
from vinvl.data.region_text import PlacedImage, RegionText
from vinvl.data.sampling import Draw
from vinvl.data.text import RaggedTokens


class CaptionContexts:
    """Tags and regions of images: what captions are written about.

    Tags stand at the positions from `limits.max_caption_tokens` on, as if the caption had been padded up to there.
    """

    def __init__(self, records: CaptionRecords, images: np.ndarray, region_text: RegionText, limits: CaptionLimits):
        """`images` (N,) int64: where the records' images lie in the store."""
        self.records = records
        self.images = images
        self.region_text = region_text
        self.limits = limits

    def __getitem__(self, index: int) -> Example:
        """The context of image `index`: `tags [SEP]` with the image's regions; without a caption."""
        image, records = int(self.images[index]), self.records
        record: dict[str, Any] = {
            "index": index,
            "image_id": str(records.image_ids[index]),
            "store_index": image,
            "references": records.captions_of(index),
        }
        if records.domains is not None:
            record["domain"] = records.domains[index]
        return caption_context(PlacedImage(self.region_text, image), self.limits, record)

    def lengths(self) -> np.ndarray:
        """(N,) int64: tags and regions of each image."""
        return self.region_text.image_lengths(self.images)


def caption_context(placed: PlacedImage, limits: CaptionLimits, record: dict[str, Any]) -> Example:
    """`tags [SEP]` of an image with its regions, at the positions from `limits.max_caption_tokens` on."""
    text = placed.region_text
    tags = limits.tags(text.tag_ids(placed.image), text.special.sep_token_id)
    return Example(
        input_ids=tags,
        token_type_ids=np.ones(len(tags), dtype=np.int64),
        regions=text.image_regions(placed.image),
        position_ids=limits.max_caption_tokens + np.arange(len(tags)),
        record=record,
    )


class CaptionDataset(Dataset[Example]):
    """One split to train on: item i is caption i; `collate` hides some of the words, others in each epoch."""

    def __init__(self, contexts: CaptionContexts, caption_tokens: RaggedTokens, replacements: Replacements, seed: int):
        """`caption_tokens`: of the M captions, image by image."""
        self.contexts = contexts
        self.caption_tokens = caption_tokens
        self.caption_image = contexts.records.caption_image
        self.replacements = replacements
        self.seed = seed

    def __len__(self) -> int:
        return len(self.caption_tokens)

    def __getitem__(self, draw: Draw) -> Example:
        context = self.contexts[int(self.caption_image[draw.index])]
        limits, special = self.contexts.limits, self.contexts.region_text.special
        caption = limits.caption(self.caption_tokens[draw.index], special.cls_token_id, special.sep_token_id)
        record = {**context.record, "caption_index": draw.index, "epoch": draw.epoch}
        return with_caption(context, caption, record)

    def lengths(self) -> np.ndarray:
        """(M,) int64: tokens and regions of each caption with its image, before truncation."""
        return self.caption_tokens.lengths() + self.contexts.lengths()[self.caption_image]

    def collate(self, items: Sequence[Example]) -> Batch:
        whole = collate(items, pad_token_id=self.contexts.region_text.special.pad_token_id)
        lengths = np.array([item.caption_length for item in items])
        captions = whole.input_ids[:, : lengths.max()].numpy()
        epochs, indices = (np.array([item.record[name] for item in items]) for name in ("epoch", "caption_index"))
        numbers = uniform_numbers(self.seed, epochs, indices, 4 * captions.shape[1]).reshape(*captions.shape, 4)
        shown, masked = hide_words(captions, lengths, numbers, self.contexts.limits, self.replacements)
        beyond = whole.input_ids[:, captions.shape[1] :]
        return replace(
            whole,
            input_ids=torch.cat([torch.from_numpy(shown), beyond], dim=1),
            labels=torch.from_numpy(captions[masked]),
            masked_positions=torch.cat([torch.from_numpy(masked), torch.zeros_like(beyond, dtype=torch.bool)], dim=1),
        )

    def show(self, item: Example, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        captions, batch = self.contexts.records.captions, self.collate([item])
        assert captions is not None and batch.labels is not None
        return [
            f"  image id  {item.record['image_id']}",
            f"  caption   {captions[item.record['caption_index']]}",
            *self.contexts.region_text.describe(item, item.record["store_index"], words(batch.input_ids[0].numpy())),
            f"  hidden    {' '.join(words(batch.labels.numpy()))}",
        ]


def with_caption(context: Example, caption: np.ndarray, record: dict[str, Any]) -> Example:
    """A context with a caption (c,) before its tags, at the positions 0, 1, 2 …"""
    assert context.position_ids is not None
    return replace(
        context,
        input_ids=np.concatenate([caption, context.input_ids]),
        token_type_ids=np.concatenate([np.zeros(len(caption), dtype=np.int64), context.token_type_ids]),
        position_ids=np.concatenate([np.arange(len(caption)), context.position_ids]),
        caption_length=len(caption),
        record=record,
    )


class CaptionedImageDataset(Dataset[Example]):
    """One split to write captions for: item i is the context of image i, its references in the record."""

    def __init__(self, contexts: CaptionContexts) -> None:
        self.contexts = contexts

    def __len__(self) -> int:
        return len(self.contexts.records)

    def __getitem__(self, draw: Draw) -> Example:
        return self.contexts[draw.index]

    def lengths(self) -> np.ndarray:
        return self.contexts.lengths()

    def collate(self, items: Sequence[Example]) -> Batch:
        return collate(items, pad_token_id=self.contexts.region_text.special.pad_token_id)

    def show(self, item: Example, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        references = item.record["references"]
        return [
            f"  image id  {item.record['image_id']}",
            *self.contexts.region_text.describe(item, item.record["store_index"], words(item.input_ids)),
            f"  captions  {references[0] if references else '(none)'}",
        ]

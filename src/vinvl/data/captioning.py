"""Captioning: images with captions over a RegionStore. COCO in Karpathy's split, NoCaps, the demo world, one's own."""

from collections import Counter
from typing import Any, Unpack

import numpy as np

from vinvl.data.caption_datasets import CaptionContexts, CaptionDataset, CaptionedImageDataset
from vinvl.data.caption_masking import CaptionLimits, Replacements
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.caption_splits import read_caption_split
from vinvl.data.commonest import Commonest
from vinvl.data.contracts import RegionDataArguments
from vinvl.data.datamodule import RegionDataModule, no_annotations
from vinvl.errors import UserError
from vinvl.metrics.captions.tokenizer import no_words, regex_tokenize

TRAINING_ITEMS = ("captions", "images")


class CaptioningDataModule(RegionDataModule):
    """Caption files, a RegionStore and a tokenizer → batches.

    A split is one of `{karpathy: FILE, splits: [train, restval]}`, `{coco: FILE}` (also NoCaps) and `{jsonl: FILE}`.

    Args:
        training_items: `captions` with hidden words for cross-entropy, or `images` for self-critical training.
        max_caption_tokens, mask_probability, max_masked_tokens: see `CaptionLimits`.
        on_missing_captions: `error` or `skip` images without captions and blank captions.
        shared: see `RegionDataArguments`.
    """

    def __init__(
        self,
        *,
        training_items: str,
        max_caption_tokens: int,
        mask_probability: float,
        max_masked_tokens: int,
        on_missing_captions: str,
        **shared: Unpack[RegionDataArguments],
    ) -> None:
        super().__init__(**shared)
        if training_items not in TRAINING_ITEMS:
            raise UserError(f"data.training_items is '{training_items}': choose one of {', '.join(TRAINING_ITEMS)}.")
        self.training_items = training_items
        self.caption_limits = CaptionLimits(
            max_caption_tokens, shared["max_tokens"], mask_probability, max_masked_tokens
        )
        self.on_missing_captions = on_missing_captions

    def read_split(self, split: str) -> CaptionRecords:
        return read_caption_split(self.split_files(split), split, self.on_missing_captions)

    def commonest_of(self, records: CaptionRecords) -> Commonest:
        """Under "" the commonest caption."""
        return {} if records.captions is None else {"": Counter(records.captions).most_common(1)[0][0]}

    def make_dataset(
        self, records: CaptionRecords, images: np.ndarray, stage: str
    ) -> CaptionDataset | CaptionedImageDataset:
        contexts = CaptionContexts(records, images, self.region_text, self.caption_limits)
        if stage != "train" or self.training_items == "images":
            if stage == "train" and records.captions is None:
                raise no_annotations(self.split_of[stage])
            return CaptionedImageDataset(contexts)
        if records.captions is None:
            raise no_annotations(self.split_of[stage])
        special = self.region_text.special
        return CaptionDataset(
            contexts,
            self.tokens_of(records.captions),
            Replacements(special.mask_token_id, special.unk_token_id, len(self.tokenizer)),
            self.seed,
        )

    def check_scorable(self, stage: str) -> None:
        dataset: Any = self.datasets[stage]
        records: CaptionRecords = dataset.contexts.records
        if records.captions is None:
            raise no_annotations(self.split_of[stage])
        domains: list[str | None] = [None] * len(records)
        if stage != "train" and records.domains is not None:  # each is scored by itself
            domains = list(records.domains)
        for domain in dict.fromkeys(domains):
            images = [image for image, of in enumerate(domains) if of == domain]
            if not any(any(regex_tokenize(records.captions_of(image))) for image in images):
                raise no_words(records.captions_of(images[0])[0], domain)

    def training_references(self) -> dict[str, list[str]]:
        """Image id → captions of the training split, once `setup("fit")` has read it."""
        dataset: Any = self.datasets["train"]
        records: CaptionRecords = dataset.contexts.records
        return {str(image_id): records.captions_of(index) for index, image_id in enumerate(records.image_ids)}

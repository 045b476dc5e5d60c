"""Image-text retrieval: captioned images over a RegionStore. COCO and Flickr30k in Karpathy's splits, one's own."""

from typing import Any, Unpack

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from vinvl.data.caption_files import OnMissingCaptions
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.caption_splits import read_caption_split
from vinvl.data.contracts import RegionDataArguments
from vinvl.data.datamodule import RegionDataModule, no_annotations
from vinvl.data.loaders import rank_and_world_size
from vinvl.data.retrieval_candidates import (
    Block,
    BlockImages,
    BlockSampler,
    Fold,
    RetrievalCandidates,
    blocks_of,
    folds_of,
)
from vinvl.data.retrieval_captions import CaptionTable
from vinvl.data.retrieval_pairs import RetrievalPairs
from vinvl.data.retrieval_text import LEAST_TOKENS, check_attention_type
from vinvl.errors import UserError

CANDIDATES = {"1k": 1000, "5k": 5000}  # images in a fold, as results on COCO are reported


class RetrievalDataModule(RegionDataModule):
    """Caption files, a RegionStore and a tokenizer → training pairs, and blocks of images to score with all captions.

    A split is one of `{karpathy: FILE, splits: [train, restval]}`, `{coco: FILE}` and `{jsonl: FILE}`.

    Scoring needs memory for the captions' tokens, one block of images and its scores, whatever the number of images;
    the scores of all pairs lie on the disk, 4 bytes each (0.5 GB for 5,000 images with 25,000 captions).

    Args:
        captions_per_image: only the first so many captions of an image are used; None for all.
        attention_type: published `att_mask_type`, see `retrieval_text.attention_mask_of`.
        on_missing_captions: `error` or `skip` images without captions and blank captions.
        val_images: images of the validation split that are scored, drawn by `seed`; None for all.
        val_fold_images: they are divided into folds of so many, and every image is scored with its fold's captions.
        test_images: the first so many images of the test split; None for all.
        test_candidates: 1k or 5k for folds of 1,000 or 5,000 images (the result is the mean over the folds), a number
            for folds of another size, all for one fold of all.
        block_images: images scored together, and saved together; what a kill loses is one block of each rank.
        scores_dir: where scores are kept; None for the run folder of the checkpoint.
        shared: see `RegionDataArguments`.

    Attributes:
        finished: blocks whose scores lie on the disk already; the task fills it before the loaders are made.
    """

    def __init__(
        self,
        *,
        captions_per_image: int | None,
        attention_type: str,
        on_missing_captions: OnMissingCaptions,
        val_images: int | None,
        val_fold_images: int,
        test_images: int | None,
        test_candidates: str | int,
        block_images: int,
        scores_dir: str | None,
        **shared: Unpack[RegionDataArguments],
    ) -> None:
        super().__init__(**shared)
        check_attention_type(attention_type)
        if self.limits.max_tokens < LEAST_TOKENS:
            raise UserError(f"data.max_tokens is {self.limits.max_tokens}: give {LEAST_TOKENS} at least.")
        sizes = {"block_images": block_images, "val_fold_images": val_fold_images}
        optional = {"captions_per_image": captions_per_image, "val_images": val_images, "test_images": test_images}
        for name, size in (sizes | {key: value for key, value in optional.items() if value is not None}).items():
            if size is None or size < 1:
                raise UserError(f"data.{name} is {size}: give a number of 1 or more.")
        self.captions_per_image = captions_per_image
        self.attention_type = attention_type
        self.on_missing_captions: OnMissingCaptions = on_missing_captions
        self.val_images = val_images
        self.val_fold_images = val_fold_images
        self.test_images = test_images
        self.test_candidates = test_candidates
        self.block_images = block_images
        self.scores_dir = scores_dir
        self.finished: frozenset[int] = frozenset()

    def read_split(self, split: str) -> CaptionRecords:
        return read_caption_split(self.split_files(split), split, self.on_missing_captions)

    def make_dataset(
        self, records: CaptionRecords, images: np.ndarray, stage: str
    ) -> RetrievalPairs | RetrievalCandidates:
        if records.captions is None:
            raise no_annotations(self.split_of[stage])
        table = CaptionTable.of(records, self.tokens_of, self.captions_per_image)
        if stage != "train":
            return RetrievalCandidates(records, table, images, self.region_text)
        return RetrievalPairs(
            records, table, images, self.region_text, attention_type=self.attention_type, seed=self.seed
        )

    def check_scorable(self, stage: str) -> None:
        if stage == "test":  # what `folds` would find after the training
            self._fold_size(len(self.candidates(stage).images[: self.test_images]), self.split_of[stage])

    def candidates(self, stage: str) -> RetrievalCandidates:
        """The images and captions of val, test or predict, once `setup` has read them."""
        dataset = self.datasets[stage]
        assert isinstance(dataset, RetrievalCandidates)
        return dataset

    def folds(self, stage: str) -> list[Fold]:
        """The folds that a stage scores.

        Raises:
            UserError: the split has fewer images than `test_candidates` asks for, or that is no size.
        """
        candidates = self.candidates(stage)
        if stage == "val":
            order = np.random.default_rng(self.seed).permutation(len(candidates))[: self.val_images]
            return folds_of(order, self.val_fold_images, candidates.captions)
        images = np.arange(len(candidates))[: self.test_images]
        size = self._fold_size(len(images), self.split_of[stage])
        if len(images) % size:
            rank_zero_warn(
                f"data.test_candidates={self.test_candidates}: the last {len(images) % size} of {len(images)} images "
                f"of split '{self.split_of[stage]}' make no whole fold and are left out."
            )
        return folds_of(images, size, candidates.captions)

    def _fold_size(self, num_images: int, split: str) -> int:
        wanted = str(self.test_candidates)
        if wanted == "all":
            return num_images
        size = CANDIDATES.get(wanted, int(wanted) if wanted.isdecimal() else 0)
        if size < 1:
            raise UserError(f"data.test_candidates is '{wanted}': give 1k, 5k, all or a number of images.")
        if size > num_images:
            raise UserError(
                f"data.test_candidates={wanted} asks for {size:,} images, and split '{split}' gives {num_images:,}: "
                "pass data.test_candidates=all."
            )
        return size

    def blocks(self, stage: str, folds: list[Fold]) -> list[Block]:
        """The blocks of the folds; in validation a fold is one block, for its ranks are taken at once."""
        return blocks_of(folds, self.val_fold_images if stage == "val" else self.block_images)

    def _evaluation_loader(self, stage: str) -> DataLoader[Any]:
        """Every block once over all ranks, one a batch."""
        folds = self.folds(stage)
        blocks = self.blocks(stage, folds)
        finished = frozenset() if stage == "val" else self.finished
        rank, world_size = rank_and_world_size(self.trainer)
        sampler = BlockSampler(len(blocks), finished, rank=rank, world_size=world_size)
        dataset = BlockImages(self.candidates(stage), folds, blocks, finished)
        return self.loaders.loader(dataset, sampler, persistent=False)

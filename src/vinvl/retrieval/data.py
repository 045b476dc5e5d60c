"""Image-text retrieval: captioned images over a RegionStore. COCO and Flickr30k in Karpathy's splits, your own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vinvl.captioning.files import CaptionRecords, OnMissingCaptions, read_caption_split
from vinvl.data.batch import Batch, Example, ImageRegions, class_labels, collate
from vinvl.data.inputs import PlacedImage, RegionText
from vinvl.data.module import RegionDataArguments, RegionDataModule, no_annotations
from vinvl.data.sampling import Draw, loader, rank_and_world_size
from vinvl.retrieval.candidates import (
    ATTENTION_TYPES,
    LEAST_TOKENS,
    Block,
    BlockImages,
    BlockSampler,
    CaptionTable,
    Fold,
    RetrievalCandidates,
    attention_mask_of,
    blocks_of,
    caption_first,
    folds_of,
    parts_of,
)
from vinvl.run.errors import UserError

MISMATCHED, MATCHED = 0, 1  # the classes, as published
WRONG_CAPTION_SHARE = 0.5  # of the mismatched pairs; the others have a wrong image (published Oscar)

Pair = tuple[Example, Example]


class RetrievalPairs(Dataset[Pair]):
    """One split: item i is caption i with its image, and a mismatched pair drawn again in each epoch.

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
        """`images` (N,) int64: where the images are in the store.

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
        """A caption with an image, labelled as matching; `regions` if the image has been read already."""
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

    `regions` if the image has been read already.
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


CANDIDATES = {"1k": 1000, "5k": 5000}  # images in a fold, as results on COCO are reported


class RetrievalDataModule(RegionDataModule):
    """Caption files, a RegionStore and a tokenizer → training pairs, and blocks of images to score with all captions.

    A split is one of `{karpathy: FILE, splits: [train, restval]}`, `{coco: FILE}` and `{jsonl: FILE}`.

    Scoring needs memory for the captions' tokens, one block of images and its scores, whatever the number of images;
    the scores of all pairs are on the disk, 4 bytes each (0.5 GB for 5,000 images with 25,000 captions).

    Args:
        captions_per_image: only this many captions of an image are used, the first; None for all.
        attention_type: published `att_mask_type`, see `attention_mask_of`.
        on_missing_captions: `error` or `skip` images without captions and blank captions.
        val_images: images of the validation split that are scored, drawn by `seed`; None for all.
        val_fold_images: they are divided into folds of this many, and every image is scored with its fold's captions.
        test_images: only this many images of the test split, the first; None for all.
        test_candidates: 1k or 5k for folds of 1,000 or 5,000 images (the result is the mean over the folds), a number
            for folds of another size, all for one fold of all.
        block_images: images scored together, and saved together; what a kill loses is one block of each rank.
        scores_dir: where scores are kept; None for the run folder of the checkpoint.
        shared: see `RegionDataArguments`.

    Attributes:
        finished: blocks whose scores are on the disk already; the task fills it before the loaders are made.
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
        if attention_type not in ATTENTION_TYPES:
            raise UserError(f"data.attention_type is '{attention_type}': pass one of {', '.join(ATTENTION_TYPES)}.")
        if self.limits.max_tokens < LEAST_TOKENS:
            raise UserError(f"data.max_tokens is {self.limits.max_tokens}: give {LEAST_TOKENS} at least.")
        least_one = {"block_images": block_images, "val_fold_images": val_fold_images}
        optional = {"captions_per_image": captions_per_image, "val_images": val_images, "test_images": test_images}
        for name, size in {**least_one, **{key: value for key, value in optional.items() if value is not None}}.items():
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
            UserError: the split has fewer images than `test_candidates` asks for, or that is not a size.
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
        """The blocks of the folds; in validation a fold is one block, because its ranks are taken at once."""
        return blocks_of(folds, self.val_fold_images if stage == "val" else self.block_images)

    def _evaluation_loader(self, stage: str) -> DataLoader[Any]:
        """Every block once over all ranks, one a batch."""
        folds = self.folds(stage)
        blocks = self.blocks(stage, folds)
        finished = frozenset() if stage == "val" else self.finished
        rank, world_size = rank_and_world_size(self.trainer)
        sampler = BlockSampler(len(blocks), finished, rank=rank, world_size=world_size)
        dataset = BlockImages(self.candidates(stage), folds, blocks, finished)
        return loader(self, dataset, sampler, self.completed, persistent=False)

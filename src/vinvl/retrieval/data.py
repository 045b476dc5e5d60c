"""Image-text retrieval: captioned images over a RegionStore. COCO and Flickr30k in Karpathy's splits, your own.

A split is captions and images. Training draws a mismatched pair to each caption with its image (`RetrievalPairs`).
Evaluation divides the images into folds and these into blocks; every image of a block, which a loader reads at once
(`BlockImages`), is scored with every caption of its fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from vinvl.captioning.files import CaptionRecords, OnMissingCaptions, read_caption_split
from vinvl.data.batch import Batch, Example, ImageRegions, class_labels, collate
from vinvl.data.inputs import PlacedImage, RegionText
from vinvl.data.module import RegionDataModule
from vinvl.data.sampling import Draw, loader, rank_and_world_size
from vinvl.data.table import replaced
from vinvl.data.text import RaggedTokens
from vinvl.models.config import SpecialTokens
from vinvl.retrieval.published import read_hard_captions, read_published_retrieval_split
from vinvl.run.errors import UserError

# A caption with an image, as published: the caption comes before the tags, and masks may hide parts from each other.


PADDING, CAPTION, TAGS, REGIONS = range(4)  # the parts of a joint sequence
CROSS_PAIRS = {"CL": (CAPTION, TAGS), "CR": (CAPTION, REGIONS), "LR": (TAGS, REGIONS)}
ATTENTION_TYPES = ("CLR", *CROSS_PAIRS)
LEAST_TOKENS = 3  # [CLS], one word, [SEP]


def segment_lengths(
    caption: np.ndarray | int, tags: np.ndarray | int, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of `[CLS] caption [SEP]` and `tags [SEP]`, from those without special tokens: tags fill what is left.

    0 where there are no tags or no room. A room of only one token is given, the [SEP], as published. Where the caption
    leaves none, the published slice is wrong and the sequence too long; here it has no second segment.
    """
    first = np.minimum(caption, max_tokens - 2) + 2
    room = max_tokens - first
    second = np.where((np.asarray(tags) > 0) & (room > 0), np.minimum(tags, room - 1) + 1, 0)
    return np.asarray(first), second


def caption_first(
    caption: np.ndarray, tags: np.ndarray, *, max_tokens: int, special: SpecialTokens
) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] caption [SEP] tags [SEP]` of at most `max_tokens` (published Oscar, retrieval), without tags if m is 0.

    Of caption (n,) and tags (m,) without special tokens: input_ids (L,) and token_type_ids (L,), 0 for the caption and
    1 for the tags, int64.
    """
    first, second = (int(length) for length in segment_lengths(len(caption), len(tags), max_tokens))
    sep = [special.sep_token_id]
    tokens = [special.cls_token_id], caption[: first - 2], sep, *((tags[: second - 1], sep) if second else ())
    return np.concatenate(tokens).astype(np.int64), np.repeat([0, 1], [first, second])


def parts_of(batch: Batch) -> Tensor:
    """(B, L + R) int64: which part each position of a batch belongs to."""
    length = batch.input_ids.shape[1]
    text = CAPTION + batch.token_type_ids  # (B, L)
    regions = torch.full_like(batch.attention_mask[:, length:], REGIONS, dtype=text.dtype)
    return torch.cat([text, regions], dim=1) * batch.attention_mask


def attention_mask_of(parts: Tensor, attention_type: str) -> Tensor:
    """The mask of published `att_mask_type`: who sees whom among caption (C), tags (L) and regions (R).

    Args:
        parts: (..., S) int64, PADDING, CAPTION, TAGS or REGIONS for each position.
        attention_type: CLR lets all see all. CL, CR and LR let each part see itself and the two named see each other.

    Returns:
        (..., S) bool for CLR, otherwise (..., S, S) bool; rows and columns of padding are False.
    """
    if attention_type == "CLR":
        return parts != PADDING
    one, other = CROSS_PAIRS[attention_type]
    table = torch.eye(4, dtype=torch.bool, device=parts.device)
    table[PADDING, PADDING] = False
    table[one, other] = table[other, one] = True
    return table[parts.unsqueeze(-1), parts.unsqueeze(-2)]


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
    return replace(batch, attention_mask=attention_mask_of(parts_of(batch), attention_type))


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
        tokens: RaggedTokens,
        images: np.ndarray,
        region_text: RegionText,
        *,
        attention_type: str,
        seed: int,
    ) -> None:
        """`tokens`: of the captions, without special tokens. `images` (N,) int64: where the images are in the store."""
        self.records = records
        self.tokens = tokens
        self.images = images
        self.offsets = records.offsets  # (N + 1,): the captions of image i are `offsets[i]` to `offsets[i + 1] - 1`
        self.image_of = records.caption_image  # (M,)
        self.region_text = region_text
        self.attention_type = attention_type
        self.seed = seed

    def __len__(self) -> int:
        return len(self.tokens)

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
        first, last = self.offsets[other : other + 2]
        return int(generator.integers(first, last)), other

    def example(self, caption: int, image: int, regions: ImageRegions | None = None) -> Example:
        """A caption with an image, labelled as matching; `regions` if the image has been read already."""
        placed = PlacedImage(self.region_text, int(self.images[image]))
        example = pair_example(self.tokens[caption], placed, regions)
        return replace(example, label_ids=np.array([MATCHED]), record={"caption": caption, "image": image})

    def lengths(self) -> np.ndarray:
        """(M,) int64: tokens and regions of the matching pair, before truncation of the text."""
        return self.tokens.lengths() + self.region_text.image_lengths(self.images)[self.image_of]

    def collate(self, items: Sequence[Pair]) -> Batch:
        """2B rows, all matched then all mismatched as published, with 2B labels."""
        rows = [pair[side] for side in (0, 1) for pair in items]
        pad_token_id = self.region_text.special.pad_token_id
        batch = collate_pairs(rows, pad_token_id, self.attention_type, class_labels(rows))
        return replace(batch, items=len(items))

    def show(self, item: Pair, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        lines = []
        assert self.records.captions is not None
        for title, example in zip(("matched", "mismatched"), item, strict=True):
            image, caption = example.record["image"], self.records.captions[example.record["caption"]]
            lines += [f"  {title}: image {self.records.image_ids[image]}", f"    caption   {caption}"]
            described = self.region_text.describe(example, int(self.images[image]), words(example.input_ids))
            lines += [f"  {line}" for line in described]
        return lines


class RetrievalCandidates(RetrievalPairs):
    """The images and captions of a split that is evaluated, counted by images."""

    def __len__(self) -> int:
        return len(self.images)


class Fold(NamedTuple):
    """I images and their C captions: every image is scored with every caption of the fold and with no other."""

    images: np.ndarray  # (I,) int64 into the records
    captions: np.ndarray  # (C,) int64 into the captions of the records, image by image
    owner: np.ndarray  # (C,) int64: each caption's image as a position in `images`, ascending; of hard ones -1: none

    @classmethod
    def of(cls, images: np.ndarray, offsets: np.ndarray) -> "Fold":
        """The named images, with all captions that `offsets` (N + 1,) of all images give them."""
        counts = np.diff(offsets)[images]
        owner = np.repeat(np.arange(len(images)), counts)
        first = np.cumsum(counts) - counts  # of each image in the fold
        return cls(images, (offsets[images] - first)[owner] + np.arange(len(owner)), owner)


def folds_of(images: np.ndarray, size: int, offsets: np.ndarray) -> list[Fold]:
    """Folds of `size` images each, or one of all if there are fewer; a rest is left out: folds must be alike."""
    size = min(size, len(images))
    return [Fold.of(images[start : start + size], offsets) for start in range(0, len(images) - size + 1, size)]


def hard_fold(image: int, captions: np.ndarray, offsets: np.ndarray) -> Fold:
    """One image with the captions (C,) chosen for it, in their order, of which maybe none is its own."""
    own = (offsets[image] <= captions) & (captions < offsets[image + 1])
    return Fold(np.array([image]), captions, np.where(own, 0, -1))


class Block(NamedTuple):
    """Images `start` to `stop` - 1 of a fold, which are scored together with all its captions."""

    fold: int
    start: int
    stop: int


def blocks_of(folds: Sequence[Fold], size: int) -> list[Block]:
    """The blocks of `size` images, the last of each fold smaller where it must be."""
    return [
        Block(number, start, min(start + size, len(fold.images)))
        for number, fold in enumerate(folds)
        for start in range(0, len(fold.images), size)
    ]


class ScoringBlock(NamedTuple):
    """The images of a block, ready to be scored."""

    number: int  # of the block in its list; -1 for none, if a rank has nothing to do
    tag_ids: list[np.ndarray]  # (m,) int64 of each image; they stay on the host
    region_features: list[Tensor]  # (R, D) float32 of each image

    def of_image(self, index: int) -> "ScoringBlock":
        """One of the images alone."""
        return ScoringBlock(self.number, [self.tag_ids[index]], [self.region_features[index]])


class BlockImages(Dataset[ScoringBlock]):
    """The blocks that a rank has a share of, with their images read from the store; those `finished` come empty."""

    def __init__(
        self, region_text: RegionText, images: Sequence[np.ndarray], share: Sequence[int], finished: frozenset[int]
    ) -> None:
        """`images`: for each block of all ranks, (n,) int64 where its images are in the store."""
        self.region_text = region_text
        self.images = images
        self.share = share
        self.finished = finished

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> ScoringBlock:
        number = self.share[index]
        images = [] if number < 0 or number in self.finished else self.images[number].tolist()
        return ScoringBlock(
            number,
            [self.region_text.tag_ids(image).astype(np.int64) for image in images],
            [torch.from_numpy(self.region_text.region_rows(image)) for image in images],
        )

    def collate(self, items: Sequence[ScoringBlock]) -> ScoringBlock:
        """A batch is one block."""
        (block,) = items
        return block


def share_of(rank: int, world_size: int, count: int, finished: frozenset[int]) -> list[int]:
    """A rank's blocks of `count`: those that are to be scored, then those `finished`; [-1] for none.

    They are dealt apart, so that after a kill each rank has its share of what is left. One without any gets a number
    too, because every rank must take part at the end.
    """
    pending = [number for number in range(count) if number not in finished]
    return [*pending[rank::world_size], *sorted(finished)[rank::world_size]] or [-1]


def first_captions(records: CaptionRecords, count: int) -> CaptionRecords:
    """The records with `count` captions of each image at most, the first."""
    table = records.table
    for name in ("captions", "caption_ids"):
        table = replaced(table, name, pc.list_slice(table[name], 0, count))
    return replace(records, table=table)


BY_TAGS, BY_DUAL_ENCODER = "tags", "dual_encoder"
CANDIDATES = {"1k": 1000, "5k": 5000}  # images in a fold, as results on COCO are reported


@dataclass(kw_only=True, eq=False, repr=False)
class RetrievalDataModule(RegionDataModule):
    """Caption files, a RegionStore and a tokenizer → training pairs, and blocks of images to score with all captions.

    A split is one of `{karpathy: FILE, splits: [train, restval]}`, `{coco: FILE}`, `{jsonl: FILE}` and, as published,
    `{captions: FILE.pt, keys: FILE.tsv}`, where `keys` may be left out.

    Scoring needs memory for the captions' tokens, one block of images and its scores, whatever the number of images;
    the scores of all pairs are on the disk, 4 bytes each (0.5 GB for 5,000 images with 25,000 captions).

    Args:
        captions_per_image: only this many captions of an image are used, the first; None for all.
        attention_type: published `att_mask_type`, see `attention_mask_of`.
        on_missing_captions: `error` or `skip` images without captions and blank captions.
        val_images: images of the validation split that are scored, drawn by `seed`; None for all.
        val_fold_images: they are divided into folds of this many, and every image is scored with its fold's captions.
        val_hard_captions: published `*_caption_indexs_top20.pt`: each image of the validation split, in place of these
            folds, is scored with the captions that it names, and there is no text to image; None for folds.
        test_images: only this many images of the test split, the first; None for all.
        test_candidates: 1k or 5k for folds of 1,000 or 5,000 images (the result is the mean over the folds), a number
            for folds of another size, all for one fold of all.
        block_images: images scored together, and saved together; what a kill loses is one block of each rank.
        scores_dir: where scores are kept; None for the run folder of the checkpoint.
        rerank_top: two-stage retrieval: the model scores only the pairs of each image with this many captions, and of
            each caption with this many images, that have the highest cheap scores (`TwoStage`); None for all pairs.
        rerank_by: what gives cheap scores: tags (`overlap`), or dual_encoder, one distilled from the model in
            `rerank_steps` updates on the training split and kept beside the scores, or the file of such a one.
        the others: see `RegionDataModule`.

    Attributes:
        finished: blocks whose scores are on the disk already; the task fills it before the loaders are made.
    """

    captions_per_image: int | None = 5
    attention_type: str = "CLR"
    on_missing_captions: OnMissingCaptions = "error"
    val_images: int | None = 1000
    val_fold_images: int = 4
    val_hard_captions: str | None = None
    test_images: int | None = None
    test_candidates: str | int = "all"
    block_images: int = 8
    scores_dir: str | None = None
    rerank_top: int | None = None
    rerank_by: str = BY_TAGS
    rerank_steps: int = 400
    max_tokens: int = 70
    max_regions: int = 70

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_type not in ATTENTION_TYPES:
            raise UserError(
                f"data.attention_type is '{self.attention_type}': pass one of {', '.join(ATTENTION_TYPES)}."
            )
        if self.rerank_by not in (BY_TAGS, BY_DUAL_ENCODER) and not Path(str(self.rerank_by)).is_file():
            ways = f"{BY_TAGS}, {BY_DUAL_ENCODER} or a file"
            raise UserError(f"data.rerank_by is '{self.rerank_by}', and there is no such file: pass {ways}.")
        if self.rerank_top is not None and self.rerank_by == BY_TAGS and not self.use_tags:
            raise UserError(f"data.rerank_by={BY_TAGS} needs data.use_tags=true: pass {BY_DUAL_ENCODER} instead.")
        if self.rerank_top is not None and self.val_hard_captions is not None:
            raise UserError(
                "data.rerank_top chooses the pairs to score, and data.val_hard_captions names them: leave one out."
            )
        least = {"max_tokens": LEAST_TOKENS, "block_images": 1, "val_fold_images": 1, "rerank_steps": 1}
        optional = ("captions_per_image", "val_images", "test_images", "rerank_top")
        least |= {name: 1 for name in optional if getattr(self, name) is not None}
        for name, smallest in least.items():
            size = getattr(self, name)
            if type(size) is not int or size < smallest:
                raise UserError(f"data.{name} is {size}: give a number of {smallest} or more.")
        self.finished: frozenset[int] = frozenset()

    def read_split(self, split: str) -> CaptionRecords:
        """The images with the captions in use."""
        files = self.split_files(split)
        records = read_published_retrieval_split(files, split, self.on_missing_captions)
        if records is None:
            records = read_caption_split(files, split, self.on_missing_captions)
        if records.captions is None:
            raise UserError(f"{records.describe(0)} has no captions, like all of its split: retrieval needs them.")
        return records if self.captions_per_image is None else first_captions(records, self.captions_per_image)

    def make_dataset(self, records: CaptionRecords, images: np.ndarray, stage: str) -> RetrievalPairs:
        if stage == "train" and len(records) < 2:
            raise UserError(f"{records.describe(0)} is the only training image: retrieval needs two at least.")
        assert records.captions is not None
        return (RetrievalPairs if stage == "train" else RetrievalCandidates)(
            records,
            self.tokens_of(records.captions),
            images,
            self.region_text,
            attention_type=self.attention_type,
            seed=self.seed,
        )

    def check_scorable(self, stage: str) -> None:
        if stage == "test":
            self.folds(stage)  # which would refuse after the training

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
            if self.val_hard_captions is not None:
                hard = read_hard_captions(self.val_hard_captions, candidates.records)
                return [hard_fold(image, captions, candidates.offsets) for image, captions in enumerate(hard)]
            order = np.random.default_rng(self.seed).permutation(len(candidates))[: self.val_images]
            return folds_of(order, self.val_fold_images, candidates.offsets)
        return self.test_folds(len(candidates), candidates.offsets, self.split_of[stage])

    def test_folds(self, num_images: int, offsets: np.ndarray, split: str) -> list[Fold]:
        """The folds of a split of so many images, whose captions are at `offsets` (N + 1,); raises as `folds` does."""
        images = np.arange(num_images)[: self.test_images]
        wanted, given = str(self.test_candidates), len(images)
        size = given if wanted == "all" else CANDIDATES.get(wanted, int(wanted) if wanted.isdecimal() else 0)
        if size < 1:
            raise UserError(f"data.test_candidates is '{wanted}': give 1k, 5k, all or a number of images.")
        if size > given:
            raise UserError(
                f"data.test_candidates={wanted} asks for {size:,} images, and split '{split}' gives {given:,}: pass "
                "data.test_candidates=all."
            )
        if self.rerank_top is not None and self.rerank_top > size:
            raise UserError(
                f"data.rerank_top={self.rerank_top} is more than the {size:,} images that a caption is compared with: "
                "lower it, or pass data.rerank_top=null to score all pairs."
            )
        if given % size:
            left = f"the last {given % size} of {given} images of split '{split}' make no whole fold and are left out"
            rank_zero_warn(f"data.test_candidates={wanted}: {left}; pass data.test_candidates=all to score all.")
        return folds_of(images, size, offsets)

    def blocks(self, stage: str, folds: list[Fold]) -> list[Block]:
        """The blocks of the folds; in validation a fold is one block, because its ranks are taken at once."""
        return blocks_of(folds, self.val_fold_images if stage == "val" else self.block_images)

    def _evaluation_loader(self, stage: str) -> DataLoader[Any]:
        """Every block once over all ranks, one a batch."""
        folds, stored = self.folds(stage), self.candidates(stage).images
        images = [stored[folds[fold].images[start:stop]] for fold, start, stop in self.blocks(stage, folds)]
        finished = frozenset() if stage == "val" else self.finished
        share = share_of(*rank_and_world_size(self.trainer), len(images), finished)
        dataset = BlockImages(self.candidates(stage).region_text, images, share, finished)
        return loader(self, dataset, BatchSampler(range(len(dataset)), 1, False), self.finish(stage), persistent=False)

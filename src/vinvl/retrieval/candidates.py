"""Evaluation data of image-text retrieval: folds of images and captions, scored in blocks of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vinvl.captioning.files import CaptionRecords
from vinvl.data.batch import Batch, Example, collate
from vinvl.data.inputs import RegionText
from vinvl.data.sampling import Draw
from vinvl.data.text import RaggedTokens, Texts
from vinvl.models.config import SpecialTokens
from vinvl.run.errors import UserError


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
        tokens = tokens_of(captions.take(rows))
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
    input_ids = np.concatenate([[special.cls_token_id], caption[: first - 2], sep]).astype(np.int64)
    if second:
        input_ids = np.concatenate([input_ids, tags[: second - 1], sep])
    token_type_ids = np.zeros(len(input_ids), dtype=np.int64)
    token_type_ids[first:] = 1
    return input_ids, token_type_ids


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


@dataclass(frozen=True, eq=False)
class Fold:
    """I images and their C captions: every image is scored with every caption of the fold and with no other.

    Attributes:
        images: (I,) int64 into the records.
        captions: (C,) int64 into the caption table.
        owner: (C,) int64: the image of each caption as a position in `images`, ascending.
    """

    images: np.ndarray
    captions: np.ndarray
    owner: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, table: CaptionTable) -> "Fold":
        """The named images with all their captions."""
        counts = np.diff(table.offsets)[images]
        return cls(images, table.captions_of(images), np.repeat(np.arange(len(images)), counts))


@dataclass(frozen=True)
class Block:
    """Images `start` to `stop` - 1 of a fold, which are scored together with all its captions."""

    fold: int
    start: int
    stop: int


def folds_of(images: np.ndarray, size: int, table: CaptionTable) -> list[Fold]:
    """Folds of `size` images each, or one of all if there are fewer; a rest is left out: folds must be alike."""
    size = min(size, len(images))
    return [Fold.of(images[start : start + size], table) for start in range(0, len(images) - size + 1, size)]


def blocks_of(folds: Sequence[Fold], size: int) -> list[Block]:
    """The blocks of `size` images, the last of each fold smaller where it must be."""
    return [
        Block(number, start, min(start + size, len(fold.images)))
        for number, fold in enumerate(folds)
        for start in range(0, len(fold.images), size)
    ]


@dataclass(frozen=True)
class ScoringBlock:
    """The images of a block, ready to be scored. All except the tags moves to a device.

    Attributes:
        number: of the block in its list; -1 for none, if a rank has nothing to do.
        tag_ids: (m,) int64 token ids of each image's tags.
        region_features: (R, D) float32 of each image.
    """

    number: int
    tag_ids: tuple[np.ndarray, ...] = ()
    region_features: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ScoringBlock":
        """The block with the regions on `device`."""
        moved = tuple(rows.to(device, non_blocking=non_blocking) for rows in self.region_features)
        return replace(self, region_features=moved)

    def pin_memory(self) -> "ScoringBlock":
        """The block in page-locked memory (called by the DataLoader)."""
        return replace(self, region_features=tuple(rows.pin_memory() for rows in self.region_features))


class RetrievalCandidates(Dataset[Example]):
    """The images and captions of one split. Item i is image i with its first caption."""

    def __init__(
        self, records: CaptionRecords, captions: CaptionTable, images: np.ndarray, region_text: RegionText
    ) -> None:
        """`images` (N,) int64: where the images are in the store."""
        self.records = records
        self.captions = captions
        self.images = images
        self.region_text = region_text

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Example:
        first = int(self.captions.offsets[draw.index])
        record = {"image": draw.index, "caption": first}
        example = self.region_text.example(self.captions.tokens[first], int(self.images[draw.index]))
        return replace(example, record=record)

    def lengths(self) -> np.ndarray:
        """(N,) int64: tags and regions of each image, before truncation of the text."""
        return self.region_text.image_lengths(self.images)

    def collate(self, items: Sequence[Example]) -> Batch:
        return collate(items, pad_token_id=self.region_text.special.pad_token_id)

    def show(self, item: Example, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        """Lines that show a person one image."""
        image = item.record["image"]
        lines = [f"  image {self.records.image_ids[image]}", *self.records.captions_of(image)]
        return [*lines, *self.region_text.describe(item, int(self.images[image]), words(item.input_ids))]

    def caption_text(self, caption: int) -> str:
        """The text of a caption of the table."""
        assert self.records.captions is not None
        return self.records.captions[int(self.captions.rows[caption])]


class BlockImages(Dataset[ScoringBlock]):
    """Item i is block i with its images read from the store; blocks that are `finished` come empty."""

    def __init__(
        self, candidates: RetrievalCandidates, folds: Sequence[Fold], blocks: Sequence[Block], finished: frozenset[int]
    ) -> None:
        self.candidates = candidates
        self.folds = folds
        self.blocks = blocks
        self.finished = finished

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> ScoringBlock:
        if number < 0 or number in self.finished:
            return ScoringBlock(number)
        block = self.blocks[number]
        images = self.candidates.images[self.folds[block.fold].images[block.start : block.stop]].tolist()
        text = self.candidates.region_text
        return ScoringBlock(
            number,
            tuple(text.tag_ids(image).astype(np.int64) for image in images),
            tuple(torch.from_numpy(text.region_rows(image)) for image in images),
        )

    def collate(self, items: Sequence[ScoringBlock]) -> ScoringBlock:
        """A batch is one block."""
        (block,) = items
        return block


class BlockSampler(Sampler[list[int]]):
    """This rank's blocks, one a batch: those that are to be scored, then the finished ones.

    They are dealt apart, so that after a kill each rank has its share of what is left. A rank without any gets the
    number -1, because every rank must take part at the end.
    """

    def __init__(self, count: int, finished: frozenset[int], *, rank: int = 0, world_size: int = 1) -> None:
        """`count` blocks in all, of which those numbered in `finished` need not be scored."""
        pending = [number for number in range(count) if number not in finished]
        self.numbers = [*pending[rank::world_size], *sorted(finished)[rank::world_size]] or [-1]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in self.numbers)

"""Evaluation data of image-text retrieval: folds of images and captions, scored in blocks of images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vinvl.data.batch import Batch, Example, collate
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.region_text import RegionText
from vinvl.data.retrieval_captions import CaptionTable
from vinvl.data.sampling import Draw


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
    """Folds of `size` images each, or one of all where there are fewer; a rest is left out, for folds must be alike."""
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
    """The images of a block, ready to be scored. Moves to a device as a whole, but for the tags.

    Attributes:
        number: of the block in its list; -1 for none, where a rank has nothing to do.
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
        """`images` (N,) int64: where the images lie in the store."""
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
    number -1, for every rank must take part at the end.
    """

    def __init__(self, count: int, finished: frozenset[int], *, rank: int = 0, world_size: int = 1) -> None:
        """`count` blocks in all, of which those numbered in `finished` need not be scored."""
        pending = [number for number in range(count) if number not in finished]
        self.numbers = [*pending[rank::world_size], *sorted(finished)[rank::world_size]] or [-1]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in self.numbers)

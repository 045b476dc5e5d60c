"""NLVR2: statements over two images, true or false."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from vinvl.data.batch import Batch, Example, class_labels, collate
from vinvl.data.inputs import PlacedImage, RegionText
from vinvl.data.module import RegionDataModule, plain
from vinvl.data.sampling import Draw
from vinvl.data.table import RecordTable
from vinvl.data.text import RaggedTokens, assemble_pair, truncated_lengths
from vinvl.data.words import Commonest
from vinvl.nlvr2.files import read_nlvr2
from vinvl.nlvr2.metric import sentence_of
from vinvl.run.errors import UserError

Pair = tuple[Example, Example]
Sequences = tuple[Example, ...]  # of a statement: with its left and with its right image, or a single one with both


class NLVR2Dataset(Dataset[Sequences]):
    """One split: item i is statement i with its left and with its right image, or in one sequence with both."""

    def __init__(
        self,
        records: RecordTable,
        statement_tokens: RaggedTokens,
        images: np.ndarray,
        region_text: RegionText,
        one_sequence: bool = False,
    ) -> None:
        """`images` (N, 2) int64: where left and right image are in the store."""
        self.records = records
        self.labels = records["label"].numpy().astype(np.int64) if records.annotated else None
        self.statement_tokens = statement_tokens
        self.images = images
        self.one_sequence = one_sequence
        if one_sequence:  # as published: the regions of both are cut together, at twice the limit of one
            limits = replace(region_text.limits, max_regions=2 * region_text.limits.max_regions)
            region_text = replace(region_text, limits=limits)
        self.region_text = region_text

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Sequences:
        index = draw.index
        left, right = (
            PlacedImage(self.region_text, int(image), 2 * index + side) for side, image in enumerate(self.images[index])
        )
        put_together = statement_with_both if self.one_sequence else statement_pair
        sequences: Sequences = put_together(self.statement_tokens[index], left, right)
        labels = sequences[0].label_ids if self.labels is None else self.labels[index : index + 1]
        record = {"index": index, "identifier": self.records["identifier"][index]}
        return tuple(replace(one, label_ids=labels, record=record) for one in sequences)

    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens and regions of the longer sequence of each statement, before truncation of the text."""
        entries, text = 2 * np.arange(len(self)), self.region_text
        sides = [text.image_lengths(self.images[:, side], entries + side) for side in (0, 1)]
        if not self.one_sequence:
            return self.statement_tokens.lengths() + np.maximum(*sides)
        regions = np.minimum(text.store.num_regions[self.images], text.limits.max_regions).sum(axis=1)
        beyond = np.maximum(regions - text.limits.max_regions, 0) * text.limits.use_regions
        return self.statement_tokens.lengths() + sum(sides) - beyond

    def collate(self, items: Sequence[Sequences]) -> Batch:
        """2B rows, left and right image of each statement in turn, or B with both, and B labels."""
        labels = class_labels([sequences[0] for sequences in items]) if self.labels is not None else None
        return collate_statements(items, self.region_text.special.pad_token_id, labels)

    def show(self, item: Sequences, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        index = item[0].record["index"]
        row, image_ids, images = self.records.row(index), self.records.image_ids[index], self.images[index]
        regions = [one for sequence in item for one in (sequence.regions, *sequence.more_regions)]
        lines = [f"  identifier  {row['identifier']}", f"  statement  {row['sentence']}"]
        for side, (image_id, image, seen) in enumerate(zip(image_ids, images, regions, strict=True)):
            example = replace(item[side % len(item)], regions=seen)
            described = self.region_text.describe(example, int(image), words(example.input_ids), 2 * index + side)
            described = described[side // len(item) :]  # the tokens of one sequence once
            lines += [f"  {('left', 'right')[side]} image {image_id}", *(f"  {line}" for line in described)]
        return [*lines, f"  label  {row.get('label', '(none)')}"]


def statement_pair(statement: np.ndarray, left: PlacedImage, right: PlacedImage) -> Pair:
    """A statement, (n,) token ids, with each of its images; without labels and record.

    As published: what the tags of the first image cut off the statement stays cut for the second.
    """
    text = left.region_text
    tags = text.tag_ids(left.image, left.tagged)
    room = text.limits.max_tokens - (3 if len(tags) else 2)
    kept, _ = truncated_lengths(len(statement), len(tags), room)
    second = right.region_text.example(statement[:kept], right.image, tagged=right.tagged)
    return text.example(statement, left.image, tagged=left.tagged), second


def statement_with_both(statement: np.ndarray, left: PlacedImage, right: PlacedImage) -> tuple[Example]:
    """A statement, (n,) token ids, with both of its images in one sequence; without labels and record.

    As published: the tags and regions of the left image, then those of the right one, each cut as a whole, so that the
    right one has what room the left one leaves.
    """
    text = left.region_text
    input_ids, token_type_ids = assemble_pair(
        statement,
        np.concatenate([text.tag_ids(one.image, one.tagged) for one in (left, right)]),
        max_tokens=text.limits.max_tokens,
        cls_token_id=text.special.cls_token_id,
        sep_token_id=text.special.sep_token_id,
    )
    first, second = text.image_regions(left.image), text.image_regions(right.image)
    second = replace(second, count=min(len(second), text.limits.max_regions - len(first)))
    return (Example(input_ids, token_type_ids, first, more_regions=(second,)),)


def collate_statements(items: Sequence[Sequences], pad_token_id: int, labels: Tensor | None = None) -> Batch:
    """The rows of B statements in turn: of pairs 2B, left and right image."""
    rows = list(chain.from_iterable(items))
    return replace(collate(rows, pad_token_id=pad_token_id, labels=labels), items=len(items))


@dataclass(kw_only=True, eq=False, repr=False)
class NLVR2DataModule(RegionDataModule):
    """Official JSON Lines, a RegionStore and a tokenizer → batches; a split is one file.

    Args:
        one_sequence: a statement is in one sequence with both images, not in one with each.
        the others: see `RegionDataModule`.
    """

    one_sequence: bool = False
    val_split: str = "dev"
    test_split: str = "test1"
    predict_split: str = "test1"
    max_tokens: int = 55
    max_regions: int = 40
    use_tags: bool = False

    def read_split(self, split: str) -> RecordTable:
        files = plain(self.split_files(split))
        if not isinstance(files, str):
            raise UserError(f"data.splits.{split} is {files!r}: give one file.")
        return read_nlvr2(files)

    def make_dataset(self, records: RecordTable, images: np.ndarray, stage: str) -> NLVR2Dataset:
        tokens = self.tokens_of(records["sentence"])
        return NLVR2Dataset(records, tokens, images, self.region_text, self.one_sequence)

    def commonest_of(self, records: RecordTable) -> Commonest:
        """Under "": True or False, whatever more of the statements are."""
        return {"": str(2 * sum(records["label"]) >= len(records))} if records.annotated else {}

    def check_scorable(self, stage: str) -> None:
        dataset = self.datasets[stage]
        if stage == "train" or not isinstance(dataset, NLVR2Dataset):
            return
        records = dataset.records
        own = [index for index, name in enumerate(records["identifier"]) if sentence_of(name) is None]
        if own:
            rank_zero_warn(
                f"Split '{self.split_of[stage]}': consistency is not computed, for {records.describe(own[0])} does not "
                "tell by its identifier which statements are one sentence about several pairs of pictures "
                f"({len(own):,} of {len(records):,} do not read split-set-pair-sentence, dev-308-1-0): "
                "name them so to have it."
            )

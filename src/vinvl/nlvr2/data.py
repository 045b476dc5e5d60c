"""NLVR2: statements over two images, true or false."""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from vinvl.data.text import RaggedTokens, truncated_lengths
from vinvl.data.words import Commonest
from vinvl.nlvr2.files import read_nlvr2
from vinvl.nlvr2.metric import sentence_of
from vinvl.run.errors import UserError

Pair = tuple[Example, Example]


class NLVR2Dataset(Dataset[Pair]):
    """One split: item i is statement i with its left and with its right image."""

    def __init__(
        self, records: RecordTable, statement_tokens: RaggedTokens, images: np.ndarray, region_text: RegionText
    ) -> None:
        """`images` (N, 2) int64: where left and right image are in the store."""
        self.records = records
        self.labels = records["label"].numpy().astype(np.int64) if records.annotated else None
        self.statement_tokens = statement_tokens
        self.images = images
        self.region_text = region_text

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Pair:
        index = draw.index
        left, right = (
            PlacedImage(self.region_text, int(image), 2 * index + side) for side, image in enumerate(self.images[index])
        )
        first, second = statement_pair(self.statement_tokens[index], left, right)
        labels = first.label_ids if self.labels is None else self.labels[index : index + 1]
        record = {"index": index, "identifier": self.records["identifier"][index]}
        return replace(first, label_ids=labels, record=record), replace(second, label_ids=labels, record=record)

    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens and regions of the longer of the two sequences, before truncation of the text."""
        entries = 2 * np.arange(len(self))
        sides = [self.region_text.image_lengths(self.images[:, side], entries + side) for side in (0, 1)]
        return self.statement_tokens.lengths() + np.maximum(*sides)

    def collate(self, items: Sequence[Pair]) -> Batch:
        """2B rows, left and right image of each statement in turn, and B labels."""
        labels = class_labels([left for left, _ in items]) if self.labels is not None else None
        return collate_statements(items, self.region_text.special.pad_token_id, labels)

    def show(self, item: Pair, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        index = item[0].record["index"]
        row, images = self.records.row(index), zip(self.records.image_ids[index], self.images[index], strict=True)
        lines = [f"  identifier  {row['identifier']}", f"  statement  {row['sentence']}"]
        for side, example, (image_id, image) in zip((0, 1), item, images, strict=True):
            described = self.region_text.describe(example, int(image), words(example.input_ids), 2 * index + side)
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


def collate_statements(pairs: Sequence[Pair], pad_token_id: int, labels: Tensor | None = None) -> Batch:
    """2B rows, left and right image of each of B statements in turn."""
    rows = list(chain.from_iterable(pairs))
    return replace(collate(rows, pad_token_id=pad_token_id, labels=labels), items=len(pairs))


class NLVR2DataModule(RegionDataModule):
    """Official JSON Lines, a RegionStore and a tokenizer → batches; a split is one file."""

    def read_split(self, split: str) -> RecordTable:
        files = plain(self.split_files(split))
        if not isinstance(files, str):
            raise UserError(f"data.splits.{split} is {files!r}: give one file.")
        return read_nlvr2(files)

    def make_dataset(self, records: RecordTable, images: np.ndarray, stage: str) -> NLVR2Dataset:
        return NLVR2Dataset(records, self.tokens_of(records["sentence"]), images, self.region_text)

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
                f"({len(own):,} of {len(records):,} do not read split-set-pair-sentence, dev-308-1-0)."
            )

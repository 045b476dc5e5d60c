"""GQA: questions with one right answer of a closed vocabulary over a RegionStore."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from vinvl.data.module import RegionDataArguments, RegionDataModule, file_names, plain
from vinvl.data.table import RecordTable
from vinvl.data.words import Commonest, commonest_answers
from vinvl.gqa.files import read_gqa
from vinvl.run.errors import UserError
from vinvl.vqa.answers import AnswerTargets, AnswerVocabulary, read_answers, warn_of_other_splits
from vinvl.vqa.data import AnsweringDataset, answering_dataset


class GQADataModule(RegionDataModule):
    """Official question files, a RegionStore, a tokenizer and the closed answer vocabulary → batches.

    A split is one question file, a folder of them (train_all comes in ten parts), or a list of these.

    Args:
        answers: file of the answer vocabulary, JSON or a published .pkl; all answers of `answer_splits`, by falling
            count, if it is missing.
        answer_splits: the splits whose answers make up a vocabulary that is built.
        shared: see `RegionDataArguments`.
    """

    def __init__(self, *, answers: str, answer_splits: Sequence[str], **shared: Unpack[RegionDataArguments]) -> None:
        super().__init__(**shared)
        self.answers_path = Path(answers)
        self.answer_splits = answer_splits

    def prepare_data(self) -> None:
        """Generates the demo world, and the answer vocabulary if its file is missing."""
        super().prepare_data()
        if self.answers_path.exists():
            return
        counts: Counter[str] = Counter()
        for split in self.answer_splits:
            records = self.read_split(split)
            if not records.annotated:
                raise UserError(
                    f"The answer vocabulary {self.answers_path} does not exist and split '{split}' has no answers to "
                    "build it from: pass data.answers=FILE, or data.answer_splits=[SPLIT] with answers."
                )
            names, codes = records["answer"].categories()
            counts.update(dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True)))
        ranked = sorted(counts, key=lambda answer: (-counts[answer], answer))
        AnswerVocabulary(tuple(ranked)).save(self.answers_path, self.built_from)

    @property
    def built_from(self) -> dict[str, Any]:
        """What a vocabulary of this configuration is built from."""
        return {"splits": {split: file_names(plain(self.split_files(split))) for split in self.answer_splits}}

    @cached_property
    def vocabulary(self) -> AnswerVocabulary:
        """The answer vocabulary; its file must be there."""
        return AnswerVocabulary.load(self.answers_path)

    def read_split(self, split: str) -> RecordTable:
        given = plain(self.split_files(split))
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
            forms = "a question file, a folder of them, or a list of these"
            raise UserError(f"data.splits.{split} is {given!r}: give {forms}.")
        return read_gqa(listed, lambda: read_answers(self.answers_path))

    def targets_of(self, records: RecordTable) -> AnswerTargets | None:
        return AnswerTargets.of_one_answer(records["answer"], self.vocabulary) if records.annotated else None

    def commonest_of(self, records: RecordTable) -> Commonest:
        targets = self.targets_of(records)
        return {} if targets is None else commonest_answers(records["question"], targets.best(), targets.answers)

    def make_dataset(self, records: RecordTable, images: np.ndarray, stage: str) -> AnsweringDataset:
        if stage == "train":
            warn_of_other_splits(self.answers_path, self.built_from)
        return answering_dataset(self, records, images, self.targets_of(records), stage)

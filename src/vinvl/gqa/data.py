"""GQA: questions with one right answer of a closed vocabulary over a RegionStore."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.module import RegionDataModule, file_names, plain
from vinvl.data.table import RecordTable, kept_records
from vinvl.data.words import Commonest, commonest_answers
from vinvl.gqa.files import GQA, read_gqa
from vinvl.gqa.official import Official
from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list, json_parts
from vinvl.run.values import shown
from vinvl.vqa.answers import AnswerTargets, AnswerVocabulary, read_answers, warn_of_other_splits
from vinvl.vqa.data import AnsweringDataset, answering_dataset


@dataclass(kw_only=True, eq=False, repr=False)
class GQADataModule(RegionDataModule):
    """Official question files, a RegionStore, a tokenizer and the closed answer vocabulary → batches.

    A split is one question file, a folder of them (train_all comes in ten parts), or a list of these.

    Args:
        answers: file of the answer vocabulary, JSON or a published .pkl; all answers of `answer_splits`, by falling
            count, if it is missing.
        answer_splits: the splits whose answers make up a vocabulary that is built.
        choices, scene_graphs: of GQA's official metrics, split → file, which need not be there.
        attention: whether predictions come with what they attended to.
        the others: see `RegionDataModule`.
    """

    answers: str | Path
    answer_splits: Sequence[str] = ("train_balanced", "val")
    choices: Mapping[str, str] | None = None
    scene_graphs: Mapping[str, str] | None = None
    attention: bool = False
    train_split: str = "train_balanced"
    test_split: str = "testdev"
    predict_split: str = "submission"
    max_tokens: int = 165
    max_regions: int = 45
    batch_size: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choices, self._scenes = by_split("choices", self.choices), by_split("scene_graphs", self.scene_graphs)
        self.answers_path = Path(self.answers)

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

    def question_files(self, split: str) -> list[str]:
        """The names of a split's question files and folders of them."""
        given = plain(self.split_files(split))
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
            forms = "a question file, a folder of them, or a list of these"
            raise UserError(f"data.splits.{split} is {given!r}: give {forms}.")
        return listed

    def read_split(self, split: str) -> RecordTable:
        files = json_parts(self.question_files(split))
        read = partial(read_gqa, files, lambda: read_answers(self.answers_path))
        if any(begins_a_list(file) for file in files):  # of the published folder, with answers of another file
            return read()
        return kept_records(GQA, files, self.token_cache, read)

    def official(self, split: str) -> Official | None:
        """What GQA's official metrics of a split are computed of; None of questions of the published folder."""
        questions = self.question_files(split)
        if any(begins_a_list(path) for path in json_parts(questions)):
            return None
        named = (self._choices.get(split), self._scenes.get(split) if self.limits.use_regions else None)
        choices, scenes = (path if path is not None and is_there(Path(path)) else None for path in named)
        return Official.read(questions, choices, scenes)

    def targets_of(self, records: RecordTable) -> AnswerTargets | None:
        return AnswerTargets.of_one_answer(records["answer"], self.vocabulary) if records.annotated else None

    def commonest_of(self, records: RecordTable) -> Commonest:
        targets = self.targets_of(records)
        return {} if targets is None else commonest_answers(records["question"], targets.best(), targets.answers)

    def make_dataset(self, records: RecordTable, images: np.ndarray, stage: str) -> AnsweringDataset:
        if stage == "train":
            warn_of_other_splits(self.answers_path, self.built_from)
        return answering_dataset(self, records, images, self.targets_of(records), stage)


def by_split(name: str, given: Any) -> dict[str, str]:
    """What `data.choices` says: split → file. Raises UserError if it is something else."""
    found: Any = plain(given) or {}
    if not isinstance(found, dict) or not all(isinstance(path, str) for path in found.values()):
        raise UserError(f"data.{name} is {shown(found)}: give data.{name}.SPLIT=FILE, a file or a folder of parts.")
    return found


def is_there(path: Path) -> bool:
    """Whether there is a file, or the folder that stands for it (`json_parts`)."""
    return path.exists() or (path.suffix == ".json" and path.with_suffix("").is_dir())

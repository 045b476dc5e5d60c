"""VQA: questions with ten answers each over a RegionStore. VQA v2, the demo world and datasets of one's own."""

from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.answers import AnswerVocabulary
from vinvl.data.commonest import Commonest, commonest_answers
from vinvl.data.contracts import RegionDataArguments
from vinvl.data.datamodule import RegionDataModule, no_annotations
from vinvl.data.split_files import checked_entry, plain
from vinvl.data.vqa_dataset import AnsweringDataset, AnswerTargets
from vinvl.data.vqa_files import VQARecords, concatenate, read_jsonl, read_official
from vinvl.errors import UserError


class VQADataModule(RegionDataModule):
    """Question and annotation files, a RegionStore, a tokenizer and an answer vocabulary → batches.

    A split is one JSONL file of one's own, or the list of official files that make it up, each
    `{questions, annotations}` (annotations null for test splits); one of these alone needs no list.

    Args:
        answers: file of the answer vocabulary, JSON or a published .pkl (`read_answers`); built from the training
            answers and saved as JSON where it is missing.
        min_answer_count: how often an answer must be a training question's answer to enter the vocabulary.
        target_rule: `leave_one_out` (0.3, 0.6, 0.9, 1 for 1, 2, 3, 4 people) or `count/3` (min(n / 3, 1)).
        shared: see `RegionDataArguments`.
    """

    def __init__(
        self, *, answers: str, min_answer_count: int, target_rule: str, **shared: Unpack[RegionDataArguments]
    ) -> None:
        super().__init__(**shared)
        self.answers_path = Path(answers)
        self.min_answer_count = min_answer_count
        self.target_rule = target_rule
        self._vocabulary: AnswerVocabulary | None = None

    def prepare_data(self) -> None:
        """Generates what can be generated: the demo world, and the answer vocabulary where its file is missing."""
        super().prepare_data()
        if not self.answers_path.exists():
            records = self.read_split(self.split_of["train"])
            if records.answers is None:
                raise UserError(
                    f"The answer vocabulary {self.answers_path} does not exist and split '{self.split_of['train']}' "
                    "has no annotations to build it from: pass data.answers=FILE or annotations for the split."
                )
            vocabulary = AnswerVocabulary.build(
                records.answers, self.min_answer_count, multiple_choice_answers=records.multiple_choice_answers
            )
            vocabulary.save(self.answers_path)

    @property
    def vocabulary(self) -> AnswerVocabulary:
        """The answer vocabulary; its file must be there."""
        if self._vocabulary is None:
            self._vocabulary = AnswerVocabulary.load(self.answers_path)
        return self._vocabulary

    def read_split(self, split: str) -> VQARecords:
        """The records of one split, from all of its files."""
        files = plain(self.split_files(split))
        if isinstance(files, str):
            return read_jsonl(Path(files))
        place = f"data.splits.{split}"
        if not isinstance(files, list | dict) or not files:
            raise UserError(f"{place} is {files!r}: give a JSONL file or [{{questions: FILE, annotations: FILE}}, …].")
        parts = [
            checked_entry(part, place, ("questions",), ("annotations",))
            for part in (files if isinstance(files, list) else [files])
        ]
        return concatenate(
            [
                read_official(Path(part["questions"]), Path(part["annotations"]) if "annotations" in part else None)
                for part in parts
            ]
        )

    def targets_of(self, records: VQARecords) -> AnswerTargets:
        return AnswerTargets.of_people(records, self.vocabulary, self.target_rule)

    def commonest_of(self, records: VQARecords) -> Commonest:
        return commonest_answers(records.questions, self.targets_of(records).best(), self.vocabulary.answers)

    def make_dataset(self, records: VQARecords, images: np.ndarray, stage: str) -> AnsweringDataset:
        if stage == "predict" and any("test-dev2015" in name for name in records.sources.files.names):
            rank_zero_warn(
                "The VQA server wants answers to all of test2015, for its test-dev phase too: pass "
                "data.predict_split=test for a file that it takes."
            )
        return AnsweringDataset(
            self.tokens_of(records.questions),
            images,
            region_text=self.region_text,
            targets=self.targets_of(records),
            record_of=partial(question_record, records),
            scored=stage != "train",
        )

    def check_scorable(self, stage: str) -> None:
        dataset = self.datasets[stage]
        if isinstance(dataset, AnsweringDataset) and not dataset.targets.annotated:
            raise no_annotations(self.split_of[stage])


def question_record(records: VQARecords, index: int) -> dict[str, Any]:
    """What metrics, result files and reports need of question `index`."""
    question_id = records.question_ids[index]
    record: dict[str, Any] = {
        "question_id": question_id.item() if hasattr(question_id, "item") else str(question_id),
        "image_id": str(records.image_ids[index]),
        "question": records.questions[index],
    }
    if records.answers is not None:
        record["answers"] = records.answers[index]
        assert records.answer_types is not None
        record["answer_type"] = records.answer_types[index]
        if records.question_types is not None:
            record["question_type"] = records.question_types[index]
    return record

"""Questions with one of a vocabulary's answers as items: VQA with soft targets, GQA with one right answer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import Dataset

from vinvl.data.batch import Batch, Example, collate, soft_targets
from vinvl.data.inputs import RegionText
from vinvl.data.module import RegionDataModule, checked_entry, file_names, plain
from vinvl.data.sampling import Draw
from vinvl.data.table import RecordTable, kept_records
from vinvl.data.text import RaggedTokens
from vinvl.data.words import Commonest, commonest_answers
from vinvl.regions.formats.rows import check_pattern
from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list
from vinvl.vqa.answers import TARGET_RULES, AnswerTargets, AnswerVocabulary, read_answers, warn_of_other_splits
from vinvl.vqa.files import VQA, read_official, read_own
from vinvl.vqa.minival import IMAGE_COUNTS, some_images
from vinvl.vqa.published import read_published_questions, with_targets


class AnsweringDataset(Dataset[Example]):
    """One split: item i is question i with its image's tags and regions."""

    def __init__(
        self,
        question_tokens: RaggedTokens,
        images: np.ndarray,
        *,
        region_text: RegionText,
        targets: AnswerTargets | None,
        records: RecordTable,
        scored: bool,
    ) -> None:
        """
        Args:
            images: (Q,) int64, where each question's image is in the store.
            targets: the right answers; None of a split that nobody annotated.
            scored: items carry their record, for metrics and result files; not in training, which reads none of it.
        """
        self.question_tokens = question_tokens
        self.images = images
        self.region_text = region_text
        self.targets = targets
        self.records = records
        self.scored = scored

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Example:
        index = draw.index
        example = self.region_text.example(self.question_tokens[index], int(self.images[index]), tagged=index)
        record = {**(self.records.row(index) if self.scored else {}), "index": index}
        if self.targets is None:
            return replace(example, record=record)
        label_ids, label_scores = self.targets[index]
        return replace(example, label_ids=label_ids, label_scores=label_scores, record=record)

    def lengths(self) -> np.ndarray:
        """(Q,) int64: tokens and regions of each question, before truncation of the text."""
        return self.question_tokens.lengths() + self.region_text.image_lengths(self.images, np.arange(len(self)))

    def collate(self, items: Sequence[Example]) -> Batch:
        labels = None if self.targets is None else soft_targets(items, len(self.targets.answers))
        return collate(items, pad_token_id=self.region_text.special.pad_token_id, labels=labels)

    def show(self, item: Example, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        names = () if self.targets is None else self.targets.answers
        answers = [
            f"{names[label]} {score:.1f}" for label, score in zip(item.label_ids, item.label_scores, strict=True)
        ]
        index = item.record["index"]
        return [
            f"  image id  {self.records['image_id'][index]}",
            f"  question  {self.records['question'][index]}",
            *self.region_text.describe(item, int(self.images[index]), words(item.input_ids), index),
            f"  target    {', '.join(answers) or '(none in the answer vocabulary)'}",
        ]


@dataclass(kw_only=True, eq=False, repr=False)
class VQADataModule(RegionDataModule):
    """Question and annotation files, a RegionStore, a tokenizer and an answer vocabulary → batches.

    A split is one JSONL file of your own or file of VizWiz, or the list of files that make it up: such, or official
    ones, each `{questions, annotations}` (annotations null for test splits), or of the published folder, each
    `{qla: FILE}`, with `passes` for one that counts several times; a single one needs no list. All forms may be mixed.
    `{questions: FILE, id_pattern: …}` finds image ids in VizWiz's file names (`read_own`). `only_images: N`
    takes the questions about N of a file's images, `without_images: N` those about the others (`some_images`).

    Args:
        answers: file of the answer vocabulary, JSON or a published .pkl (`read_answers`); built and saved as JSON,
            with the names of the files it was built from, if it is missing.
        answer_splits: the splits whose answers make up a vocabulary that is built; the training split without any.
        min_answer_count: how often an answer must be a training question's answer to enter the vocabulary.
        target_rule: `leave_one_out` (0.3, 0.6, 0.9, 1 for 1, 2, 3, 4 people) or `count/3` (min(n / 3, 1)).
        the others: see `RegionDataModule`.
    """

    answers: str | Path
    answer_splits: Sequence[str] | None = None
    min_answer_count: int = 9
    target_rule: str = "leave_one_out"
    max_tokens: int = 128
    max_regions: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_rule not in TARGET_RULES:
            raise UserError(f"data.target_rule={self.target_rule!r} is no rule: give {' or '.join(TARGET_RULES)}.")
        self.answers_path = Path(self.answers)
        self.answered = list(self.answer_splits or [self.train_split])

    def prepare_data(self) -> None:
        """Generates what can be generated: the demo world, and the answer vocabulary if its file is missing."""
        super().prepare_data()
        if self.answers_path.exists():
            return
        people: list[Iterable[Sequence[str]]] = []
        choices: list[Iterable[str]] = []
        for split in self.answered:
            records = self.read_split(split)
            if "answers" not in records:
                raise UserError(
                    f"The answer vocabulary {self.answers_path} does not exist and split '{split}' has no annotations "
                    "to build it from: pass data.answers=FILE, data.answer_splits=[SPLIT] or annotations for the split."
                )
            people.append(records["answers"])
            choices.append(records.get("multiple_choice_answer") or repeat("", len(records)))
        built = AnswerVocabulary.build(chain(*people), self.min_answer_count, chain(*choices))
        built.save(self.answers_path, self.built_from)

    @property
    def built_from(self) -> dict[str, Any]:
        """What a vocabulary of this configuration is built from."""
        files = {split: file_names(plain(self.split_files(split))) for split in self.answered}
        return {"splits": files, "min_answer_count": self.min_answer_count}

    @cached_property
    def vocabulary(self) -> AnswerVocabulary:
        """The answer vocabulary; its file must be there."""
        return AnswerVocabulary.load(self.answers_path)

    def read_split(self, split: str) -> RecordTable:
        """The records of one split, from all of its files."""
        files = plain(self.split_files(split))
        place = f"data.splits.{split}"
        if not isinstance(files, str | list | dict) or not files:
            raise UserError(f"{place} is {files!r}: give a JSONL file or [{{questions: FILE, annotations: FILE}}, …].")
        parts: list[RecordTable] = []
        for entry in files if isinstance(files, list) else [files]:
            parts += self._part(entry, place, sum(map(len, parts)))
        if not all(part.form is parts[0].form for part in parts):
            parts = [with_targets(part, self.vocabulary, self.target_rule) for part in parts]
        return RecordTable.join(parts)

    def _part(self, given: Any, place: str, before: int) -> list[RecordTable]:
        """The records of one file of a split, as often as it says; so many are in the files before it."""
        if isinstance(given, str):
            return [read_own(given, before=before)]
        if not isinstance(given, Mapping) or "qla" not in given:
            entry = checked_entry(given, place, ("questions",), ("annotations", "id_pattern", *IMAGE_COUNTS))
            return [some_images(self._questions(entry, place, before), entry, place)]
        entry = checked_entry(given, place, ("qla",), ("passes", *IMAGE_COUNTS))
        passes = entry.get("passes", 1)
        if type(passes) is not int or passes < 1:
            raise UserError(f"{place} has the passes {passes!r}: give a whole number from 1.")
        answers = read_answers(self.answers_path)
        read = [read_published_questions(entry["qla"], answers, again) for again in range(passes)]
        return [some_images(part, entry, place) for part in read]

    def _questions(self, entry: Mapping[str, Any], place: str, before: int) -> RecordTable:
        file, pattern = entry["questions"], entry.get("id_pattern")
        if not begins_a_list(file):
            if pattern is not None:
                raise UserError(f"{place} has the id_pattern {pattern!r}, which is for VizWiz's files: {file} is none.")
            annotations = entry.get("annotations")
            files = [file] if annotations is None else [file, annotations]
            return kept_records(VQA, files, self.token_cache, partial(read_official, file, annotations))
        if "annotations" in entry:
            raise UserError(
                f"{place} has annotations, and {file} is a list of questions with their answers: leave it out."
            )
        if pattern is not None:
            check_pattern(pattern, f"{place} id_pattern")
        return read_own(file, pattern, before)

    def targets_of(self, records: RecordTable) -> AnswerTargets | None:
        if not records.annotated:
            return None
        if "target_answers" in records:
            return AnswerTargets.of_scores(records["target_answers"], records["target_scores"], self.vocabulary)
        return AnswerTargets.of_people(records["answers"], self.vocabulary, self.target_rule)

    def commonest_of(self, records: RecordTable) -> Commonest:
        targets = self.targets_of(records)
        return {} if targets is None else commonest_answers(records["question"], targets.best(), targets.answers)

    def make_dataset(self, records: RecordTable, images: np.ndarray, stage: str) -> AnsweringDataset:
        if stage == "train":
            warn_of_other_splits(self.answers_path, self.built_from)
        if stage == "predict" and any("test-dev2015" in name for name in records["file"].categories()[0]):
            rank_zero_warn(
                "The VQA server wants answers to all of test2015, for its test-dev phase too: pass "
                "data.predict_split=test for a file that it takes."
            )
        return answering_dataset(self, records, images, self.targets_of(records), stage)


def answering_dataset(
    data: RegionDataModule, records: RecordTable, images: np.ndarray, targets: AnswerTargets | None, stage: str
) -> AnsweringDataset:
    """The dataset of a stage; arguments as `RegionDataModule.make_dataset` has them."""
    return AnsweringDataset(
        data.tokens_of(records["question"]),
        images,
        region_text=data.region_text,
        targets=targets,
        records=records,
        scored=stage != "train",
    )

"""Questions with one of a vocabulary's answers as items: VQA with soft targets, GQA with one right answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from vinvl.data.answers import AnswerVocabulary
from vinvl.data.batch import Batch, Example, collate, soft_targets
from vinvl.data.columns import CategoricalColumn
from vinvl.data.region_text import RegionText
from vinvl.data.sampling import Draw
from vinvl.data.text import RaggedTokens
from vinvl.data.vqa_files import VQARecords


@dataclass(frozen=True)
class AnswerTargets:
    """Sparse targets of every question: question q has `offsets[q]` to `offsets[q + 1]`.

    Attributes:
        answers: the A answers between which the model chooses.
        annotated: whether the split has answers at all.
    """

    answers: tuple[str, ...]
    annotated: bool
    label_ids: np.ndarray  # (Σk,) int64
    label_scores: np.ndarray  # (Σk,) float32
    offsets: np.ndarray  # (Q + 1,) int64

    @classmethod
    def none(cls, vocabulary: AnswerVocabulary, questions: int) -> "AnswerTargets":
        """For a split without annotations."""
        offsets = np.zeros(questions + 1, dtype=np.int64)
        return cls(vocabulary.answers, False, offsets[:0], np.zeros(0, dtype=np.float32), offsets)

    @classmethod
    def of_people(cls, records: VQARecords, vocabulary: AnswerVocabulary, rule: str) -> "AnswerTargets":
        """Soft targets from several people's answers (`AnswerVocabulary.soft_targets`)."""
        if records.answers is None:
            return cls.none(vocabulary, len(records))
        return cls(vocabulary.answers, True, *vocabulary.soft_targets_of_all(records.answers, rule=rule))

    @classmethod
    def of_one_answer(cls, answers: CategoricalColumn, vocabulary: AnswerVocabulary) -> "AnswerTargets":
        """Target 1 for the one right answer; nothing for an answer that is not in the vocabulary."""
        known = [vocabulary.index_of(name) for name in answers.names]
        index_of = np.array([-1 if index is None else index for index in known], dtype=np.int64)[answers.codes]
        label_ids = index_of[index_of >= 0]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(index_of >= 0)])
        return cls(vocabulary.answers, True, label_ids, np.ones(len(label_ids), dtype=np.float32), offsets)

    def best(self) -> np.ndarray:
        """(Q,) int64: the number of the answer with the highest score to each question, -1 where there is none."""
        questions = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        order = np.lexsort((-self.label_ids, self.label_scores))  # of equal scores the first answer is written last
        best = np.full(len(self.offsets) - 1, -1, dtype=np.int64)
        best[questions[order]] = self.label_ids[order]
        return best

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.label_ids[span], self.label_scores[span]


class AnsweringDataset(Dataset[Example]):
    """One split: item i is question i with its image's tags and regions."""

    def __init__(
        self,
        question_tokens: RaggedTokens,
        images: np.ndarray,
        *,
        region_text: RegionText,
        targets: AnswerTargets,
        record_of: Callable[[int], dict[str, Any]],
        scored: bool,
    ) -> None:
        """
        Args:
            question_tokens: of the Q questions.
            images: (Q,) int64, where each question's image lies in the store.
            region_text: puts question and image together.
            targets: the right answers.
            record_of: what metrics, result files and reports need of a question; "question" and "image_id" at least.
                Picklable, for spawned data workers.
            scored: items carry `record_of`; not in training, which reads none of it.
        """
        self.question_tokens = question_tokens
        self.images = images
        self.region_text = region_text
        self.targets = targets
        self.record_of = record_of
        self.scored = scored

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Example:
        index = draw.index
        label_ids, label_scores = self.targets[index]
        example = self.region_text.example(self.question_tokens[index], int(self.images[index]))
        record = {**(self.record_of(index) if self.scored else {}), "index": index}
        return replace(example, label_ids=label_ids, label_scores=label_scores, record=record)

    def lengths(self) -> np.ndarray:
        """(Q,) int64: tokens and regions of each question, before truncation of the text."""
        return self.question_tokens.lengths() + self.region_text.image_lengths(self.images)

    def collate(self, items: Sequence[Example]) -> Batch:
        labels = soft_targets(items, len(self.targets.answers)) if self.targets.annotated else None
        return collate(items, pad_token_id=self.region_text.special.pad_token_id, labels=labels)

    def show(self, item: Example, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        answers = [
            f"{self.targets.answers[label]} {score:.1f}"
            for label, score in zip(item.label_ids, item.label_scores, strict=True)
        ]
        record = self.record_of(item.record["index"])
        return [
            f"  image id  {record['image_id']}",
            f"  question  {record['question']}",
            *self.region_text.describe(item, int(self.images[item.record["index"]]), words(item.input_ids)),
            f"  target    {', '.join(answers) or '(none in the answer vocabulary)'}",
        ]

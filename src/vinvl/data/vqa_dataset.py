"""One split of a VQA dataset as items: question, tags, regions and soft targets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from vinvl.data.answers import AnswerVocabulary
from vinvl.data.batch import Example
from vinvl.data.store import RegionStore
from vinvl.data.tags import TagTokens
from vinvl.data.text import RaggedTokens, assemble_pair
from vinvl.data.vqa_files import VQARecords


@dataclass(frozen=True)
class VQAInputs:
    """What of an example the model gets to see.

    Attributes:
        max_tokens: text and tags and special tokens together (published: 128).
        max_regions: regions kept, from the most confident on (published: 50).
        use_tags: False withholds the object tags.
        use_regions: False withholds the region features.
    """

    max_tokens: int
    max_regions: int
    use_tags: bool
    use_regions: bool


@dataclass(frozen=True)
class SoftTargets:
    """Sparse soft targets of every question: question q has `offsets[q]` to `offsets[q + 1]`."""

    label_ids: np.ndarray  # (Σk,) int64
    label_scores: np.ndarray  # (Σk,) float32
    offsets: np.ndarray  # (Q + 1,) int64

    @classmethod
    def of(cls, records: VQARecords, vocabulary: AnswerVocabulary, rule: str) -> "SoftTargets":
        """Targets of a split; a split without annotations gets none."""
        if records.answers is None:
            empty = np.zeros(0)
            return cls(empty.astype(np.int64), empty.astype(np.float32), np.zeros(len(records) + 1, dtype=np.int64))
        return cls(*vocabulary.soft_targets_of_all(records.answers, rule=rule))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.label_ids[span], self.label_scores[span]


class VQADataset(Dataset[Example]):
    """One split: item i is question i with its image's tags and regions."""

    def __init__(
        self,
        records: VQARecords,
        *,
        store: RegionStore,
        image_index: np.ndarray,
        question_tokens: RaggedTokens,
        tag_tokens: TagTokens,
        targets: SoftTargets,
        inputs: VQAInputs,
        cls_token_id: int,
        sep_token_id: int,
    ) -> None:
        """`image_index` (Q,) int64: where each question's image lies in the store."""
        self.records = records
        self.store = store
        self.image_index = image_index
        self.question_tokens = question_tokens
        self.tag_tokens = tag_tokens
        self.targets = targets
        self.inputs = inputs
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        regions = self.store.at(int(self.image_index[index]))
        limit = self.inputs.max_regions
        tags = self.tag_tokens.encode(regions.classes[:limit]) if self.inputs.use_tags else None
        input_ids, token_type_ids = assemble_pair(
            self.question_tokens[index],
            tags,
            max_tokens=self.inputs.max_tokens,
            cls_token_id=self.cls_token_id,
            sep_token_id=self.sep_token_id,
        )
        rows = regions.rows(limit if self.inputs.use_regions else 0)
        if not np.isfinite(rows).all():
            regions.check_finite()
        label_ids, label_scores = self.targets[index]
        return Example(input_ids, token_type_ids, rows, label_ids, label_scores, self.record(index))

    def record(self, index: int) -> dict[str, Any]:
        """What metrics, result files and reports need of question `index`."""
        records = self.records
        question_id = records.question_ids[index]
        record: dict[str, Any] = {
            "index": index,
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

    def lengths(self) -> np.ndarray:
        """(Q,) int64: tokens and regions of each question, before truncation of the text."""
        images, inverse = np.unique(self.image_index, return_inverse=True)
        limit = self.inputs.max_regions
        per_image = np.zeros(len(images), dtype=np.int64)
        if self.inputs.use_regions:
            per_image += np.minimum(self.store.num_regions[images], limit)
        if self.inputs.use_tags:
            per_image += np.array([self.tag_tokens.count(self.store.at(int(i)).classes[:limit]) for i in images])
        return self.question_tokens.lengths() + per_image[inverse]

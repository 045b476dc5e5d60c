"""VQA: questions with ten answers each over a RegionStore. VQA v2, the demo world and datasets of one's own."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from vinvl.data.answers import AnswerVocabulary
from vinvl.data.batch import Batch, Example, collate
from vinvl.data.datamodule import RegionDataModule
from vinvl.data.store import RegionStore
from vinvl.data.tags import TagTokens
from vinvl.data.text import encode_texts, load_tokenizer
from vinvl.data.vqa_dataset import SoftTargets, VQADataset, VQAInputs
from vinvl.data.vqa_files import VQARecords, concatenate, read_jsonl, read_official
from vinvl.data.vqa_select import select
from vinvl.errors import UserError


class VQADataModule(RegionDataModule):
    """Question and annotation files, a RegionStore, a tokenizer and an answer vocabulary → batches.

    Args:
        splits: split name → one JSONL file of one's own, or the official files that make it up, each
            `{questions, annotations}` (annotations null for test splits).
        regions: RegionStore file, folder or list of them.
        tokenizer: transformers tokenizer folder or hub name.
        answers: JSON file of the answer vocabulary; built from the training answers and saved where it is missing.
        min_answer_count: how often an answer must be a training question's answer to enter the vocabulary.
        target_rule: `leave_one_out` (0.3, 0.6, 0.9, 1 for 1, 2, 3, 4 people) or `count/3` (min(n / 3, 1)).
        train_split, val_split, test_split, predict_split: which of `splits` each stage reads.
        inputs: what the model sees of an example.
        on_missing: `error` or `skip` questions whose image is not in the store.
        prepare: called before anything is read; the demo generates its world here.
    """

    def __init__(
        self,
        *,
        splits: Mapping[str, str | Sequence[Mapping[str, str | None]]],
        regions: str | Sequence[str],
        tokenizer: str,
        answers: str,
        min_answer_count: int,
        target_rule: str,
        train_split: str,
        val_split: str,
        test_split: str,
        predict_split: str,
        max_tokens: int,
        max_regions: int,
        use_tags: bool,
        use_regions: bool,
        on_missing: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        pin_memory: bool,
        seed: int,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            seed=seed,
        )
        self.splits = splits
        self.split_of = {"train": train_split, "val": val_split, "test": test_split, "predict": predict_split}
        self.regions = regions
        self.tokenizer_name = tokenizer
        self.answers_path = Path(answers)
        self.min_answer_count = min_answer_count
        self.target_rule = target_rule
        self.inputs = VQAInputs(max_tokens, max_regions, use_tags, use_regions)
        self.on_missing = on_missing
        self.prepare = prepare
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.vocabulary: AnswerVocabulary | None = None
        self.store: RegionStore | None = None

    def prepare_data(self) -> None:
        """Generates what can be generated: the demo world, and the answer vocabulary where its file is missing."""
        if self.prepare is not None:
            self.prepare()
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

    def setup(self, stage: str | None = None) -> None:
        """Reads tokenizer, store, vocabulary and the splits of a stage (any other word: none); what is read stays."""
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.tokenizer_name)
            self.store = RegionStore(self.regions)
            self.vocabulary = AnswerVocabulary.load(self.answers_path)
        stages = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        for name in stages.get(stage or "fit", ()):
            split = self.split_of[name]
            if split not in self.datasets:
                self.datasets[split] = self.make_dataset(self.read_split(split))

    def read_split(self, split: str) -> VQARecords:
        """The records of one split, from all of its files."""
        if split not in self.splits:
            raise UserError(f"There is no split '{split}' in data.splits; it has {', '.join(sorted(self.splits))}.")
        files = self.splits[split]
        if isinstance(files, str):
            return read_jsonl(Path(files))
        annotations = [part.get("annotations") for part in files]
        return concatenate(
            [
                read_official(Path(str(part["questions"])), Path(path) if path else None)
                for part, path in zip(files, annotations, strict=True)
            ]
        )

    def make_dataset(self, records: VQARecords) -> VQADataset:
        """A dataset over records whose images are in the store."""
        assert self.store is not None and self.vocabulary is not None and self.tokenizer is not None
        present = np.array([image_id in self.store for image_id in records.image_ids])
        if not present.all():
            records = self._without_missing(records, present)
        return VQADataset(
            records,
            store=self.store,
            image_index=np.array([self.store.index_of(image_id) for image_id in records.image_ids], dtype=np.int64),
            question_tokens=encode_texts(self.tokenizer, list(records.questions)),
            tag_tokens=TagTokens.of(self.store.label_map, self.tokenizer),
            targets=SoftTargets.of(records, self.vocabulary, self.target_rule),
            inputs=self.inputs,
            cls_token_id=self.tokenizer.cls_token_id,
            sep_token_id=self.tokenizer.sep_token_id,
        )

    def _without_missing(self, records: VQARecords, present: np.ndarray) -> VQARecords:
        """The records whose image is in the store, or a refusal that names the first one that is not."""
        assert self.store is not None
        first = int(np.flatnonzero(~present)[0])
        if self.on_missing != "skip" or not present.any():
            raise UserError(
                f"{self.store!r} has no image {records.image_ids[first]} (asked for by {records.describe(first)}; "
                f"{int((~present).sum())} questions in all lack theirs). It holds {len(self.store):,} images, ids like "
                f"'{self.store.image_ids[0]}'. Extract the missing ones or pass data.on_missing=skip."
            )
        rank_zero_warn(
            f"data.on_missing=skip: left out {int((~present).sum())} questions whose images are not in "
            f"{self.store!r}, the first being {records.describe(first)}."
        )
        return select(records, present)

    def lengths(self, split: str) -> np.ndarray:
        return self._dataset(split).lengths()

    def collate_function(self, split: str) -> Callable[[Sequence[Example]], Batch]:
        assert self.tokenizer is not None
        annotated = self._dataset(split).records.answers is not None
        num_answers = len(self.require_vocabulary()) if annotated else None
        return partial(collate, pad_token_id=self.tokenizer.pad_token_id, num_answers=num_answers)

    def require_vocabulary(self) -> AnswerVocabulary:
        """The answer vocabulary, once `setup` has read it."""
        assert self.vocabulary is not None, "setup() comes first"
        return self.vocabulary

    def train_dataloader(self) -> DataLoader[Example]:
        return self.training_loader(self.split_of["train"])

    def val_dataloader(self) -> DataLoader[Example]:
        return self.evaluation_loader(self._annotated(self.split_of["val"]))

    def test_dataloader(self) -> DataLoader[Example]:
        return self.evaluation_loader(self._annotated(self.split_of["test"]))

    def predict_dataloader(self) -> DataLoader[Example]:
        return self.evaluation_loader(self.split_of["predict"])

    def _annotated(self, split: str) -> str:
        if self._dataset(split).records.answers is None:
            raise UserError(
                f"Split '{split}' has no annotations, so it cannot be scored: "
                "use python -m vinvl.predict for it, or name the annotations in data.splits."
            )
        return split

    def _dataset(self, split: str) -> VQADataset:
        dataset = self.datasets[split]
        assert isinstance(dataset, VQADataset)
        return dataset

    def example_text(self, split: str, index: int = 0) -> str:
        """One example as the model sees it, decoded: for a person to read before a run starts."""
        assert self.tokenizer is not None and self.store is not None
        dataset = self._dataset(split)
        example = dataset[index]
        answers = self.require_vocabulary().answers
        targets = ", ".join(
            f"{answers[label]} {score:.1f}"
            for label, score in zip(example.label_ids, example.label_scores, strict=True)
        )
        words = self.tokenizer.convert_ids_to_tokens(example.input_ids.tolist())
        return "\n".join(
            [
                f"One example of '{split}' (of {len(dataset):,}):",
                f"  image id  {example.record['image_id']}",
                f"  question  {example.record['question']}",
                f"  tokens    {' '.join(words)}",
                f"  tags      {self._tags_of(dataset, index)}",
                f"  regions   {len(example.region_rows)} rows of {example.region_rows.shape[1]} numbers",
                f"  target    {targets or '(none in the answer vocabulary)'}",
            ]
        )

    def _tags_of(self, dataset: VQADataset, index: int) -> str:
        if not self.inputs.use_tags:
            return "(withheld: data.use_tags=false)"
        regions = dataset.store.at(int(dataset.image_index[index]))
        return dataset.tag_tokens.text(regions.classes[: self.inputs.max_regions]) or "(none)"

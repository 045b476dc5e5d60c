"""What a trained model says of pictures, and what it sees; inputs are put together by what training uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from vinvl.captioning.constraints import DetectedConstraints
from vinvl.captioning.data import caption_context
from vinvl.captioning.task import caption_texts, context_of, n_best, tag_shift
from vinvl.data.batch import Batch, Example, collate
from vinvl.data.inputs import PlacedImage
from vinvl.data.text import encode_texts
from vinvl.models.config import SpecialTokens
from vinvl.models.constrained import Constraint
from vinvl.models.generate import generate_captions
from vinvl.nlvr2.data import Pair, collate_statements, statement_pair
from vinvl.predictor.pictures import Computing
from vinvl.predictor.trained import TrainedModel
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import RegionStore
from vinvl.retrieval.data import MATCHED, collate_pairs, pair_example
from vinvl.run.errors import printable
from vinvl.vqa.task import ranked_answers

SHOWN = 20  # regions, when they are printed
ATTRIBUTES_SHOWN = 3  # of a region


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        answer: the best one.
        score: its probability; of models trained with the bce loss independent of the other answers'.
        top: the best answers with their probabilities, best first.
    """

    answer: str
    score: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return printable(f"{self.answer} ({self.score:.3f})")


@dataclass(frozen=True)
class Caption:
    """The caption of a picture.

    Attributes:
        text: the best one.
        score: its log-probability, as the search scores it (`GeneratedCaptions`); compares captions of one search.
        top: all `num_return_sequences` captions with their scores, best first; samples in the order they were drawn.
    """

    text: str
    score: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return printable(self.text)


@dataclass(frozen=True, eq=False, repr=False)
class PictureRegions:
    """The R regions of a picture, by falling score.

    Attributes:
        name: of the picture: its path, or its image id in a store.
        regions: with boxes, features, scores and numbers of classes and attributes.
        label_map: what the numbers mean; may be without names.
    """

    name: str
    regions: Regions
    label_map: LabelMap

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels"""
        return self.regions.width, self.regions.height

    @property
    def boxes(self) -> np.ndarray:
        """(R, 4) float32: x1, y1, x2, y2 in pixels"""
        return self.regions.boxes

    @property
    def features(self) -> np.ndarray:
        """(R, D) in the data type of stores"""
        return self.regions.features

    @property
    def scores(self) -> np.ndarray:
        """(R,) float32, of the classes"""
        return self.regions.class_scores

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """R names"""
        return tuple(_name(self.label_map.classes, "class", int(index)) for index in self.regions.classes)

    @cached_property
    def attributes(self) -> tuple[tuple[tuple[str, float], ...], ...]:
        """Of each region the names and scores of its attributes, surest first."""
        names, found = self.label_map.attributes, self.regions
        return tuple(
            tuple((_name(names, "attribute", int(i)), float(score)) for i, score in zip(row, scores, strict=True) if i)
            for row, scores in zip(found.attributes, found.attribute_scores, strict=True)
        )

    def __repr__(self) -> str:
        width, height = self.size
        return f"PictureRegions({self.name!r}: {len(self)} regions of {width} × {height} pixels)"

    def __str__(self) -> str:
        width, height = self.size
        lines = [f"{self.name}: {len(self)} regions of {width} × {height} pixels"]
        longest = max((len(name) for name in self.classes[:SHOWN]), default=0)
        for name, score, attributes, box in zip(
            self.classes[:SHOWN], self.scores, self.attributes, self.boxes, strict=False
        ):
            place = " ".join(f"{value:6.0f}" for value in box)
            described = ", ".join(f"{word} {share:.2f}" for word, share in attributes[:ATTRIBUTES_SHOWN])
            lines.append(f"  {score:.2f}  {name:<{longest}}  {place}  {described}".rstrip())
        if len(self) > SHOWN:
            lines.append(f"  … and {len(self) - SHOWN} more")
        return "\n".join(map(printable, lines))


def _name(names: tuple[str, ...], kind: str, index: int) -> str:
    return names[index] if names else f"{kind} {index}"


TRUE = 1  # the class of a statement that is true
Input = TypeVar("Input", Example, Pair)
Result = TypeVar("Result")


class Skills:
    """What a model of each task does with pictures, whose regions are found, and texts."""

    def __init__(self, trained: TrainedModel, store: RegionStore | None, computing: Computing) -> None:
        """
        Args:
            trained: a model that is used for a task.
            store: where the things that a caption must name are looked up, if no other store is named for that.
        """
        used = trained.used
        assert used is not None
        self._model: Any = trained.model  # of the class that the task has
        self._usage, self._tokenizer, self._answers, self._computing = (
            used.usage,
            used.tokenizer,
            used.answers,
            computing,
        )
        self._special = SpecialTokens.of(used.tokenizer)
        self._constraints = None
        if trained.task == "captioning" and (options := used.usage.constraint_options) is not None:
            length = used.usage.decoding_options.max_length
            self._constraints = DetectedConstraints(options, store, used.tokenizer, length)

    def answer(self, images: Sequence[PlacedImage], questions: Sequence[str], top: int) -> list[Answer]:
        """The answers to B questions (VQA, GQA), each with the `top` best."""
        tokens = encode_texts(self._tokenizer, questions)
        examples = [one.region_text.example(tokens[i], one.image) for i, one in enumerate(images)]

        def answer(chosen: list[Example]) -> list[Answer]:
            ranked = ranked_answers(
                self._logits(self._collated(chosen)), self._answers, self._model.config.loss_type, top
            )
            return [Answer(texts[0], scores[0], tuple(zip(texts, scores, strict=True))) for texts, scores in ranked]

        return self._in_batches(examples, length_of, answer)

    def judge(self, images: Sequence[tuple[PlacedImage, PlacedImage]], statements: Sequence[str]) -> list[float]:
        """The probabilities that B statements are true (NLVR2), of which each has a left and a right picture."""
        tokens = encode_texts(self._tokenizer, statements)
        pairs = [statement_pair(tokens[i], left, right) for i, (left, right) in enumerate(images)]

        def judge(chosen: list[Pair]) -> list[float]:
            batch = collate_statements(chosen, self._special.pad_token_id).to(self._computing.device)
            return probabilities_of(self._logits(batch), TRUE)

        return self._in_batches(pairs, lambda pair: max(map(length_of, pair)), judge)

    def match(self, images: Sequence[PlacedImage], texts: Sequence[str]) -> list[float]:
        """The probabilities that B texts match their pictures (image-text retrieval)."""
        tokens = encode_texts(self._tokenizer, texts)
        examples = [pair_example(tokens[i], one) for i, one in enumerate(images)]

        def match(chosen: list[Example]) -> list[float]:
            batch = collate_pairs(chosen, self._special.pad_token_id, self._usage.attention_type)
            pooled = self._model.bert(**batch.to(self._computing.device).inputs(), only_first=True).pooler_output
            # Half precision would round many scores to the same number (see `PairScorer`).
            with torch.autocast(pooled.device.type, enabled=False):
                return probabilities_of(self._model.classifier(pooled.float()), MATCHED)

        return self._in_batches(examples, length_of, match)

    def caption(self, images: Sequence[PlacedImage]) -> list[Caption]:
        """The captions of B pictures."""
        options = self._usage.decoding_options
        shift = tag_shift(options, self._usage.max_caption_tokens)

        def write(chosen: list[Example]) -> list[Caption]:
            batch = self._collated(chosen)
            wanted = None
            if self._constraints is not None:
                wanted = [constraints_of(self._constraints, record["placed"]) for record in batch.records]
            context = context_of(batch, shift)
            written = generate_captions(self._model, context, options, special=self._special, constraints=wanted)
            found = n_best(written, lambda ids: caption_texts(self._tokenizer, ids))
            return [Caption(texts[0], scores[0], tuple(zip(texts, scores, strict=True))) for texts, scores in found]

        contexts = [caption_context(one, self._usage.caption_limits, {"placed": one}) for one in images]
        return self._in_batches(contexts, length_of, write)

    def _collated(self, examples: list[Example]) -> Batch:
        return collate(examples, pad_token_id=self._special.pad_token_id).to(self._computing.device)

    def _logits(self, batch: Batch) -> Tensor:
        """(B, labels)"""
        return cast(Tensor, self._model(**batch.inputs()).logits)

    def _in_batches(
        self, items: Sequence[Input], cost: Callable[[Input], int], work: Callable[[list[Input]], Sequence[Result]]
    ) -> list[Result]:
        """What `work` makes of the items, in their order; those of like cost are worked on together, to pad little."""
        order = sorted(range(len(items)), key=lambda index: -cost(items[index]))
        results: dict[int, Result] = {}
        for start in range(0, len(order), self._computing.batch_size):
            chosen = order[start : start + self._computing.batch_size]
            with self._computing.precision():
                results |= zip(chosen, work([items[index] for index in chosen]), strict=True)
        return [results[index] for index in range(len(items))]


def constraints_of(constraints: DetectedConstraints, placed: PlacedImage) -> list[Constraint]:
    """What a picture's caption must name: things among its own regions, or among those of a store that is named."""
    source = placed.region_text.store
    regions = source.at(placed.image)
    if constraints.options.regions is None:
        return constraints.of_regions(regions, source.label_map.classes)
    return constraints([regions.image_id])[0]


def probabilities_of(logits: Tensor, label: int) -> list[float]:
    """The softmax probability of one label in each row."""
    values: list[float] = logits.float().softmax(dim=-1)[:, label].tolist()
    return values


def length_of(example: Example) -> int:
    """Tokens and regions."""
    return len(example.input_ids) + len(example.regions)

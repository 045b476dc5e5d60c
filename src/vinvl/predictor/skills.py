"""What each kind of model can do with pictures and texts; inputs are put together by what training uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vinvl.captioning.constraints import DetectedConstraints
from vinvl.captioning.data import caption_context
from vinvl.captioning.task import caption_texts, context_of, n_best, tag_shift
from vinvl.data.batch import Batch, Example, collate
from vinvl.data.inputs import PlacedImage
from vinvl.data.text import encode_texts
from vinvl.models.answering import VinVLForAnswering, VinVLForPairs
from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.constrained import Constraint
from vinvl.models.generate import generate_captions
from vinvl.nlvr2.data import Pair, collate_statements, statement_pair
from vinvl.predictor.pictures import Computing
from vinvl.predictor.trained import Usage
from vinvl.regions.regions import LabelMap, Regions
from vinvl.retrieval.data import MATCHED, collate_pairs, pair_example
from vinvl.run.errors import UserError, printable
from vinvl.vqa.task import ranked_answers

# One picture or many, with one text or many: which belong together.


def is_many(value: object) -> bool:
    """Whether this is a list or the like, and neither a text nor a picture."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


class Pairs(NamedTuple):
    """What belongs together: (image, text) each. Where there is a single one, the result is no list."""

    items: list[tuple[Any, Any]]
    single: bool


def paired(images: Any, texts: Any, image_is_many: Callable[[object], bool] = is_many) -> Pairs:
    """One picture goes with all texts, one text with all pictures, and lists of one length belong together.

    Args:
        images: one picture, or a list of them.
        texts: the same of texts.
        image_is_many: tells the one from the other.

    Raises:
        UserError: two lists of different length.
    """
    many_images, many_texts = image_is_many(images), is_many(texts)
    if not many_images and not many_texts:
        return Pairs([(images, texts)], True)
    if not many_texts:
        return Pairs([(image, texts) for image in images], False)
    if not many_images:
        return Pairs([(images, text) for text in texts], False)
    if len(images) != len(texts):
        raise UserError(
            f"There are {len(images):,} pictures and {len(texts):,} texts: give as many of the one as of the other, or "
            "a single one for all."
        )
    return Pairs(list(zip(images, texts, strict=True)), False)


def checked_text(text: object, what: str) -> str:
    """A question, statement or caption.

    Raises:
        UserError: it is no text, or there is nothing in it.
    """
    if not isinstance(text, str):
        raise UserError(f"The {what} is a {type(text).__name__}: give a text.")
    if not text.strip():
        raise UserError(f"The {what} is blank: give a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"The {what} {ascii(text)[:60]} is no valid Unicode text.") from None
    return text


# What a model says of a picture.


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


@dataclass(frozen=True)
class Answering:
    """Chooses one of its answers to a question about a picture (VQA, GQA)."""

    model: VinVLForAnswering
    tokenizer: PreTrainedTokenizerBase
    answers: tuple[str, ...]
    computing: Computing

    def __call__(self, images: Sequence[PlacedImage], questions: Sequence[str], top: int) -> list[Answer]:
        """The answers to B questions, each with the `top` best."""
        tokens = encode_texts(self.tokenizer, questions)
        examples = [one.region_text.example(tokens[i], one.image) for i, one in enumerate(images)]
        pad = SpecialTokens.of(self.tokenizer).pad_token_id

        def answer(chosen: list[Example]) -> list[Answer]:
            logits = logits_of(self.model, collate(chosen, pad_token_id=pad).to(self.computing.device))
            ranked = ranked_answers(logits, self.answers, self.model.config.loss_type, top)
            return [Answer(texts[0], scores[0], tuple(zip(texts, scores, strict=True))) for texts, scores in ranked]

        return self.computing.in_batches(examples, length_of, answer)


@dataclass(frozen=True)
class Judging:
    """Says how likely a statement about two pictures is true (NLVR2)."""

    model: VinVLForPairs
    tokenizer: PreTrainedTokenizerBase
    computing: Computing

    def __call__(self, images: Sequence[tuple[PlacedImage, PlacedImage]], statements: Sequence[str]) -> list[float]:
        """The probabilities that B statements are true, of which each has a left and a right picture."""
        tokens = encode_texts(self.tokenizer, statements)
        pairs = [statement_pair(tokens[i], left, right) for i, (left, right) in enumerate(images)]
        pad = SpecialTokens.of(self.tokenizer).pad_token_id

        def judge(chosen: list[Pair]) -> list[float]:
            logits = logits_of(self.model, collate_statements(chosen, pad).to(self.computing.device))
            return probabilities_of(logits, TRUE)

        return self.computing.in_batches(pairs, lambda pair: max(map(length_of, pair)), judge)


@dataclass(frozen=True)
class Matching:
    """Says how likely a text belongs to a picture (image-text retrieval)."""

    model: VinVLForAnswering
    tokenizer: PreTrainedTokenizerBase
    attention_type: str
    computing: Computing

    def __call__(self, images: Sequence[PlacedImage], texts: Sequence[str]) -> list[float]:
        """The probabilities that B texts match their pictures."""
        tokens = encode_texts(self.tokenizer, texts)
        examples = [pair_example(tokens[i], one) for i, one in enumerate(images)]
        pad = SpecialTokens.of(self.tokenizer).pad_token_id

        def match(chosen: list[Example]) -> list[float]:
            batch = collate_pairs(chosen, pad, self.attention_type).to(self.computing.device)
            pooled = self.model.bert(**batch.inputs(), only_first=True).pooler_output
            # Half precision would round many scores to the same number (see `PairScorer`).
            with torch.autocast(pooled.device.type, enabled=False):
                return probabilities_of(self.model.classifier(pooled.float()), MATCHED)

        return self.computing.in_batches(examples, length_of, match)


@dataclass(frozen=True)
class Captioning:
    """Writes captions.

    Attributes:
        constraints: None if the search has none.
    """

    model: VinVLForCaptioning
    tokenizer: PreTrainedTokenizerBase
    usage: Usage
    constraints: DetectedConstraints | None
    computing: Computing

    def __call__(self, images: Sequence[PlacedImage]) -> list[Caption]:
        """The captions of B pictures."""
        special, options = SpecialTokens.of(self.tokenizer), self.usage.decoding_options
        shift = tag_shift(options, self.usage.max_caption_tokens)

        def write(chosen: list[Example]) -> list[Caption]:
            batch = collate(chosen, pad_token_id=special.pad_token_id).to(self.computing.device)
            wanted = None
            if self.constraints is not None:
                wanted = [constraints_of(self.constraints, record["placed"]) for record in batch.records]
            written = generate_captions(
                self.model, context_of(batch, shift), options, special=special, constraints=wanted
            )
            found = n_best(written, lambda ids: caption_texts(self.tokenizer, ids))
            return [Caption(texts[0], scores[0], tuple(zip(texts, scores, strict=True))) for texts, scores in found]

        contexts = [caption_context(one, self.usage.caption_limits, {"placed": one}) for one in images]
        return self.computing.in_batches(contexts, length_of, write)


def constraints_of(constraints: DetectedConstraints, placed: PlacedImage) -> list[Constraint]:
    """What a picture's caption must name: things among its own regions, or among those of a store that is named."""
    source = placed.region_text.store
    regions = source.at(placed.image)
    if constraints.options.regions is None:
        return constraints.of_regions(regions, source.label_map.classes)
    return constraints([regions.image_id])[0]


def logits_of(model: VinVLForAnswering | VinVLForPairs, batch: Batch) -> Tensor:
    """(B, labels)"""
    logits: Tensor = model(**batch.inputs()).logits
    return logits


def probabilities_of(logits: Tensor, label: int) -> list[float]:
    """The softmax probability of one label in each row."""
    values: list[float] = logits.float().softmax(dim=-1)[:, label].tolist()
    return values


def length_of(example: Example) -> int:
    """Tokens and regions."""
    return len(example.input_ids) + len(example.regions)

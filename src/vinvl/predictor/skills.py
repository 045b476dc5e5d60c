"""What each kind of model can do with pictures and texts; inputs are put together by what training uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vinvl.data.batch import Batch, Example, collate
from vinvl.data.caption_datasets import caption_context
from vinvl.data.nlvr2 import Pair, collate_statements, statement_pair
from vinvl.data.region_text import PlacedImage
from vinvl.data.retrieval_pairs import MATCHED, collate_pairs, pair_example
from vinvl.data.text import SpecialTokens, encode_texts
from vinvl.models import VinVLForAnswering, VinVLForCaptioning, VinVLForPairs
from vinvl.models.generation import Constraint, generate_captions
from vinvl.models.generation import SpecialTokens as CaptionTokens
from vinvl.predictor.computing import Computing
from vinvl.predictor.results import Answer, Caption
from vinvl.tasks.answering import ranked_answers
from vinvl.tasks.caption_constraints import DetectedConstraints
from vinvl.tasks.caption_writing import caption_texts, context_of, n_best, tag_shift
from vinvl.trained.usage import Usage

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
        constraints: None where the search has none.
    """

    model: VinVLForCaptioning
    tokenizer: PreTrainedTokenizerBase
    usage: Usage
    constraints: DetectedConstraints | None
    computing: Computing

    def __call__(self, images: Sequence[PlacedImage]) -> list[Caption]:
        """The captions of B pictures."""
        pad = SpecialTokens.of(self.tokenizer).pad_token_id
        special, options = CaptionTokens.from_tokenizer(self.tokenizer), self.usage.decoding_options
        shift = tag_shift(options, self.usage.max_caption_tokens)

        def write(chosen: list[Example]) -> list[Caption]:
            batch = collate(chosen, pad_token_id=pad).to(self.computing.device)
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

"""The recordings of published caption decoding, and random small captioning models, for several test files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests import golden
from tests.models.samples import SIZES
from vinvl.models import VinVLConfig, VinVLForCaptioning, generate, load_published_state_dict
from vinvl.models import constrained as constrained_beam
from vinvl.models.captioning import seq2seq_attention_mask
from vinvl.models.config import SpecialTokens
from vinvl.models.decoding import (
    CaptionContext,
    DecodingOptions,
    GeneratedCaptions,
    adjusted_logits,
    sampling_logits,
)
from vinvl.models.word_steps import StepGraphs, WordStepper

RECORDED_SWITCHES = (  # of the recording's training or data, not of the model
    "img_feature_type",
    "freeze_embedding",
    "label_smoothing",
    "drop_worst_ratio",
    "drop_worst_after",
)
SPECIAL = SpecialTokens(cls_token_id=2, sep_token_id=3, pad_token_id=0, mask_token_id=4, unk_token_id=1)
MAX_LENGTH = 10  # of the recorded decoding
FIRST_TAG_POSITION = 14


def read_case(name: str) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Facts and tensors of a recording."""
    return golden.facts(f"oscar/{name}"), golden.tensors(f"oscar/{name}.io")


def recorded_model(facts: Mapping[str, Any], attention: str = "packed") -> VinVLForCaptioning:
    """A captioning model with the weights of a recording, in eval mode."""
    values = {key: value for key, value in facts["config"].items() if key not in RECORDED_SWITCHES}
    tied = values.pop("tie_weights", False)
    config = VinVLConfig(**values, tie_word_embeddings=tied)
    model = VinVLForCaptioning._from_config(config, attn_implementation=attention)
    model.load_state_dict(load_published_state_dict(golden.whole(f"oscar/{facts['weights']}")), strict=True)
    return model.eval()


@cache
def decoding_model(case: str = "caption_generate") -> VinVLForCaptioning:
    return recorded_model(read_case(case)[0])


def recorded_options(params: Mapping[str, Any], **others: int) -> DecodingOptions:
    """The options of a recorded decoding."""
    assert params["is_decode"] and params["od_labels_start_posid"] == FIRST_TAG_POSITION
    assert params["max_length"] == MAX_LENGTH and params["eos_token_ids"] == [SPECIAL.sep_token_id]
    for name, token in (("bos", "cls"), ("pad", "pad"), ("mask", "mask")):
        assert params[f"{name}_token_id"] == getattr(SPECIAL, f"{token}_token_id")
    names = ("max_length", "length_penalty", "repetition_penalty", "temperature", "top_k", "top_p")
    count = params["num_return_sequences"] * params["num_keep_best"]
    found = {name: params[name] for name in names} | {"num_return_sequences": count, "sample": params["do_sample"]}
    return DecodingOptions(**found, **others)


def recorded_context(tensors: Mapping[str, Tensor], mode: str = "test_od") -> CaptionContext:
    """The context of a recording, whose rows are [caption slots][tags], with a mask of who sees whom."""
    inputs = {name: tensors[f"inputs.{mode}.{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    text = inputs["input_ids"].shape[1]
    seen = inputs["attention_mask"][:, 0].bool()  # the begin token sees itself and the whole context
    tags = text - MAX_LENGTH
    assert (tensors[f"inputs.{mode}.masked_pos"] == 1).all()  # published: all places are marked at decoding
    return CaptionContext(
        tag_ids=inputs["input_ids"][:, MAX_LENGTH:],
        tag_position_ids=torch.arange(FIRST_TAG_POSITION, FIRST_TAG_POSITION + tags).expand(len(seen), -1),
        tag_token_type_ids=inputs["token_type_ids"][:, MAX_LENGTH:],
        tag_mask=seen[:, MAX_LENGTH:text],
        region_features=tensors[f"inputs.{mode}.img_feats"],
        region_mask=seen[:, text:],
    )


def random_model(seed: int, words: int = 23, scale: float = 0.6) -> VinVLForCaptioning:
    """A small captioning model that prefers different words for different images."""
    torch.manual_seed(seed)
    config = VinVLConfig(
        **SIZES | {"vocab_size": words, "max_position_embeddings": 32}, img_feature_dim=6, initializer_range=scale,
        use_img_layernorm=bool(seed % 2), tie_word_embeddings=False,
    )  # fmt: skip
    return VinVLForCaptioning._from_config(config, attn_implementation="packed").eval()


def random_context(tag_counts: list[int], region_counts: list[int], seed: int = 0, words: int = 23) -> CaptionContext:
    """Images with so many tags and regions; padding holds nonsense, which nobody may look at."""
    generator = torch.Generator().manual_seed(seed)
    images, tags, regions = len(tag_counts), max(tag_counts), max(region_counts)
    return CaptionContext(
        tag_ids=torch.randint(0, words, (images, tags), generator=generator),
        tag_position_ids=torch.arange(14, 14 + tags).expand(images, -1),
        tag_token_type_ids=torch.ones(images, tags, dtype=torch.long),
        tag_mask=torch.arange(tags) < torch.tensor(tag_counts)[:, None],
        region_features=3 * torch.randn(images, regions, 6, generator=generator),
        region_mask=torch.arange(regions) < torch.tensor(region_counts)[:, None],
    )


def one_image(context: CaptionContext, image: int) -> CaptionContext:
    """One image of a context, without any padding."""
    tags, regions = int(context.tag_mask[image].sum()), int(context.region_mask[image].sum())
    one = context.select(torch.tensor([image]))
    return CaptionContext(
        one.tag_ids[:, :tags],
        one.tag_position_ids[:, :tags],
        one.tag_token_type_ids[:, :tags],
        one.tag_mask[:, :tags],
        one.region_features[:, :regions],
        one.region_mask[:, :regions],
    )


@contextmanager
def reencoding(wanted: bool = True) -> Iterator[None]:
    """Within it captions are decoded without memory of earlier words, if that is wanted."""
    used = ReencodingStepper if wanted else WordStepper
    with mock.patch.object(generate, "WordStepper", used), mock.patch.object(constrained_beam, "WordStepper", used):
        yield


class ReencodingStepper:
    """Every step encodes caption, tags and regions from scratch, for each caption: slow, but plainly right."""

    def __init__(
        self, model: VinVLForCaptioning, context: CaptionContext, options: DecodingOptions, special: SpecialTokens,
        captions: int = 1, graphs: StepGraphs | None = None,
    ) -> None:  # fmt: skip
        self._model, self._context, self._options, self._special = model, context, options, special

    def next_logits(self, captions: Tensor) -> Tensor:
        masks = torch.full_like(captions[..., :1], self._special.mask_token_id)
        rows = torch.cat([captions, masks], dim=-1).flatten(0, 1)
        count, length = rows.shape
        context = self._context.select(torch.arange(count) // captions.shape[1])
        tags, regions = context.tag_ids.shape[1], context.region_features.shape[1]
        lengths = torch.full((count,), length)
        seen = seq2seq_attention_mask(
            lengths, torch.full_like(lengths, tags), torch.full_like(lengths, regions), length + tags, regions
        )
        exists = torch.cat([torch.ones(count, length, dtype=torch.bool), context.mask], dim=1)
        positions = torch.arange(length).expand(count, -1)
        output = self._model(
            torch.cat([rows, context.tag_ids], dim=1),
            token_type_ids=torch.cat([torch.zeros_like(rows), context.tag_token_type_ids], dim=1),
            attention_mask=seen & exists[:, None, :],
            region_features=context.region_features,
            position_ids=torch.cat([positions, context.tag_position_ids], dim=1),
            masked_positions=(torch.arange(length + tags) == length - 1).expand(count, -1),
        )
        logits = output.logits.view(*captions.shape[:2], -1).float()
        return adjusted_logits(logits, captions, self._options, self._special.sep_token_id)

    def choose(self, parents: Tensor) -> None:
        """It remembers no captions."""

    def remaining(self, is_open: Tensor) -> Tensor:
        return is_open.nonzero().squeeze(1)

    def keep_images(self, images: Tensor) -> None:
        self._context = self._context.select(images)


def word_log_probs(
    model: VinVLForCaptioning, context: CaptionContext, found: GeneratedCaptions, options: DecodingOptions
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities (B, N) of captions' words by re-encoding, and which (B, N) ended before max_length."""
    stepper, ids = ReencodingStepper(model, context, options, SPECIAL), found.ids
    sums = torch.zeros(found.lengths.shape)
    for length in range(1, ids.shape[-1]):
        logits = stepper.next_logits(ids[..., :length])
        if options.sample:
            logits = sampling_logits(logits, options)
        word = logits.log_softmax(dim=-1).gather(-1, ids[..., length, None]).squeeze(-1)
        sums = sums + torch.where(length < found.lengths, word, 0.0)
    return sums, (found.lengths > 0) & (found.lengths < ids.shape[-1])


def dense_table(machine: constrained_beam.ConstraintMachine, vocabulary: int) -> Tensor:
    """(S, S, V) bool: the machine as published, for every word of the vocabulary."""
    table = machine.otherwise[..., None].repeat(1, 1, vocabulary)
    table[..., machine.words] = machine.by_word
    return table

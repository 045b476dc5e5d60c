"""The recordings of published caption decoding, and random small captioning models, for several test files."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vinvl.models import VinVLConfig, VinVLForCaptioning, load_published_state_dict
from vinvl.models.generation import CaptionContext, SpecialTokens

GOLDEN = Path(__file__).parent / "data" / "golden" / "oscar"
RECORDED_SWITCHES = (  # of the recording's training or data, not of the model
    "img_feature_type",
    "freeze_embedding",
    "label_smoothing",
    "drop_worst_ratio",
    "drop_worst_after",
)
SPECIAL = SpecialTokens(begin=2, end=3, pad=0, mask=4)
MAX_LENGTH = 10  # of the recorded decoding
FIRST_TAG_POSITION = 14


def read_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a recording."""
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.io.safetensors")


def recorded_model(facts: dict[str, Any], attention: str = "packed") -> VinVLForCaptioning:
    """A captioning model with the weights of a recording, in eval mode."""
    values = {key: value for key, value in facts["config"].items() if key not in RECORDED_SWITCHES}
    tied = values.pop("tie_weights", False)
    config = VinVLConfig(**values, tie_word_embeddings=tied)
    model = VinVLForCaptioning._from_config(config, attn_implementation=attention)
    model.load_state_dict(load_published_state_dict(GOLDEN / facts["weights"]), strict=True)
    return model.eval()


@cache
def decoding_model() -> VinVLForCaptioning:
    return recorded_model(read_case("caption_generate")[0])


def recorded_context(tensors: dict[str, Tensor], mode: str = "test_od") -> CaptionContext:
    """The context of a recording, whose rows are [caption slots][tags], with a mask of who sees whom."""
    inputs = {name: tensors[f"inputs.{mode}.{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")}
    text = inputs["input_ids"].shape[1]
    seen = inputs["attention_mask"][:, 0].bool()  # the begin token sees itself and the whole context
    tags = text - MAX_LENGTH
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
        vocab_size=words,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=32,
        img_feature_dim=6,
        use_img_layernorm=bool(seed % 2),
        initializer_range=scale,
        tie_word_embeddings=False,
    )
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

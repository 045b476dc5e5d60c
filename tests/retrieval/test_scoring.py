"""Scores of blocks are those of single unpadded pairs, whatever was shared, sorted and padded on the way."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from tests.data.region_samples import image_regions, made_rows
from vinvl.data.batch import Example, collate
from vinvl.data.text import RaggedTokens
from vinvl.models import VinVLConfig, VinVLForAnswering, load_published_state_dict
from vinvl.models.config import SpecialTokens
from vinvl.retrieval.data import attention_mask_of, caption_first, parts_of
from vinvl.retrieval.scoring import PairScorer, caption_chunks

torch.set_num_threads(1)

SPECIAL = SpecialTokens(cls_token_id=1, sep_token_id=2, pad_token_id=0, mask_token_id=3, unk_token_id=4)
WIDTH = 10


def model_of(layers: int = 2, layer_norm: bool = True) -> VinVLForAnswering:
    torch.manual_seed(0)
    config = VinVLConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, img_feature_dim=WIDTH, num_labels=2, use_img_layernorm=layer_norm,
        initializer_range=0.3, loss_type="ce", attn_implementation="sdpa",
    )  # fmt: skip
    model = VinVLForAnswering(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODELS = {(layers, norm): model_of(layers, norm) for layers, norm in ((1, False), (3, True))}


def ragged(rows: Sequence[np.ndarray]) -> RaggedTokens:
    offsets = np.insert(np.cumsum([len(row) for row in rows]), 0, 0)
    return RaggedTokens(np.concatenate([np.zeros(0, dtype=np.int32), *rows]).astype(np.int32), offsets)


class World:
    """Ragged captions, tags and regions."""

    def __init__(self, captions: Sequence[int], tags: Sequence[int], regions: Sequence[int]) -> None:
        random = np.random.default_rng(sum(captions) + 7 * sum(tags) + 31 * sum(regions))
        self.captions = [random.integers(5, 50, size=count) for count in captions]
        self.tags = [random.integers(5, 50, size=count) for count in tags]
        self.regions = [made_rows(count, WIDTH, random) for count in regions]

    def scores(self, model: VinVLForAnswering, max_tokens: int, max_rows: int, attention_type: str) -> torch.Tensor:
        scorer = PairScorer(model, SPECIAL, max_tokens, max_rows, attention_type)
        with torch.inference_mode():
            regions = [torch.from_numpy(rows) for rows in self.regions]
            return scorer.score(self.tags, regions, ragged(self.captions), np.arange(len(self.captions)))

    def single(self, model: VinVLForAnswering, image: int, caption: int, max_tokens: int, attention_type: str) -> float:
        """The difference of the logits from a plain forward pass of one pair without padding."""
        ids, types = caption_first(self.captions[caption], self.tags[image], max_tokens=max_tokens, special=SPECIAL)
        batch = collate([Example(ids, types, image_regions(self.regions[image]))], pad_token_id=0)
        mask = attention_mask_of(parts_of(batch), attention_type)
        with torch.inference_mode():
            logits = model(
                batch.input_ids,
                token_type_ids=batch.token_type_ids,
                attention_mask=mask,
                region_features=batch.region_features,
            ).logits[0]
        return float(logits[1] - logits[0])


def assert_scores_of_single_pairs(
    world: World, model: VinVLForAnswering, max_tokens: int, max_rows: int, attention_type: str = "CLR"
) -> None:
    scores = world.scores(model, max_tokens, max_rows, attention_type)
    assert scores.shape == (len(world.tags), len(world.captions)) and scores.dtype == torch.float32
    for image, caption in np.ndindex(*scores.shape):
        expected = world.single(model, image, caption, max_tokens, attention_type)
        assert scores[image, caption].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("attention_type", ["CLR", "CL", "CR", "LR"])
@pytest.mark.parametrize(("layers", "norm"), list(MODELS))
@pytest.mark.parametrize("max_rows", [1, 4, 100])
def test_ragged_pairs(attention_type: str, layers: int, norm: bool, max_rows: int) -> None:
    # Captions over the limit, exactly at it, one below it; images without tags, without regions, without either.
    world = World([3, 12, 9, 10, 11, 1, 3, 3, 5], [4, 0, 30, 0, 1], [5, 3, 0, 0, 2])
    assert_scores_of_single_pairs(world, MODELS[layers, norm], 12, max_rows, attention_type)


counts = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), counts, st.data(), st.integers(3, 16), st.integers(1, 9))
def test_any_lengths(captions: list[int], tags: list[int], data: st.DataObject, max_tokens: int, max_rows: int) -> None:
    regions = data.draw(st.lists(st.integers(0, 5), min_size=len(tags), max_size=len(tags)))
    assert_scores_of_single_pairs(World(captions, tags, regions), MODELS[3, True], max_tokens, max_rows)


def test_pairs_of_like_lengths_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = MODELS[3, True], []
    pool = model.bert.pool_embedded

    def recorded(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        masks.append(attention_mask)
        return pool(hidden, attention_mask)

    monkeypatch.setattr(model.bert, "pool_embedded", recorded)
    World([4] * 6, [3, 9], [5, 2]).scores(model, 20, 6, "CLR")
    assert masks == [None, None]  # an image at a time: only one length each


def test_captions_of_one_length_stay_together() -> None:
    lengths = [5] * 7 + [6] * 9 + [7] * 4
    chunks = caption_chunks(
        ragged([np.full(length, 9) for length in lengths]), np.arange(20), max_rows=8, max_tokens=30, special=SPECIAL,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert [(len(chunk.columns), chunk.host_lengths.tolist()) for chunk in chunks] == [(7, [7]), (8, [8]), (5, [8, 9])]


def test_bfloat16_does_not_round_scores_together() -> None:
    world = World(list(range(2, 12)) * 12, [4], [5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = world.scores(MODELS[3, True], 20, 16, "CLR")
    assert scores.dtype == torch.float32
    assert len(torch.unique(scores)) > 0.9 * scores.numel()


@pytest.mark.parametrize("name", ["seqcls__retrieval_sfmx", "seqcls__retrieval_mask3d"])
def test_pooling_at_the_first_position_alone_gives_the_published_logits(name: str) -> None:
    facts = golden.facts(f"oscar/{name}")
    tensors = golden.tensors(f"oscar/{name}.io")
    recorded = {"output_hidden_states", "output_attentions", "img_feature_type"}
    config = VinVLConfig(**{key: value for key, value in facts["config"].items() if key not in recorded})
    model = VinVLForAnswering._from_config(config, attn_implementation="sdpa").eval()
    model.load_state_dict(load_published_state_dict(golden.whole(f"oscar/{facts['weights']}")))
    with torch.inference_mode():
        ids, types, features = (tensors[f"inputs.{name}"] for name in ("input_ids", "token_type_ids", "img_feats"))
        hidden = model.bert.embed(ids, types, features)
        logits = model.classifier(model.bert.pool_embedded(hidden, tensors["inputs.attention_mask"]))
    torch.testing.assert_close(logits, tensors["outputs.logits"], rtol=1e-5, atol=1e-5)

"""The dual encoder: vectors as of single unpadded texts, choices like the model's, and files that are its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.retrieval.samples import retrieval_data
from vinvl.models import VinVLConfig, VinVLForAnswering
from vinvl.retrieval.data import RetrievalCandidates, RetrievalPairs, caption_first
from vinvl.retrieval.dual_encoder import (
    VECTOR,
    DualEncoder,
    distillation_loss,
    distilled,
    images_of,
    read_dual_encoder,
    save_dual_encoder,
    vector_products,
    vectors_of,
)
from vinvl.retrieval.scoring import PairScorer
from vinvl.run.errors import UserError

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def candidates(demo_data: Path) -> RetrievalCandidates:
    data = retrieval_data(demo_data)
    data.setup("test")
    return data.candidates("test")


@pytest.fixture(scope="module")
def pairs(demo_data: Path) -> RetrievalPairs:
    data = retrieval_data(demo_data)
    data.setup("fit")
    found = data.datasets["train"]
    assert isinstance(found, RetrievalPairs)
    return found


@pytest.fixture(scope="module")
def config(candidates: RetrievalCandidates) -> VinVLConfig:
    words = 1 + max(
        int(candidates.tokens.values.max()), *(int(candidates.region_text.tag_ids(one).max()) for one in range(6))
    )
    return VinVLConfig(
        vocab_size=words + 100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=70, img_feature_dim=2054, num_labels=2, initializer_range=0.3, loss_type="ce",
        hidden_dropout_prob=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(config: VinVLConfig) -> VinVLForAnswering:
    torch.manual_seed(0)
    return VinVLForAnswering(config).eval()


@pytest.fixture
def encoder(config: VinVLConfig) -> DualEncoder:
    torch.manual_seed(1)
    return DualEncoder(config).eval()


def test_vectors_are_those_of_single_texts_and_images(encoder: DualEncoder, candidates: RetrievalCandidates) -> None:
    images, captions = vectors_of(encoder, candidates)
    assert (
        images.shape == (6, VECTOR) and captions.shape == (30, VECTOR) and images.dtype == captions.dtype == np.float32
    )
    text = candidates.region_text

    def alone(first: np.ndarray, tags: np.ndarray, regions: torch.Tensor | None) -> torch.Tensor:
        ids, types = caption_first(first, tags, max_tokens=70, special=text.special)
        given = [torch.from_numpy(one)[None] for one in (ids, types)]
        seen = torch.ones(1, len(ids) + (0 if regions is None else len(regions)))
        rows = None if regions is None else regions[None]
        pooled = encoder.bert(
            given[0], token_type_ids=given[1], attention_mask=seen, region_features=rows
        ).pooler_output
        head = encoder.caption if regions is None else encoder.image
        return torch.nn.functional.normalize(head(pooled)[0], dim=0)

    none = np.zeros(0, dtype=np.int64)
    with torch.inference_mode():
        for caption in range(30):
            np.testing.assert_allclose(captions[caption], alone(candidates.tokens[caption], none, None), atol=1e-5)
        tags, regions = images_of(text, candidates.images, CPU)
        for image in range(6):
            np.testing.assert_allclose(images[image], alone(none, tags[image], regions[image]), atol=1e-5)


def test_images_without_tags_or_regions_have_vectors(encoder: DualEncoder, demo_data: Path) -> None:
    data = retrieval_data(demo_data, use_tags=False, use_regions=False)
    data.setup("test")
    images, _ = vectors_of(encoder, data.candidates("test"))
    assert np.isfinite(images).all() and np.ptp(images, axis=0).max() < 1e-6


def test_products_are_of_the_images_and_captions_of_a_fold(candidates: RetrievalCandidates, demo_data: Path) -> None:
    data = retrieval_data(demo_data, test_candidates=3)
    data.setup("test")
    random = np.random.default_rng(0)
    images, captions = (random.normal(size=(size, 4)).astype(np.float32) for size in (6, 30))
    cheap = vector_products(images, captions)
    for fold in data.folds("test"):
        expected = images[fold.images[1:3]] @ captions[fold.captions].T
        np.testing.assert_allclose(cheap.of_fold(fold)(1, 3), expected, rtol=1e-6)
    assert cheap.what == vector_products(images.copy(), captions).what != vector_products(images + 1, captions).what


def test_it_learns_to_choose_as_the_model(
    model: VinVLForAnswering, pairs: RetrievalPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = PairScorer(model, pairs.region_text.special, 70, 64)
    before, state = model.state_dict(), torch.get_rng_state()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    captions = pairs.offsets[:-1]
    tags, regions = images_of(pairs.region_text, pairs.images, CPU)
    told: list[int] = []

    def trained(steps: int) -> DualEncoder:
        return distilled(model, scorer, pairs, steps=steps, seed=3, tell=told.append)

    def loss(student: DualEncoder) -> float:
        with torch.inference_mode():
            taught = scorer.score(tags, regions, pairs.tokens, captions)
            of_images = student.images(tags, regions, pairs.region_text)
            of_captions = student.captions(pairs.tokens, captions, pairs.region_text)
            return float(distillation_loss(student.log_scale.exp() * of_images @ of_captions.T, taught))

    student = trained(40)
    assert told == list(range(1, 41)) and not student.training
    assert loss(student) < 0.7 * loss(trained(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    again = trained(40).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in student.state_dict().items())
    of_model = loss(student)
    score = scorer.score
    monkeypatch.setattr(scorer, "score", lambda *given: torch.zeros_like(score(*given)))
    of_nobody = trained(40)
    monkeypatch.undo()
    assert of_model < 0.85 * loss(of_nobody)  # of a model that finds all pairs alike


def test_the_loss_is_nothing_where_the_choices_are_the_same() -> None:
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert float(distillation_loss(scores + 7, scores)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(scores.T, scores)) > 0.1


def test_a_file_gives_the_same_vectors(
    encoder: DualEncoder, config: VinVLConfig, candidates: RetrievalCandidates, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "dual.safetensors"
    save_dual_encoder(encoder, path, "a" * 24)
    for ours, read in zip(
        vectors_of(encoder, candidates), vectors_of(read_dual_encoder(path, config, "a" * 24), candidates), strict=True
    ):
        np.testing.assert_array_equal(ours, read)
    with pytest.raises(UserError, match="is a dual encoder of another model: pass"):
        read_dual_encoder(path, config, "b" * 24)


def without_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def one_missing(path: Path) -> None:
    tensors = load_file(path)
    del tensors["caption.weight"]
    save_file(tensors, path, {"format": "vinvl dual encoder 1", "model": "a" * 24})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "is not a sound safetensors file"),
        (lambda path: path.write_bytes(b""), "is not a sound safetensors file"),
        (lambda path: path.unlink(), "There is no weight file"),
        (without_metadata, r"is no dual encoder: pass data\.rerank_by=dual_encoder"),
        (one_missing, "has no weight 'caption.weight'"),
    ],
)
def test_other_files_are_refused(
    encoder: DualEncoder, config: VinVLConfig, tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    path = tmp_path / "dual.safetensors"
    save_dual_encoder(encoder, path, "a" * 24)
    damage(path)
    with pytest.raises(UserError, match=sentence):
        read_dual_encoder(path, config, "a" * 24)


def test_a_checkpoint_is_no_dual_encoder(config: VinVLConfig, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="is no dual encoder"):
        read_dual_encoder(path, config, "a" * 24)


def test_vectors_without_order_are_refused(encoder: DualEncoder, candidates: RetrievalCandidates) -> None:
    with torch.no_grad():
        encoder.image.bias[0] = torch.nan
    with pytest.raises(UserError, match="vectors that are NaN or infinite"):
        vectors_of(encoder, candidates)

"""The captioning model, its loss and its mask against recordings of the published ones; saving, tying, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tests import golden
from tests.models.caption_cases import random_model, read_case, recorded_model
from tests.models.samples import assert_gradients, initialise_with_report
from vinvl.models import VinVLConfig, VinVLForCaptioning, load_published_state_dict
from vinvl.models.captioning import masked_word_loss, seq2seq_attention_mask
from vinvl.run.errors import UserError

torch.set_num_threads(1)

CASES = ("plain", "smooth_tied_frozen", "smooth_dropworst", "nood")
CAPTION_SLOTS = 14  # of the recorded training data: the caption is padded to it, then come the tags


def true_words(tensors: dict[str, Tensor]) -> Tensor:
    """The recorded ids are padded per caption; the real ones in row-major order."""
    counts = tensors["inputs.masked_pos"].sum(dim=1)
    ids = tensors["inputs.masked_ids"]
    return ids[torch.arange(ids.shape[1]) < counts[:, None]]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_logits_losses_and_gradients(name: str, attention: str) -> None:
    facts, tensors = read_case(f"caption_train__{name}")
    settings_ = facts["config"]
    model = recorded_model(facts, attention)
    if settings_.get("freeze_embedding"):
        model.freeze_word_embeddings()
    losses = []
    for call in (1, 2):
        is_late = call > settings_.get("drop_worst_after", 0)
        output = model(
            tensors["inputs.input_ids"],
            token_type_ids=tensors["inputs.token_type_ids"],
            attention_mask=tensors["inputs.attention_mask"],
            region_features=tensors["inputs.img_feats"],
            masked_positions=tensors["inputs.masked_pos"].bool(),
            masked_ids=true_words(tensors),
            label_smoothing=settings_.get("label_smoothing", 0.0),
            drop_worst_ratio=settings_.get("drop_worst_ratio", 0.0) if is_late else 0.0,
        )
        losses.append(output.loss)
    torch.testing.assert_close(output.logits, tensors["outputs.class_logits"], rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(losses[0], tensors["outputs.loss_call1"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[1], tensors["outputs.loss_call2"], rtol=1e-5, atol=0)
    if name == "smooth_dropworst":
        assert losses[1] < losses[0] - 0.1

    losses[1].backward()  # the recorded gradients are the second call's
    # None of the pooler, which is not used, and of a frozen embedding.
    assert_gradients(model, facts["meta"]["grad_norms"], least=2e-6)


def test_drop_worst_gradients_reach_the_kept_words_only() -> None:
    torch.manual_seed(0)
    logits = torch.randn(10, 7, requires_grad=True)
    ids = torch.randint(7, (10,))
    masked_word_loss(logits, ids, drop_worst_ratio=0.35).backward()
    each = F.cross_entropy(logits, ids, reduction="none")
    kept = logits.grad.abs().sum(dim=1) > 0  # type: ignore[union-attr]  # just computed
    assert kept.sum() == int(10 * 0.65)
    assert each[kept].max() < each[~kept].min()
    torch.testing.assert_close(masked_word_loss(logits[:1], ids[:1], drop_worst_ratio=0.9), each[0])  # one word stays


@given(
    count=st.integers(1, 6),
    words=st.integers(3, 9),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_smoothed_loss_is_the_divergence_from_the_smoothed_target(
    count: int, words: int, smoothing: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, ids = torch.randn(count, words, generator=generator), torch.randint(words, (count,), generator=generator)
    target = torch.full((count, words), smoothing / (words - 1)).scatter(1, ids[:, None], 1 - smoothing)
    expected = F.kl_div(logits.log_softmax(dim=1), target, reduction="batchmean")
    torch.testing.assert_close(masked_word_loss(logits, ids, smoothing), expected, rtol=1e-5, atol=1e-6)


def test_loss_refusals() -> None:
    logits, ids = torch.zeros(2, 5), torch.tensor([1, 2])
    with pytest.raises(UserError, match="one id per row"):
        masked_word_loss(logits, ids[:1])
    with pytest.raises(UserError, match="at least one word"):
        masked_word_loss(logits[:0], ids[:0])
    with pytest.raises(UserError, match="2 masked positions but 1 masked ids"):
        random_model(0)(
            torch.ones(1, 3, dtype=torch.long),
            masked_positions=torch.tensor([[True, False, True]]),
            masked_ids=torch.tensor([4]),
        )


class TestMask:
    def lengths(self, mask: Tensor, token_type_ids: Tensor, input_ids: Tensor) -> tuple[int, int, int]:
        """Caption, tag and region lengths of a recorded padded row."""
        text = len(input_ids)
        caption = int((input_ids[:CAPTION_SLOTS] != 0).sum())
        return caption, int((input_ids[CAPTION_SLOTS:] != 0).sum()), int(mask[0, text:].sum())

    @pytest.mark.parametrize("mode", ["train_od", "train_nood", "train_heavy"])
    @pytest.mark.parametrize("row", range(5))
    def test_equals_the_recorded_mask_once_padding_is_put_back(self, mode: str, row: int) -> None:
        _, tensors = read_case("data__caption_tensorizer")
        recorded, ids, segments = (
            tensors[f"outputs.{mode}.{row}.{name}"] for name in ("attention_mask", "input_ids", "segment_ids")
        )
        caption, tags, regions = self.lengths(recorded, segments, ids)
        text, slots = len(ids), len(recorded)
        compact = seq2seq_attention_mask(
            torch.tensor([caption]), torch.tensor([tags]), torch.tensor([regions]), caption + tags, regions
        )[0]
        places = torch.cat(
            [torch.arange(caption), torch.arange(tags) + CAPTION_SLOTS, torch.arange(regions) + text]
        )  # of the compact row's slots in the padded one
        expanded = torch.zeros(slots, slots, dtype=torch.bool)
        expanded[places[:, None], places[None, :]] = compact
        assert torch.equal(expanded, recorded.bool())

    @given(
        rows=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=4),
        extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    )
    @settings(max_examples=60, deadline=None)
    def test_by_the_rule(self, rows: list[tuple[int, int, int]], extra: tuple[int, int]) -> None:
        text = max(caption + tags for caption, tags, _ in rows) + extra[0]
        regions = max(count for *_, count in rows) + extra[1]
        mask = seq2seq_attention_mask(*torch.tensor(rows).T, text, regions)
        for image, (caption, tags, count) in enumerate(rows):
            kinds = "c" * caption + "t" * tags + "." * (text - caption - tags) + "r" * count + "." * (regions - count)
            for query, asks in enumerate(kinds):
                for key, answers in enumerate(kinds):
                    sees = asks != "." and (answers in "tr" or (asks == answers == "c" and key <= query))
                    assert mask[image, query, key] == sees

    def test_compact_rows_give_the_logits_of_padded_ones(self) -> None:
        """Moving the tags up to the caption changes nothing, as long as they keep their positions."""
        facts, tensors = read_case("caption_train__plain")
        model = recorded_model(facts)
        ids, segments = tensors["inputs.input_ids"], tensors["inputs.token_type_ids"]
        captions, tag_counts = (ids[:, :CAPTION_SLOTS] != 0).sum(1), (ids[:, CAPTION_SLOTS:] != 0).sum(1)
        region_counts = tensors["inputs.attention_mask"][:, 0, ids.shape[1] :].sum(1).long()
        is_real = ids != 0
        is_real[:, 0] = True
        order = (~is_real).long().argsort(dim=1, stable=True)[:, : int((captions + tag_counts).max())]
        masked = tensors["inputs.masked_pos"].bool().gather(1, order)
        output = model(
            ids.gather(1, order),
            token_type_ids=segments.gather(1, order),
            position_ids=order,
            attention_mask=seq2seq_attention_mask(
                captions, tag_counts, region_counts, order.shape[1], tensors["inputs.img_feats"].shape[1]
            ),
            region_features=tensors["inputs.img_feats"],
            masked_positions=masked,
            masked_ids=true_words(tensors),
        )
        assert order.shape[1] < ids.shape[1] or (captions < CAPTION_SLOTS).any()
        torch.testing.assert_close(output.logits, tensors["outputs.class_logits"], rtol=1e-5, atol=5e-5)


def tying_config(tied: bool) -> VinVLConfig:
    values = dict(read_case("caption_generate")[0]["config"])
    return VinVLConfig(
        **{k: v for k, v in values.items() if k not in ("tie_weights", "img_feature_type")}, tie_word_embeddings=tied
    )


def started(folder: Path, weights: dict[str, Tensor], tied: bool, strict_head: bool = True) -> tuple[Any, Any]:
    """A captioning model that starts from these weights, and the report."""
    save_file(weights, folder / "model.safetensors")
    return initialise_with_report(VinVLForCaptioning, tying_config(tied), folder, strict_head=strict_head)


def test_tied_models_share_one_parameter_and_freezing_keeps_it_alone() -> None:
    tied, free = VinVLForCaptioning(tying_config(True)), VinVLForCaptioning(tying_config(False))
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight
    assert free.cls.predictions.decoder.weight is not free.bert.embeddings.word_embeddings.weight
    assert "cls.predictions.decoder.weight" not in dict(tied.named_parameters())
    tied.freeze_word_embeddings()
    frozen = [name for name, parameter in tied.named_parameters() if not parameter.requires_grad]
    unused = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    assert frozen == ["bert.embeddings.word_embeddings.weight", *unused]


def test_models_start_from_files_that_tie_otherwise(tmp_path: Path) -> None:
    embeddings, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    weights = load_published_state_dict(golden.whole("oscar/caption_train__tied.weights.safetensors"))
    del weights[decoder]
    model, report = started(tmp_path, weights, tied=False)
    assert torch.equal(model.cls.predictions.decoder.weight, weights[embeddings])
    assert torch.equal(model.cls.predictions.bias, weights["cls.predictions.bias"])
    assert not report.missing and not report.unused

    weights = load_published_state_dict(golden.whole("oscar/caption_gen.weights.safetensors"))
    assert not torch.equal(weights[decoder], weights[embeddings])
    model, report = started(tmp_path, weights, tied=True)
    assert not report.missing and not report.unused
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, weights[embeddings])
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight

    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("bert.")}
    for tied in (True, False):  # the head is new
        _, report = started(tmp_path, encoder, tied, strict_head=False)
        assert "cls.predictions.bias" in report.missing and not report.resized
        assert (decoder in report.missing) == (not tied)

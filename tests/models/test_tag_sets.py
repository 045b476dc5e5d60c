"""Hidden tags matched as a set: the best of all ways, whatever the order, and plain cross-entropy for one."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vinvl.models import VinVLConfig, VinVLForPreTraining
from vinvl.models.pretraining import masked_token_losses
from vinvl.models.tag_sets import matched_tags

torch.set_num_threads(1)
WORDS = 9


def tag_set_loss(logits: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """(M,) the losses that the model adds up."""
    most = int(torch.bincount(rows).max()) if len(rows) else 0
    return masked_token_losses(logits, matched_tags(logits, ids, rows, most))


@st.composite
def guesses(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (M, V), hidden tokens and their rows; a token may be hidden twice in a row."""
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
    rows = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    logits = draw(st.sampled_from([0.1, 3.0, 40.0])) * torch.randn(len(rows), WORDS, generator=generator)
    return logits, torch.randint(0, WORDS, (len(rows),), generator=generator), rows


@given(guesses())
def test_no_other_way_costs_less(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, ids, rows = case
    matched, p = matched_tags(logits, ids, rows, most=7), logits.softmax(dim=1)
    for row in rows.unique():
        places = (rows == row).nonzero().flatten().tolist()
        assert sorted(matched[places].tolist()) == sorted(ids[places].tolist())
        ways = [sum(1 - p[place, token].item() for place, token in zip(places, way, strict=True))
                for way in permutations(ids[places].tolist())]  # fmt: skip
        assert sum(1 - p[place, matched[place]].item() for place in places) == pytest.approx(min(ways), abs=1e-5)


@given(guesses(), st.randoms(use_true_random=False))
def test_the_order_of_the_tags_means_nothing(case: tuple[Tensor, Tensor, Tensor], random: object) -> None:
    logits, ids, rows = case
    order = torch.argsort(rows * 100 + torch.tensor([random.randrange(100) for _ in rows]))  # type: ignore[attr-defined]
    same = tag_set_loss(logits, ids[order], rows).sum()
    assert same.item() == pytest.approx(tag_set_loss(logits, ids, rows).sum().item(), rel=1e-4, abs=1e-4)


def test_ways_that_are_as_good_are_told_apart_by_the_tokens_alone() -> None:
    logits, rows = torch.zeros(3, WORDS), torch.zeros(3, dtype=torch.long)
    logits[0, 1] = 1.0  # so that it matters which position gets which
    orders = [torch.tensor(order) for order in permutations((3, 5, 7))]
    assert len({tuple(matched_tags(logits, ids, rows, 3).tolist()) for ids in orders}) == 1


def test_one_hidden_token_is_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(6, WORDS, generator=generator), torch.randint(0, WORDS, (6,), generator=generator)
    monkeypatch.setattr("vinvl.models.tag_sets.assignment", None)  # nobody is asked
    assert torch.equal(tag_set_loss(logits, ids, torch.arange(6)), F.cross_entropy(logits, ids, reduction="none"))
    assert tag_set_loss(logits[:0], ids[:0], ids[:0]).shape == (0,)


def test_gradients_are_those_of_the_loss_at_the_matching() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, WORDS, generator=generator, requires_grad=True)
    ids, rows = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 0, 0, 2])
    matched = matched_tags(logits, ids, rows, most=3)
    assert not matched.requires_grad
    (found,) = torch.autograd.grad(tag_set_loss(logits, ids, rows).sum(), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, matched, reduction="sum"), logits)
    assert torch.equal(found, plain)


def test_weights_that_are_no_numbers_reach_the_loss() -> None:
    loss = tag_set_loss(torch.full((2, WORDS), float("nan")), torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert loss.isnan().all()


def test_the_model_matches_where_it_is_told_to() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = VinVLForPreTraining(VinVLConfig(**sizes, intermediate_size=16, img_feature_dim=12, num_labels=2)).eval()
    inputs = torch.randint(5, 20, (3, 6)), {"region_features": torch.randn(3, 2, 12)}
    hidden = torch.zeros(3, 6, dtype=torch.bool)
    hidden[0, [1, 4]] = hidden[2, [0, 1, 5]] = True
    asked = {"masked_positions": hidden, "masked_ids": torch.tensor([7, 8, 9, 10, 11])}
    as_set, in_order = (model(inputs[0], **asked, **inputs[1], match_tags=match) for match in (True, False))
    rows = torch.tensor([0, 0, 2, 2, 2])
    assert torch.equal(in_order.masked_ids, asked["masked_ids"])
    assert torch.equal(as_set.masked_ids, matched_tags(as_set.logits, asked["masked_ids"], rows, 6))
    assert as_set.masked_word_loss.item() == pytest.approx(
        tag_set_loss(as_set.logits, asked["masked_ids"], rows).mean().item()
    )

"""The published in-training score: soft target of the arg-max answer."""

import pytest
import torch

from tests import golden
from vinvl.vqa.accuracy import SoftTargetScore


def test_recorded_score_of_the_published_code() -> None:
    tensors = golden.tensors("oscar/metric_vqa_score.io")
    recorded = golden.facts("oscar/metric_vqa_score")["meta"]["mean"]
    metric = SoftTargetScore()
    metric.update(tensors["inputs.logits"], tensors["inputs.targets"])
    assert metric.compute().item() == pytest.approx(100 * recorded, rel=1e-6)
    for row, expected in enumerate(tensors["outputs.per_question"].tolist()):
        metric.reset()
        metric.update(tensors["inputs.logits"][row : row + 1], tensors["inputs.targets"][row : row + 1])
        assert metric.compute().item() == 100 * expected == 100 * tensors["outputs.scores"][row].sum().item()


def test_batches_and_ranks_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1000, 12, generator=generator)
    scores = torch.tensor([0.0, 0.3, 0.6, 0.9, 1.0, 1 / 3, 2 / 3])
    targets = scores[torch.randint(0, 7, (1000, 12), generator=generator)]
    whole = SoftTargetScore()
    whole.update(logits, targets)
    first, second = SoftTargetScore(), SoftTargetScore()
    for index, rows in enumerate(torch.randperm(1000, generator=generator).split(37)):
        (first if index % 3 else second).update(logits[rows], targets[rows])
    first.merge_state(second)
    assert first.compute().item() == whole.compute().item()


def test_half_precision_logits_and_rows_without_targets() -> None:
    metric = SoftTargetScore()
    metric.update(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.bfloat16), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert metric.compute().item() == 50.0
    assert metric.total.dtype == torch.float64


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        SoftTargetScore().update(torch.zeros(2, 3), torch.zeros(2, 4))

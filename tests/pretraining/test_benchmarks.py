"""The benchmarks of pre-training: that what they compare is the same work, and that they run."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Any]:
    """The modules `pretraining_step` and `pretraining_feed`, which import each other by their bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import pretraining_feed
        import pretraining_step

        yield pretraining_step, pretraining_feed
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def step(benchmarks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One layer of the base size over a small made corpus."""
    steps, feed = benchmarks
    data = feed.make_data(tmp_path_factory.mktemp("made"), rows=40, images=10, tags=(10, 30), batch_size=4)
    made = steps.Step(data, 1, torch.device("cpu"))
    made.model.eval()
    return made


def test_all_ways_have_the_same_loss(benchmarks: Any, step: Any) -> None:
    steps, feed = benchmarks
    batch = feed.dataset_of(step.data).collate([feed.Draw(0, index) for index in (3, 1, 30)])
    wide = steps.pad_to_limits(batch)
    assert wide.attention_mask.shape == (3, 85) and wide.region_features.shape[1] == 50
    assert wide.attention_mask.sum() == batch.attention_mask.sum()
    assert wide.masked_positions.sum() == batch.masked_positions.sum() == len(batch.labels) > 0
    with torch.no_grad():
        ours = step.loss_of(batch, head_everywhere=False)
        others = [step.loss_of(wide, False), step.loss_of(batch, True), step.loss_of(wide, True)]
        fewer = step.loss_of(replace(batch, labels=batch.labels.flip(0)), False)
    assert torch.allclose(torch.stack(others), ours, atol=1e-4) and not torch.allclose(fewer, ours, atol=1e-4)


def test_a_row_made_alone_is_like_one_of_a_batch(benchmarks: Any, step: Any) -> None:
    _, feed = benchmarks
    draws = [feed.Draw(0, index) for index in range(40)]
    dataset = feed.dataset_of(step.data)
    alone, ours = feed.row_by_row(dataset, draws), dataset.collate(draws)
    assert torch.equal(alone.region_features, ours.region_features)
    assert alone.input_ids.shape == ours.input_ids.shape
    shares = [batch.masked_positions.float().mean().item() for batch in (alone, ours)]
    assert shares[0] == pytest.approx(shares[1], rel=0.3)


def test_a_turn_counts_its_own_steps_alone(benchmarks: Any, step: Any) -> None:
    steps, _ = benchmarks
    turns = steps.Turns(steps.endless(step.data))
    turns.take(step, steps.WAYS[0], untimed=1, timed_steps=2)
    assert turns.samples == 8 and 0 < turns.taking < turns.seconds
    assert 8 * 40 < turns.slots <= 8 * 85
    share = turns.flops / turns.slots / steps.StepCosts.of(step.model.config).per_token
    assert 0.9 < share < 1.3  # regions and words cost something too, padding nothing


@pytest.mark.slow
def test_they_run(benchmarks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps, feed = benchmarks
    threads = torch.get_num_threads()
    small = ["--layers", "1", "--batch-size", "2", "--rounds", "1", "--turns", "1", "--threads", "1", "--rows", "40"]
    small += ["--ways", "0", "3"]
    try:
        steps.main([*small, "--images", "10", "--workers", "1", "--device", "cpu"])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    titles = [way.title for way in steps.WAYS if f"\n{way.title} " in printed]
    assert titles == ["ours", "published way"] and "1 data workers" in printed
    sizes = ["--rows", "200", "--images", "10", "--batches", "2", "--passes", "1", "--batch-size", "16"]
    feed.main([*sizes, "--workers", "0", "1", "--paired"])
    lines = capsys.readouterr().out.splitlines()
    rates = [line.split() for line in lines if line.split()[0] in "01"]
    assert [float(rate[2]) > 0 for rate in rates] == [False, True], lines  # makers' time, without and with a worker
    assert sum(line.startswith(("whole batches", "row by row")) for line in lines) == 4

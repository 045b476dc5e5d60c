"""The metrics gathered by two real processes, one of which may have seen nothing."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vinvl.exact import ExactMean
from vinvl.vqa.accuracy import SoftTargetScore, VQAAccuracy

NUM_RANKS = 2


def computed(rows: list[int]) -> dict[str, float]:
    """All three metrics over some of seven fixed questions, gathered over the ranks if there are any."""
    accuracy, score, mean = VQAAccuracy(), SoftTargetScore(), ExactMean()
    for row in rows:
        answers = [["yes"] * (row + 1) + ["no"] * (9 - row), ["red"] * (row + 1)][row % 2]
        accuracy.update([answers[0]], [answers], ["yes/no" if row % 2 == 0 else f"kind {row}"], [f"type {row}"])
        score.update(torch.eye(7)[row : row + 1], torch.full((1, 7), 0.1 * row))
        mean.update(torch.tensor([0.1 * row, 1e8]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method")
        results = accuracy.compute() | {"score": score.compute(), "mean": mean.compute()}
    return {name: value.item() for name, value in results.items()}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    shares = [[[], list(range(7))], [[6, 2, 1], [5, 0, 4, 3]]]
    torch.save([computed(share[rank]) for share in shares], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_give_the_result_of_one(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=NUM_RANKS)
    expected = computed(list(range(7)))
    assert len(expected) == 1 + 4 + 7 + 2
    for rank in range(NUM_RANKS):
        assert torch.load(tmp_path / f"rank{rank}.pt") == [expected, expected]

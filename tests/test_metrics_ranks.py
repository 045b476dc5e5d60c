"""All metrics that tasks share or own, gathered by two real processes, one of which may have seen nothing."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vinvl.captioning.scores import CaptionTexts, evaluate_captions
from vinvl.exact import AnswersSeen, CategoryAccuracy, ExactMean
from vinvl.nlvr2.metric import PairAccuracy
from vinvl.retrieval.recall import RanksSeen, recall
from vinvl.vqa.accuracy import SoftTargetScore

NUM_RANKS = 2
NUM_ROWS = 6
CAPTIONS = ["a cat", "a red bus on a street", "two dogs play", "a café at night", "a man rides a horse", "some food"]


def computed(rows: list[int], repeated: list[int]) -> dict[str, float]:
    """Each metric over some of six rows; rows of `repeated` are given again to those that count each once."""
    captions, ranks, pairs, typed = CaptionTexts(), RanksSeen(), PairAccuracy(), CategoryAccuracy()
    score, mean, answers = SoftTargetScore(), ExactMean(), AnswersSeen(2)
    for row in [*rows, *repeated]:
        captions.update([row], [CAPTIONS[row]], [[CAPTIONS[row] + " there", CAPTIONS[(row + 1) % NUM_ROWS]]])
        best = torch.tensor([[row + 7, 1]]), torch.tensor([[0.5, row / 8]])
        answers.update([{"index": row}], [row + 7], [row / 3], best)
        pairs.update([f"dev-{row // 2}-{row % 2}-0"], torch.tensor([row > 2]))
    for row in rows:
        ranks.update(np.array([row]))
        typed.update([(category, row + 1, int(row % 3 == 0), 1) for category in ("overall", f"type {row}")])
        score.update(torch.eye(7)[row : row + 1], torch.full((1, 7), 0.1 * row))
        mean.update(torch.tensor([0.1 * row, 1e8]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method")
        texts, references = captions.compute()
        results = pairs.compute() | typed.compute()
        results |= {"score": score.compute(), "mean": mean.compute()}
        seen = answers.compute()
    subset = evaluate_captions({row: texts[row] for row in (0, 3, 4)}, references).corpus
    found = evaluate_captions(texts, references).corpus | {f"subset {name}": value for name, value in subset.items()}
    found |= recall(ranks.compute().numpy())
    # Each once and in order, whoever has seen it, and however often.
    found |= {
        f"answer {place}": 1000 * row + 100 * number + points + sum(best)
        for place, (row, number, points, *best) in enumerate(seen.tolist())
    }
    return found | {name: value.item() for name, value in results.items()}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    shares = [[[], list(range(NUM_ROWS))], [[5, 2, 1], [0, 4, 3]]]
    repeats = [[[], [3]], [[0, 5], [5, 1, 1]]]
    results = [computed(share[rank], again[rank]) for share, again in zip(shares, repeats, strict=True)]
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_give_the_result_of_one(tmp_path: Path) -> None:
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=NUM_RANKS, start_method="fork")
    expected = computed(list(range(NUM_ROWS)), [])
    assert len(expected) == 7 + 7 + 5 + NUM_ROWS + 2 + 1 + NUM_ROWS + 2
    assert expected["answer 4"] == 4000 + 1100 + 4 / 3 + (11 + 1 + 0.5 + 0.5)
    assert 0 < expected["CIDEr"] != expected["subset CIDEr"] > 0
    for rank in range(NUM_RANKS):
        assert torch.load(tmp_path / f"rank{rank}.pt") == [expected, expected]

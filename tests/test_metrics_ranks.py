"""Caption, retrieval, NLVR2 and GQA metrics gathered by two real processes, one of which may have seen nothing."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vinvl.captioning.scores import CaptionTexts, evaluate_captions
from vinvl.gqa.metric import TypedAccuracy
from vinvl.nlvr2.metric import PairAccuracy
from vinvl.retrieval.recall import RecallAtK

NUM_RANKS = 2
NUM_ROWS = 6
CAPTIONS = ["a cat", "a red bus on a street", "two dogs play", "a café at night", "a man rides a horse", "some food"]


def computed(rows: list[int], repeated: list[int]) -> dict[str, float]:
    """All four metrics over some of six rows; rows of `repeated` are given again to those that count each once."""
    captions, recall, pairs, typed = CaptionTexts(), RecallAtK(), PairAccuracy(), TypedAccuracy()
    for row in [*rows, *repeated]:
        captions.update([row], [CAPTIONS[row]], [[CAPTIONS[row] + " there", CAPTIONS[(row + 1) % NUM_ROWS]]])
        pairs.update([f"dev-{row // 2}-{row % 2}-0"], torch.tensor([row > 2]), torch.tensor([True]))
    for row in rows:
        recall.update(torch.tensor([row]))
        typed.update(torch.tensor([row % 3 == 0]), [["query", "verify"][row % 2]], [f"type {row}"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method")
        texts, references = captions.compute()
        results = recall.compute() | pairs.compute() | typed.compute()
    subset = evaluate_captions({row: texts[row] for row in (0, 3, 4)}, references).corpus
    found = evaluate_captions(texts, references).corpus | {f"subset {name}": value for name, value in subset.items()}
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
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=NUM_RANKS)
    expected = computed(list(range(NUM_ROWS)), [])
    assert len(expected) == 7 + 7 + 5 + 2 + 3 + 2 + NUM_ROWS
    assert 0 < expected["CIDEr"] != expected["subset CIDEr"] > 0
    for rank in range(NUM_RANKS):
        assert torch.load(tmp_path / f"rank{rank}.pt") == [expected, expected]

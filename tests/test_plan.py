"""What a run will cost: the arithmetic by hand, the measured parts on tiny models, and the door."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.door_in_process import TINY, refused_in_process, run_in_process
from vinvl.plan import number_of_devices, plan, run_length, size
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError

PRETRAINING = ["task=pretraining", *TINY]


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder below, with what changes when it is written."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, (6, 12, 3)),
        # Two whole epochs of 2 updates, and one update of the third.
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 2}, (5, 10, 2)),
        # An epoch of 4 batches is 2 updates of 3 and of 1 batch.
        ({"max_steps": 4, "max_epochs": -1, "accumulate_grad_batches": 3}, (4, 8, 2)),
        ({"max_steps": 5, "max_epochs": 1}, (4, 4, 1)),  # whichever comes first
        ({"max_epochs": 1, "limit_train_batches": 3}, (3, 3, 1)),
        ({"max_epochs": 1, "limit_train_batches": 0.5}, (2, 2, 1)),
        ({"max_steps": 5, "max_epochs": None}, (5, 5, 1)),
        ({"max_epochs": 3, "val_check_interval": 0.5}, (12, 12, 6)),
        ({"max_epochs": 3, "val_check_interval": 5, "check_val_every_n_epoch": None}, (12, 12, 2)),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, (12, 12, 1)),
    ],
)
def test_length_of_a_run(trainer: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert run_length(trainer, 4) == expected
    with pytest.raises(UserError, match="no end"):
        run_length({**trainer, "max_epochs": -1, "max_steps": -1}, 10)


DEVICES: list[tuple[dict[str, Any], int]] = [
    ({"devices": 8, "num_nodes": 4}, 32), ({"devices": [0, 3]}, 2), ({"devices": "2"}, 2), ({"devices": "0,1"}, 2),
    ({}, 1),
]  # fmt: skip


def test_devices_on_all_nodes_and_numbers_for_people() -> None:
    assert [number_of_devices(trainer) for trainer, _ in DEVICES] == [devices for _, devices in DEVICES]
    assert [size(n) for n in (1_500, 2.5e9, 3e12)] == ["1.5 kB", "2.5 GB", "3 TB"]


@pytest.mark.slow
def test_the_plan_of_a_run_and_the_run(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FLOPs of a model of half the layers are fewer, and about those of its matrices."""
    given = [*PRETRAINING, "model.config.hidden_size=128", "data.variant=mmf", "trainer.accumulate_grad_batches=2"]
    given += ["trainer.limit_val_batches=4", "test_after_fit=false"]
    run_in_process("train", demo_data, tmp_path / "run", *given)  # which makes the corpora too
    before, plans = files_of(demo_data), list[dict[str, float]]()
    monkeypatch.setattr("vinvl.plan.plan", lambda *asked: plans.append(plan(*asked)))
    printed = run_in_process("train", demo_data, tmp_path / "plan", *given, "+plan=true")
    for word in ("samples/s of a device", "FLOPs", "measured", "evaluation", "memory", "checkpoint", "region store"):
        assert word in printed
    assert files_of(demo_data) == before and [path.name for path in tmp_path.iterdir()] == ["run"]
    last, found = tmp_path / "run" / "checkpoints" / "last.ckpt", plans[0]
    assert found["updates"] == read_checkpoint(last)["global_step"]
    assert found["checkpoint"] == pytest.approx(last.stat().st_size, rel=0.1)
    assert found["checkpoints"] == len(list(last.parent.glob("*.ckpt")))
    assert found["training"] > 0 and found["evaluation"] > 0
    own = ["model.config.num_hidden_layers=1", "name=vqa2_base"]
    printed = run_in_process("train", demo_data, tmp_path / "plan", *given, *own, "+plan=true")
    told = re.sub(r"[│\s]+", " ", printed)
    assert "how many there were is not stated" in told
    batch = found["batch"]
    assert f"batch of an update {2 * batch:,.0f} configured: {batch} a device × 1 × 2 accumulated" in told
    assert "published: 32 a GPU, GPUs: how many is not stated" in told
    assert plans[1]["samples"] == pytest.approx(found["samples"])
    assert 1.2 < found["flops"] / plans[1]["flops"] < 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["task=vqa", "+plan=true", "ckpt_path=last"], "leave ckpt_path out"),
        (["task=vqa", "+plan=soon"], "plan is 'soon'"),
        (["task=vqa", "+plan=true", "debug=overfit"], "A plan is of a whole run: leave trainer.overfit_batches out."),
        (["task=vqa", "+plan.devices=3"], "plan=true"),
    ],
)
def test_plans_that_cannot_be_made(tmp_path: Path, given: list[str], named: str) -> None:
    assert named in refused_in_process("train", tmp_path / "none", tmp_path / "run", *given)


def test_absent_data_are_refused_as_the_run_refuses_them(tmp_path: Path) -> None:
    given = [*TINY, "data.prepare=null"]
    said = [
        refused_in_process("train", tmp_path / "none", tmp_path / "run", *given, *more) for more in ([], ["+plan=true"])
    ]
    assert said[0] == said[1]

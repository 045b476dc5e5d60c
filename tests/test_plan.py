"""What a run will cost: the arithmetic by hand, the measured parts on tiny models, and the door."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Door
from door_in_process import TINY, composed, refused_in_process, run_in_process
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from triplet_samples import SIZES

from vinvl.data.batch import Batch
from vinvl.data.image_regions import BatchRegions
from vinvl.errors import UserError
from vinvl.metrics.model_flops import BACKWARD_AND_FORWARD, StepCosts
from vinvl.models import VinVLConfig, VinVLForPreTraining
from vinvl.plan.estimate import Memory, run_cost
from vinvl.plan.measurement import Pace, SavedBytes
from vinvl.plan.options import PlanOptions
from vinvl.plan.planner import make_plan, plan
from vinvl.plan.run_length import RunLength, number_of_devices, run_length
from vinvl.plan.table import count, hours, size
from vinvl.plan.workload import Workload
from vinvl.tasks.checkpoints import read_checkpoint

PRETRAINING = ["task=pretraining", *TINY]


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder below, with what changes when it is written."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("trainer", "items", "expected"),
    [
        # 100 items make 7 batches of 16, 4 on each of 2 devices; two batches an update.
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 100, (6, 12, 343, 3.43)),
        # Two whole epochs of 2 updates, and one update of the third.
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 2}, 100, (5, 10, 286, 2.86)),
        # An epoch of 4 batches is 2 updates of 3 and of 1 batch.
        ({"max_steps": 4, "max_epochs": -1, "accumulate_grad_batches": 3}, 100, (4, 8, 229, 2.29)),
        ({"max_steps": 5, "max_epochs": 1}, 100, (4, 4, 114, 1.14)),  # whichever comes first
        ({"max_epochs": 1, "limit_train_batches": 3}, 100, (3, 3, 86, 0.86)),
        ({"max_epochs": 1, "limit_train_batches": 0.5}, 100, (2, 2, 57, 0.57)),
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 2}, None, (5, 10, 320, None)),
        ({"max_steps": 5, "max_epochs": None}, None, (5, 5, 160, None)),
    ],
)
def test_length_of_a_run(trainer: dict[str, Any], items: int | None, expected: tuple[Any, ...]) -> None:
    assert run_length(trainer, items=items, batch_size=16, devices=2) == RunLength(*expected)


def test_lengths_that_nobody_can_tell() -> None:
    with pytest.raises(UserError, match="no end"):
        run_length({"max_epochs": -1, "max_steps": -1}, items=10, batch_size=2, devices=1)
    with pytest.raises(UserError, match=r"pass \+plan.items=N"):
        run_length({"max_epochs": 2, "max_steps": -1}, items=None, batch_size=2, devices=1)


@pytest.mark.parametrize(
    ("trainer", "devices"),
    [({"devices": 8, "num_nodes": 4}, 32), ({"devices": [0, 3]}, 2), ({"devices": "2"}, 2), ({}, 1)],
)
def test_devices_on_all_nodes(trainer: dict[str, Any], devices: int) -> None:
    assert number_of_devices(trainer) == devices


def test_devices_that_cannot_be_counted() -> None:
    with pytest.raises(UserError, match=r"trainer.devices is '0,1'.*plan.devices"):
        number_of_devices({"devices": "0,1"})


def small_batch() -> Batch:
    """Two rows: 2 tokens and 1 region, 3 tokens and 2 regions."""
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    hidden = torch.tensor([[0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    ids, regions = torch.ones(2, 3, dtype=torch.long), BatchRegions.of_padded(torch.zeros(2, 2, 10))
    return Batch(ids, ids, mask, regions, ids[hidden], ({}, {}), masked_positions=hidden)


def test_what_a_batch_is_made_of() -> None:
    found = Workload.of(small_batch(), 2) + Workload.of(small_batch(), 1)
    assert found == Workload(
        samples=3,
        rows=4,
        text_tokens=10,
        regions=6,
        masked_tokens=6,
        slots=20,
        region_slots=8,
        attended_pairs=100,
    )
    assert found.padding_share == pytest.approx(4 / 20)


def test_masks_of_who_sees_whom_count_positions_once() -> None:
    batch = small_batch()
    square = (batch.attention_mask[:, :, None] & batch.attention_mask[:, None, :]).tril()
    seen = Batch(batch.input_ids, batch.input_ids, square, batch.regions, None, ({}, {}))
    assert (Workload.of(seen, 2).text_tokens, Workload.of(seen, 2).regions) == (5, 3)


def test_flops_are_those_that_torch_counts_with_padding() -> None:
    config = VinVLConfig(**SIZES, num_labels=3, attn_implementation="eager")
    model, batch = VinVLForPreTraining(config).eval(), small_batch()
    with FlopCounterMode(display=False) as counter:
        model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            region_features=batch.region_features,
            masked_positions=batch.masked_positions,
        )
    assert Workload.of(batch, 2).flops(StepCosts.of(config)) == BACKWARD_AND_FORWARD * counter.get_total_flops()


def test_cost_of_a_run() -> None:
    workload = Workload(
        samples=10,
        rows=10,
        text_tokens=200,
        regions=300,
        masked_tokens=30,
        slots=600,
        region_slots=350,
        attended_pairs=40_000,
    )
    costs = StepCosts(per_token=1000, per_attended_pair=10, per_region=100, per_masked_token=500, per_row=7)
    length = RunLength(updates=100, batches=100, samples=36_000, epochs=None)
    found = run_cost(length, workload, costs, samples_per_second=5.0, devices=4)
    assert (found.text_tokens, found.regions, found.padding, found.masked_tokens) == (
        720_000,
        1_080_000,
        360_000,
        108_000,
    )
    assert found.flops == (600 * 1000 + 40_000 * 10 + 350 * 100 + 30 * 500 + 10 * 7) * 3600
    assert (found.hours, found.device_hours) == (0.5, 2.0)


def test_pace_of_other_batches_and_longer_samples() -> None:
    pace = Pace(batch_size=4, workload=Workload(samples=8), batch_seconds=4.0, update_seconds=2.0)
    assert pace.samples_per_second(4) == 1.0  # half a second each, and half a second of the update
    assert pace.samples_per_second(1000) == pytest.approx(1 / 0.502)
    assert pace.samples_per_second(4, cost_ratio=3.0) == 0.5


def test_bytes_kept_for_the_backward_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
    seen = SavedBytes()
    seen.spare(model)
    with torch.autograd.graph.saved_tensors_hooks(seen.see, lambda tensor: tensor):
        model(torch.ones(3, 4))
    seen.slots = 3
    assert (seen.scaled, seen.fixed) == (
        3 * (4 + 8) * 4,
        0,
    )  # the input, and what ReLU gave, which two keep; no weights
    assert seen.at(30) == 10 * 3 * (4 + 8) * 4


def test_copies_of_weights_do_not_grow_with_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5))
    seen = SavedBytes()
    seen.spare(model)
    with (
        torch.autograd.graph.saved_tensors_hooks(seen.see, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(torch.ones(3, 4))
    assert seen.fixed == 8 * 5 * 2  # the first layer's input needs no gradient, so only its output's factor is kept
    seen.slots = 3
    assert seen.at(30) == seen.fixed + 10 * seen.scaled


def test_sums_of_memory() -> None:
    memory = Memory(weights=100, gradients=90, optimizer_state=180, activations=None)
    assert (memory.total, memory.checkpoint) == (370, 280)
    assert Memory(100, 90, 180, 1000).total == 1370


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("yes", r"plan is 'yes': pass \+plan=true"),
        ({"speed": 3}, r"no plan.speed: choose of samples_per_second, devices, items, seconds"),
        ({"samples_per_second": 0}, r"plan.samples_per_second is 0: give a number above 0"),
        ({"samples_per_second": "fast"}, r"plan.samples_per_second is 'fast'"),
        ({"samples_per_second": float("nan")}, r"plan.samples_per_second is nan"),
        ({"devices": 1.5}, r"plan.devices is 1.5: give a whole number above 0"),
        ({"items": True}, r"plan.items is True"),
        ({"seconds": -1}, r"plan.seconds is -1"),
    ],
)
def test_options_that_make_no_plan(given: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PlanOptions.of(OmegaConf.create(given) if isinstance(given, dict) else given)


def test_numbers_for_people() -> None:
    assert [count(n) for n in (999_999, 1_024_000_000, 3.5e13)] == ["999,999", "1.024 billion", "35 trillion"]
    assert [size(n) for n in (1_500, 2.5e9, 3e12)] == ["1.5 kB", "2.5 GB", "3 TB"]
    assert [hours(n) for n in (1234.5, 2.5, 0.5, 0.01)] == ["1,234 h", "2.5 h", "30 min", "36 s"]


def prepared(demo_data: Path, folder: Path) -> None:
    """Makes the corpora of the demo world with their indices."""
    with composed("train", demo_data, folder / "unused", *PRETRAINING) as config:
        instantiate(config.data).prepare_data()


def test_a_given_rate_is_all_there_is_to_the_hours(demo_data: Path, tmp_path: Path) -> None:
    prepared(demo_data, tmp_path)
    given = ["+plan.samples_per_second=50", "+plan.devices=4", "trainer.max_steps=600", "trainer.max_epochs=-1"]
    before, runs = files_of(demo_data), tmp_path / "runs"
    with composed("train", demo_data, runs / "demo" / "now", *PRETRAINING, *given, f"paths.runs_dir={runs}") as config:
        found = plan(config)
    assert found["samples"] == pytest.approx(600 * 16 * 4, rel=0.06)  # batches of an epoch's end are smaller
    assert found["hours"] == found["samples"] / 200 / 3600
    assert found["device_hours"] == 4 * found["hours"]
    assert files_of(demo_data) == before and not runs.exists()


@pytest.mark.slow
def test_the_plan_of_a_run_and_the_run(demo_data: Path, tmp_path: Path) -> None:
    prepared(demo_data, tmp_path)
    wider = ["model.config.hidden_size=128", "data.variant=mmf", "trainer.accumulate_grad_batches=2"]
    with composed("train", demo_data, tmp_path / "plan", *PRETRAINING, *wider, "+plan.seconds=1") as config:
        made = make_plan(config)
    assert made.why_made is None and made.pace is not None and made.samples_per_second > 0
    assert made.workload.rows == 2 * made.workload.samples
    run_in_process("train", demo_data, tmp_path / "run", *PRETRAINING, *wider)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert made.length.updates == read_checkpoint(last)["global_step"]
    assert made.memory.checkpoint == pytest.approx(last.stat().st_size, rel=0.1)
    assert made.kept_checkpoints == len(list(last.parent.glob("*.ckpt")))


def test_the_door_tells_and_leaves_nothing(demo_data: Path, tmp_path: Path, door: Door) -> None:
    prepared(demo_data, tmp_path / "elsewhere")
    before = files_of(demo_data)
    result = door("train", *PRETRAINING, "+plan=true")
    assert result.returncode == 0, result.stderr
    for word in (
        "samples/s of a device",
        "measured:",
        "hidden tokens",
        "padding",
        "activations",
        "region store",
        "index",
    ):
        assert word in result.stdout
    assert files_of(demo_data) == before
    assert [path for path in tmp_path.iterdir() if path.name != "elsewhere"] == []


@pytest.mark.slow
def test_a_plan_of_another_task(demo_data: Path, tmp_path: Path) -> None:
    printed = run_in_process("train", demo_data, tmp_path / "run", *TINY, "data.min_answer_count=2", "+plan.seconds=1")
    assert "the run's own" in printed and "hidden tokens" not in printed
    assert not (tmp_path / "run").exists()


def test_made_batches_stand_in_for_missing_data(tmp_path: Path) -> None:
    tiny = ["model.config.hidden_size=32", "model.config.num_attention_heads=2", "model.config.intermediate_size=64"]
    given = ["experiment=oscarplus_base", *tiny, "model.config.num_hidden_layers=1", "+plan.seconds=1"]
    with composed("train", tmp_path / "none", tmp_path / "run", *given, "torch_threads=1") as config:
        made = make_plan(config)
    assert made.why_made is not None and "corpus/train does not exist" in made.why_made
    assert (made.length.updates, made.length.samples, made.devices) == (1_000_000, 1_024_000_000, 8)
    assert (made.cost.text_tokens, made.cost.regions) == (35 * 1.024e9, 50 * 1.024e9)
    assert made.cost.masked_tokens == pytest.approx(0.15 * 35 * 1.024e9, rel=0.05)
    assert made.pace is not None and made.pace.workload.samples >= made.pace.batch_size
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["task=nlvr2", "+plan=true"], "stand in for the data of pre-training, VQA and GQA alone, not for a NLVR2Data"),
        (["task=vqa", "+plan=true"], "pass +plan.items=N"),
        (["task=vqa", "+plan=true", "ckpt_path=last"], "leave ckpt_path out"),
        (["task=vqa", "+plan=soon"], "plan is 'soon': pass +plan=true"),
    ],
)
def test_plans_that_cannot_be_made(tmp_path: Path, given: list[str], sentence: str) -> None:
    assert sentence in refused_in_process("train", tmp_path / "none", tmp_path / "run", *given)

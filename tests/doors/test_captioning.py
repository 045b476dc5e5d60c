"""Captioning through the doors: cross-entropy, decoding, NoCaps, self-critical training, ranks, a killed run."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.door_in_process import (
    CAPTIONING,
    WORLD,
    assert_same_weights,
    checkpoint,
    composed,
    examples,
    run_in_process,
    same_weights,
    scored_alike,
    scores,
)
from tests.door_runs import ON_CPU, DoorProcess, door_environment, ranks_succeed, succeed
from vinvl.captioning.task import CaptioningTask
from vinvl.models.decoding import DecodingOptions
from vinvl.regions import RegionStore
from vinvl.restore import restore

pytestmark = pytest.mark.slow

ON_ONE_CPU = "trainer.accelerator=cpu"
LEARNING = ["optim.optimizer.lr=3e-3", "optim.scheduler.warmup_steps=0"]
THREE_EPOCHS = [
    "trainer.log_every_n_steps=1", *CAPTIONING, *LEARNING, "trainer.max_epochs=3",
    "callbacks.last.every_n_train_steps=1", "hydra.run.dir=runs/demo_captioning/run",
]  # fmt: skip
FIGURES = {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "CIDEr_plain"}


@pytest.fixture(scope="module")
def trained(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of three epochs with dropout that saves after every update, and what it printed."""
    folder = tmp_path_factory.mktemp("captioning")
    printed = succeed(folder, demo_data, "train", *THREE_EPOCHS)
    return folder / "runs" / "demo_captioning" / "run", printed


def predicted(demo_data: Path, run: Path, output: Path, *overrides: str) -> tuple[list[Any], list[Any]]:
    """The rows of captions.json and of predictions.jsonl."""
    run_in_process("predict", demo_data, output, checkpoint(run, "last"), ON_ONE_CPU, *overrides)
    rows = json.loads((output / "captions.json").read_text())
    return rows, [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def logged(run: Path, name: str) -> list[float]:
    """The values of a figure in the run's log."""
    header, *lines = [line.split(",") for line in (run / "csv" / "metrics.csv").read_text().splitlines()]
    column = header.index(name)
    return [float(line[column]) for line in lines if line[column]]


def test_a_run_shows_the_hidden_words_and_ends_with_the_coco_figures(trained: tuple[Path, str]) -> None:
    run, printed = trained
    for words in ("caption  ", "tokens    [CLS]", "hidden  ", "tags", "CIDEr", "ROUGE_L"):
        assert words in printed
    assert scores(run).keys() == FIGURES
    losses = logged(run, "train/loss")
    assert len(losses) == 24 and all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_evaluate_repeats_the_figures_and_predict_writes_the_servers_format(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run_in_process("evaluate", demo_data, tmp_path / "again", checkpoint(trained[0]), ON_ONE_CPU)
    assert scores(tmp_path / "again") == scores(trained[0])
    without = ["data.use_tags=false", "data.use_regions=false"]
    rows, _ = predicted(demo_data, trained[0], tmp_path / "without", *without)
    assert len({row["caption"] for row in rows}) == 1  # nothing tells the images apart
    rows, lines = predicted(demo_data, trained[0], tmp_path / "out", "decoding.num_return_sequences=2")
    everything = json.loads((demo_data / "demo" / "dataset_demo.json").read_text())["images"]
    asked = [image["cocoid"] for image in everything if image["split"] == "test"]
    assert [row["image_id"] for row in rows] == asked  # integers, in the order of the file
    assert all(row.keys() == {"image_id", "caption"} and isinstance(row["caption"], str) for row in rows)
    assert [line["top"][0]["caption"] for line in lines] == [row["caption"] for row in rows]
    for line in lines:
        found = [one["score"] for one in line["top"]]
        assert 1 <= len(found) <= 2 and found == sorted(found, reverse=True)
    assert max(len(line["top"]) for line in lines) == 2


def test_decoding_overrides_go_on_top_of_the_decoding_of_the_run(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    given = ["decoding.num_beams=3", "decoding.length_penalty=0.6"]
    with composed("evaluate", demo_data, tmp_path / "none", checkpoint(trained[0]), *given) as config:
        task = restore(config, "test").task
    assert isinstance(task, CaptioningTask)
    assert task.search == DecodingOptions(num_beams=3, length_penalty=0.6) != DecodingOptions(num_beams=2)
    exactly = ["decoding.min_length=8", "decoding.max_length=8"]
    rows, _ = predicted(demo_data, trained[0], tmp_path / "exactly", *exactly)
    assert all(1 <= len(row["caption"].split()) <= 6 for row in rows)  # [CLS] and [SEP] are two of the eight
    run_in_process("evaluate", demo_data, tmp_path / "eight", checkpoint(trained[0]), ON_ONE_CPU, *exactly)
    assert scores(tmp_path / "eight") != scores(trained[0])


class TestNoCaps:
    NOCAPS = ("data=demo_nocaps", *WORLD, "decoding=constrained", "decoding.num_beams=2", ON_ONE_CPU)

    def test_constrained_captions_name_what_was_detected(
        self, trained: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        rows, _ = predicted(demo_data, trained[0], tmp_path / "out", *self.NOCAPS)
        store = RegionStore(demo_data / "demo" / "val.h5")
        needed = 0
        for row in rows:
            regions = store[str(row["image_id"])]
            order = regions.class_scores.argsort(kind="stable")[::-1]
            surest = list(dict.fromkeys(store.label_map.classes[regions.classes[place]] for place in order))[:3]
            said = [name for name in surest if name in row["caption"]]
            assert len(said) >= min(2, len(surest)), (surest, row)
            needed += len(said)
        assert needed > len(rows)
        free, _ = predicted(demo_data, trained[0], tmp_path / "free", *self.NOCAPS[:-3], ON_ONE_CPU)
        assert [row["caption"] for row in free] != [row["caption"] for row in rows]

    def test_figures_by_domain_and_how_many_constraints_had_no_room(
        self, trained: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        short = [checkpoint(trained[0]), *self.NOCAPS, "decoding.max_length=3"]
        printed = run_in_process("evaluate", demo_data, tmp_path / "out", *short)
        images = json.loads((demo_data / "demo" / "nocaps_val.json").read_text())["images"]
        domains = {image["domain"] for image in images}
        assert len(domains) > 1
        told = [(str(image["id"]), image["domain"]) for image in images]
        assert [(row["id"], row["group"]) for row in examples(tmp_path / "out")] == told
        expected = FIGURES | {f"{domain}/{name}" for domain in domains for name in FIGURES}
        assert scores(tmp_path / "out").keys() == expected
        run_in_process("predict", demo_data, tmp_path / "files", *short)
        for name in ("captions.json", "predictions.jsonl"):
            written = tmp_path / "files" / name
            scored_alike(demo_data, tmp_path / name, written, tmp_path / "out", "data=demo_nocaps")
        store = RegionStore(demo_data / "demo" / "val.h5")
        kinds = [len(set(store[str(image["id"])].classes.tolist()) - {0}) for image in images]
        dropped = sum(max(min(count, 3) - 2, 0) for count in kinds)  # two words have room
        assert dropped > 0
        assert f"{dropped} constraints had no room within decoding.max_length=3" in printed


class TestSelfCritical:
    @pytest.mark.parametrize("baseline", ["greedy", "sample"])
    def test_from_a_checkpoint_of_cross_entropy(
        self, trained: tuple[Path, str], demo_data: Path, tmp_path: Path, baseline: str
    ) -> None:
        start = trained[0] / "checkpoints" / "best.ckpt"
        overrides = [
            *CAPTIONING, "data.training_items=images", f"model.init={start}", f"task.options.scst_baseline={baseline}",
            "task.options.scst_samples=3", "trainer.log_every_n_steps=1", "decoding.max_length=8",
            "optim=adamw_constant", "optim.optimizer.lr=1e-3", "optim.weight_decay=0",
        ]  # fmt: skip
        printed = run_in_process("train", demo_data, tmp_path / "run", *overrides)
        assert "captions  " in printed  # the example is an image, no words are hidden
        rewards = logged(tmp_path / "run", "train/reward")
        assert len(rewards) == 2 and all(reward >= 0 for reward in rewards)  # 24 images in batches of 16
        state = torch.load(start, weights_only=True)["state_dict"]
        after = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert state.keys() == after.keys()
        assert max(rewards) > 0
        assert any(not torch.equal(state[name], after[name]) for name in state)  # without decay: by the rewards alone
        if baseline == "greedy":
            run_in_process("evaluate", demo_data, tmp_path / "again", checkpoint(tmp_path / "run"), ON_ONE_CPU)
            assert scores(tmp_path / "again") == scores(tmp_path / "run")


def saved_updates(folder: Path) -> int:
    """Updates in the last checkpoint of the run in a folder; 0 before there is one."""
    try:
        return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, mmap=True)["global_step"])
    except (RuntimeError, EOFError, FileNotFoundError):
        return 0


def test_killed_and_resumed_ends_with_the_weights_of_an_uninterrupted_run(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "demo_captioning" / "run"
    process = DoorProcess(tmp_path, "vinvl.train", *THREE_EPOCHS, environment=door_environment(demo_data) | ON_CPU)
    process.wait_until(lambda: saved_updates(run) >= 3)
    process.signalled(signal.SIGKILL)
    assert not (run / "results.json").exists() and 3 <= saved_updates(run) < saved_updates(trained[0])
    run_in_process("train", demo_data, run, *THREE_EPOCHS[:-1], checkpoint(run, "last"))
    assert_same_weights(trained[0], run)
    assert scores(run) == scores(trained[0])


def test_two_ranks_train_and_score_as_one_would(demo_data: Path, tmp_path: Path) -> None:
    printed = ranks_succeed(tmp_path, demo_data, "train", *CAPTIONING, "hydra.run.dir=run")
    assert "CIDEr" in printed
    run_in_process("evaluate", demo_data, tmp_path / "alone", checkpoint(tmp_path / "run"), ON_ONE_CPU)
    assert scores(tmp_path / "alone") == scores(tmp_path / "run")
    rows = examples(tmp_path / "run")
    assert rows == examples(tmp_path / "alone") and all(len(row["truth"]) == 5 for row in rows)
    everything = json.loads((demo_data / "demo" / "dataset_demo.json").read_text())["images"]
    assert [row["id"] for row in rows] == [str(one["cocoid"]) for one in everything if one["split"] == "test"]


def test_same_weights_whatever_the_number_of_data_workers(
    trained: tuple[Path, str], demo_data: Path, tmp_path: Path
) -> None:
    short = [*CAPTIONING, *LEARNING, "trainer.max_epochs=3", "test_after_fit=false"]
    run_in_process("train", demo_data, tmp_path / "2", *short, "data.num_workers=2")
    assert same_weights(tmp_path / "2", trained[0])


def test_the_worst_words_are_dropped_after_as_many_batches_whether_resumed_or_not(
    demo_data: Path, tmp_path: Path
) -> None:
    """8 batches an epoch; the rates do not depend on the number of epochs, so an epoch is half of two."""

    def train(name: str, epochs: int, after: int, *more: str) -> Path:
        options = [
            "task.options.drop_worst_ratio=0.5",
            f"task.options.drop_worst_after={after}",
            "optim=adamw_constant",
        ]
        rest = ["optim.optimizer.lr=1e-3", "test_after_fit=false", f"trainer.max_epochs={epochs}", "data.num_workers=0"]
        run_in_process("train", demo_data, tmp_path / name, *CAPTIONING, *options, *rest, *more)
        return tmp_path / name

    whole, half, never = train("whole", 2, 10), train("half", 1, 10), train("never", 2, 1000)
    resumed = train("resumed", 2, 10, checkpoint(half, "last"))
    assert same_weights(whole, resumed)
    assert not same_weights(whole, never)  # dropping shows in the weights

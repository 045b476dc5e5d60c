"""python -m vinvl.train_detector: a run and what it leaves, kills and signals, ranks, refusals."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.detector.coco_samples import write
from tests.detector.runs import DETECTOR, RUN, TINY
from tests.door_in_process import refused_in_process, run_in_process, scores
from tests.run.struck import Kill
from tests.run.survival_runs import KILLED, assert_same, ended, noted, output, run, start_ranks
from vinvl.detector import load_detector
from vinvl.detector.config import TrainingSettings
from vinvl.detector.task import DetectorTask
from vinvl.detector.weights import read_settings
from vinvl.examples import read_boxes
from vinvl.run.checkpoint import load_into, read_checkpoint
from vinvl.run.options import open_sections
from vinvl.run.overrides import replacing
from vinvl.run.signals import START_AGAIN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, demo_data, *RUN, **DETECTOR) == 0, output(folder)
    return folder


def test_a_run_leaves_its_detector_and_figures(whole: Path, demo_data: Path) -> None:
    folder, printed = whole / "run", output(whole)
    for words in (
        "One example of 'train' (of 24):", "resized to 128 × 96", "for 12 updates.", "samples/s",
        "mean average precision at IoU 0.5 ", "attributes named, of objects found", "run/detector.pth",
    ):  # fmt: skip
        assert words in printed, printed
    assert {"best.ckpt", "last.ckpt"} == {path.name for path in (folder / "checkpoints").iterdir()}
    assert (folder / "csv/metrics.csv").is_file() and list((folder / "tensorboard").glob("events*"))
    names = (folder / "csv/metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("train/loss", "train/objectness", "train/attributes", "val/score", "val/map", "samples/s"):
        assert name in names
    results = json.loads((folder / "results.json").read_text())
    assert results["headline"] == "map_50" and results["split"] == "test"
    assert {"map", "map_50", "map_75", "attributes", "attributes_of_found"} <= results["scores"].keys()
    seen = read_boxes(folder / "boxes.json")
    assert len(seen) == 6 and all(one.true and len(one.found) >= len(one.true) >= one.missed for one in seen)


def test_the_weight_file_is_the_best_checkpoint(whole: Path, demo_data: Path) -> None:
    """Folded batch norm, settings and names: read back alone, the detector says what was scored."""
    path, best = whole / "run/detector.pth", whole / "run/checkpoints/best.ckpt"
    found = read_settings(path)
    assert found is not None and found.label_map.classes == ("__background__", "circle", "square", "triangle", "star")
    assert found.label_map.attributes[1:3] == ("red", "green") and found.config.min_size == 96
    assert found.config.score_threshold == 0.2 and found.config.architecture.num_classes == 5
    checkpoint = read_checkpoint(best)
    task = DetectorTask(**checkpoint["hyper_parameters"], training=TrainingSettings(), frozen_stages=0)
    load_into(task, checkpoint, best)
    all_boxes = replace(found.config, score_threshold=0.0, min_boxes=10, max_boxes=10)
    alone, report = load_detector(path, all_boxes)
    assert report.unused == ()
    trained = task.eval().detector
    trained.config = all_boxes
    image = Image.open(next((demo_data / "demo/images").iterdir()))
    (ours,), (expected,) = alone.detect([image]), trained.detect([image])
    assert len(ours) == 10 and ours.labels.tolist() == expected.labels.tolist()
    for name in ("boxes", "scores", "features", "attribute_scores"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=1e-3, atol=1e-3)


def assert_same_run(one: Path, other: Path, rank: str = "") -> None:
    """The runs in two folders are alike to the last bit."""
    assert noted(one, f"seen{rank}.txt") == noted(other, f"seen{rank}.txt")
    first, second = (read_checkpoint(folder / "run/checkpoints/last.ckpt") for folder in (one, other))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(first[key], second[key], key)
    weights = [torch.load(folder / "run/detector.pth", weights_only=True) for folder in (one, other)]
    assert_same(weights[0], weights[1], "weight file")
    assert scores(one / "run") == scores(other / "run")


def test_killed_and_stopped_and_started_again_by_the_same_command(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    def befallen(number: int, batch: int) -> int:
        code = run(tmp_path, demo_data, *RUN, kill=Kill(number, "train", batch), **DETECTOR)
        assert not (tmp_path / "run/detector.pth").exists()
        return code

    assert befallen(signal.SIGKILL, 1) == KILLED  # before the first checkpoint
    assert befallen(signal.SIGTERM, 2) == START_AGAIN
    assert "go on with the same command" in output(tmp_path) and "Traceback" not in output(tmp_path)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3
    assert befallen(signal.SIGKILL, 5) == KILLED  # in the second epoch
    assert run(tmp_path, demo_data, *RUN, **DETECTOR) == 0, output(tmp_path)
    assert_same_run(tmp_path, whole)


def test_two_ranks_share_the_pictures_of_several_sets_and_go_on(demo_data: Path, tmp_path: Path) -> None:
    """24 pictures once and 6 four times are 6 batches for each rank; both ranks are killed in the fifth."""
    world = demo_data / "demo"
    sets = [
        f"{{annotations: {world}/detection/instances_{name}.json, pictures: {world}/images, copies: {copies}}}"
        for name, copies in (("train", 1), ("val", 4))
    ]
    command = [*RUN, "trainer.max_epochs=1", *replacing([f"data.splits.train=[{','.join(sets)}]"])]
    for folder, kills in (("struck", [4, 4]), ("struck", []), ("whole", [])):
        befallen = {rank: Kill(signal.SIGKILL, "train", batch) for rank, batch in enumerate(kills)}
        ranks = start_ranks(tmp_path / folder, demo_data, *command, kills=befallen, **DETECTOR)
        codes = [KILLED, KILLED] if kills else [0, 0]
        assert [ended(rank) for rank in ranks] == codes, output(tmp_path / folder, "0")
    for rank in ("0", "1"):
        assert_same_run(tmp_path / "struck", tmp_path / "whole", rank)
    seen = [noted(tmp_path / "whole", f"seen{rank}.txt") for rank in (0, 1)]
    once = sorted(index for one in seen for batch in one.values() for index in batch)
    assert once == [*range(24), *(index for index in range(24, 30) for _ in range(4))]
    assert "map_50" in scores(tmp_path / "whole/run")
    assert "mean average precision" in output(tmp_path / "whole", "0")
    assert "mean average" not in output(tmp_path / "whole", "1")


def test_fine_tuning_on_pictures_of_ones_own(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    """The published recipe, in half precision, from a weight file whose classes are others."""
    annotations, pictures = write(tmp_path)
    splits = [f"data.splits.{split}={{annotations: {annotations}, pictures: {pictures}}}" for split in ("train", "val")]
    command = [one for one in TINY if not one.startswith("data.prepare")]
    printed = run_in_process(
        "train_detector", demo_data, tmp_path / "run", *command, "detection_recipe=detector_vg_attributes",
        "detector=demo", "data.min_sizes=[64,96]", f"start.init={whole / 'run/detector.pth'}",
        "detection_data=coco_json", *splits, "trainer=default",
        "trainer.precision=bf16-mixed", "trainer.max_steps=3", "trainer.val_check_interval=1.0", "trainer.devices=1",
        "trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=1", "data.pin_memory=false",
    )  # fmt: skip
    assert "tensors loaded; 0 of 2 classes by name, 2 learnt anew (cat, dog); 0 of 2 attributes by name" in printed
    found = read_settings(tmp_path / "run/detector.pth")
    assert found is not None and found.label_map.classes == ("__background__", "cat", "dog")
    before, after = (
        torch.load(folder / "run/detector.pth", weights_only=True)["model"] for folder in (whole, tmp_path)
    )
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "backbone.body.layer2.0.conv1.weight" in changed and "rpn.head.conv.weight" in changed
    frozen = re.compile(r"backbone\.body\.(stem|layer1)\.|bn\d\.|downsample\.1\.|cell_anchors")
    assert not [name for name in changed if frozen.search(name)]
    assert scores(tmp_path / "run").keys() >= {"map_50", "class_50/cat"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["start.init=nowhere.pth"], "nowhere.pth"),
        (["start.batch_norm=none"], "batch_norm='none'"),
        (["start.frozen_stages=2"], "frozen_stages=2 with batch_norm=trained"),
        (["training.region_samples=0"], "region_samples=0"),
        (["detector.boxes=best"], "boxes='best'"),
        (["data.val_split=dev"], "no split 'dev'"),
        (["data.splits.val.annotations=nowhere.json"], "nowhere.json does not exist"),
        (["data.splits.train.pictures=nowhere"], "nowhere does not exist"),
        (["data.splits.test.annotations=nowhere.json"], "(Of the test split: pass test_after_fit=false"),
        (["ckpt_path=last"], "ckpt_path=last: no run under"),
        (["detection_recipe=detector_vg_attributes", "detection_data=demo"], "start.init must be given"),
        (["detection_data=coco_json"], "must be given: pass data.splits.train.annotations=VALUE"),
    ],
)
def test_refusals(demo_data: Path, tmp_path: Path, overrides: list[str], words: str) -> None:
    command = [one for one in TINY if "coco_json" not in overrides[0] or not one.startswith("data.prepare")]
    assert words in refused_in_process("train_detector", demo_data, tmp_path / "run", *command, *overrides)


def test_another_run_is_not_gone_on_with(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    checkpoint = f"ckpt_path={whole / 'run/checkpoints/last.ckpt'}"
    for overrides, words in (
        (["optim.optimizer.lr=0.5"], "optim.optimizer.lr was 0.04 and is 0.5"),
        (["training.region_samples=9"], "training.region_samples was 8 and is 9"),
        (["detector.architecture.stem_channels=4"], "stem_channels was 8 and is 4"),
        (["data.flip_probability=0"], "data.flip_probability was 0.5 and is 0"),
    ):
        sentence = refused_in_process("train_detector", demo_data, tmp_path / "run", *TINY, checkpoint, *overrides)
        assert words in sentence and "start.init=FILE" in sentence


def test_a_checkpoint_is_scored_as_its_training_did(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    """All is scored that can be, and other data are those that the command gives."""
    given = [f"ckpt_path={whole / 'run/checkpoints/best.ckpt'}", "trainer.accelerator=cpu", "data.num_workers=0"]
    printed = run_in_process("evaluate", demo_data, tmp_path / "run", *given)
    found, own = scores(tmp_path / "run"), scores(whole / "run")
    assert {name: found[name] for name in own} == own
    assert found.keys() >= {"vg_map", "vg_attributes", "vg_map/star", "recall_36", "proposals_100_small"}
    assert "Visual Genome's mAP, weighted by objects" in printed
    run_in_process("evaluate", demo_data, tmp_path / "val", *given, "data.test_split=val")
    chosen_by = json.loads((whole / "run/results.json").read_text())["validation"]["score"]
    assert scores(tmp_path / "val")["map_50"] == pytest.approx(chosen_by)
    world = [one for one in TINY if one.startswith("data.prepare")]
    weights = [f"weights={whole / 'run/detector.pth'}", "trainer.accelerator=cpu", "data.num_workers=0", *world]
    run_in_process("evaluate_detector", demo_data, tmp_path / "weights", *weights)  # of folded batch norm
    assert scores(tmp_path / "weights") == pytest.approx(found, abs=0.5)
    annotations, pictures = write(tmp_path)
    entry = f"data.splits.test={{annotations: {annotations}, pictures: {pictures}}}"
    sentence = refused_in_process("evaluate", demo_data, tmp_path / "own", *given, *replacing(open_sections([entry])))
    assert "has the class 'cat', which the detector does not have" in sentence


def test_other_checkpoints_are_told_apart(whole: Path, demo_data: Path, tmp_path: Path) -> None:
    checkpoint = whole / "run/checkpoints/last.ckpt"
    sentence = refused_in_process("predict", demo_data, tmp_path / "run", f"ckpt_path={checkpoint}")
    assert "a detector's checkpoint, which python -m vinvl.train_detector goes on with" in sentence
    content = read_checkpoint(checkpoint)
    content["vinvl"]["task_class"] = "vinvl.vqa.task.VQATask"
    torch.save(content, tmp_path / "vqa.ckpt")
    arguments = [*TINY, f"ckpt_path={tmp_path / 'vqa.ckpt'}"]
    assert "is a checkpoint of VQATask, and this run trains DetectorTask" in refused_in_process(
        "train_detector", demo_data, tmp_path / "run", *arguments
    )

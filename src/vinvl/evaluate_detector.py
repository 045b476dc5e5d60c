"""Score a detector: `python -m vinvl.evaluate_detector weights=FILE | predictions=FILE [overrides]`.

Weights are run on the pictures of `data.test_split`; predictions are what somebody's detector said of them.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vinvl.run.door import door, enter, made
from vinvl.run.errors import UserError, say
from vinvl.run.files import write_json
from vinvl.run.overrides import command_overrides, given_values, refuse_unread_splits
from vinvl.run.progress import print_results, profiler, report

if TYPE_CHECKING:
    import pytorch_lightning as pl


def evaluate_detector(config: DictConfig) -> dict[str, float]:
    """Scores of weights or of predictions on `data.test_split`; results.json goes to `config.paths.output_dir`.

    Raises UserError for whatever a person has to change.
    """
    if (config.weights is None) == (config.predictions is None):
        raise UserError("Give weights=FILE, a detector's, or predictions=FILE, what one said of pictures: one of them.")
    if config.predictions_on_true_boxes is not None and config.predictions is None:
        raise UserError("predictions_on_true_boxes=FILE goes with predictions=FILE; weights need no such file.")
    refuse_unread_splits(given_values(command_overrides()), config.data)
    split = config.data.test_split  # others need not be said
    OmegaConf.update(config, "data.splits", {split: config.data.splits.get(split)}, merge=False)
    if config.predictions is not None and OmegaConf.is_dict(config.data.splits[split]):
        entry = config.data.splits[split]
        entry.pictures = None if OmegaConf.is_missing(entry, "pictures") else entry.pictures
    return of_weights(config) if config.predictions is None else of_predictions(config)


def of_weights(config: DictConfig) -> dict[str, float]:
    """Runs a detector on the pictures, on as many devices as the trainer has."""
    from pytorch_lightning import seed_everything

    from vinvl.detector.config import TrainingSettings
    from vinvl.detector.data import DetectionDataModule
    from vinvl.detector.task import FROZEN, DetectorTask
    from vinvl.detector.weights import open_detector
    from vinvl.extraction.provenance import detector_config
    from vinvl.run.callbacks import progress
    from vinvl.run.memory import FittingBatch
    from vinvl.run.survival import StopAtOnce

    seed_everything(config.seed, verbose=False)
    labels = None if config.labels is None else str(config.labels)
    opened = open_detector(str(config.weights), labels, partial(detector_config, config))
    if not opened.label_map.classes:
        raise UserError(f"{opened.weights} is scored by the names of its classes: pass labels=FILE, its label map.")
    settings = opened.detector.config
    task = DetectorTask(
        config=settings.plain(),
        label_map=opened.label_map.to_json(),
        training=TrainingSettings(),
        batch_norm=FROZEN,
        frozen_stages=0,
        scoring_threshold=config.scoring_threshold,
        more_scores=config.more_scores,
    )
    task.detector.load_state_dict(opened.detector.state_dict())
    data: Any = made(DetectionDataModule, config.data, "data", detector=settings)
    data.prepare_data()
    task.check_datamodule(data)
    data.setup("test")
    own = {"callbacks": [progress(), StopAtOnce(), FittingBatch()], "profiler": profiler(config)}
    trainer: pl.Trainer = instantiate(config.trainer, **own, logger=False, enable_checkpointing=False)
    if trainer.is_global_zero:
        say(opened.report)
    trainer.test(task, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        output, files = Path(config.paths.output_dir), {"weight file": opened.weights}
        report(task, output, split=config.data.test_split, checkpoint=None, files=files)
    return task.scores


def of_predictions(config: DictConfig) -> dict[str, float]:
    """Compares a detector's files with the annotations; no picture is looked at."""
    from vinvl.detector.data import DetectionDataModule
    from vinvl.detector.predictions import read_annotated, score_predictions
    from vinvl.detector.scores import DetectionScores, shown_rows
    from vinvl.detector.task import DetectorTask

    data: Any = made(DetectionDataModule, config.data, "data")
    data.prepare_data()
    records, labels = read_annotated(data)
    path, on_true_boxes = (
        None if name is None else Path(str(name)).expanduser()
        for name in (config.predictions, config.predictions_on_true_boxes)
    )
    assert path is not None
    scores = DetectionScores(labels, config.more_scores, true_boxes=on_true_boxes is not None, rpn=False)
    notes = score_predictions(path, on_true_boxes, records, labels, scores, str(config.unknown_names))
    found = scores.compute()
    results = Path(config.paths.output_dir) / "results.json"
    told = {"split": config.data.test_split, "predictions": str(path), "headline": DetectorTask.headline}
    write_json(results, {**told, "scores": found})
    files = {"run folder": results.parent, "predictions": path, "results": results}
    print_results(f"Results on '{config.data.test_split}'", shown_rows(found), files)
    say(*notes)
    return found


main = door(evaluate_detector, "evaluate_detector")


if __name__ == "__main__":
    enter(main, "evaluate_detector", sys.argv[1:])

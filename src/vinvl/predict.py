"""Answer a split's questions: `python -m vinvl.predict ckpt_path=FILE [data.predict_split=NAME]`.

About pictures: `python -m vinvl.predict ckpt_path=MODEL weights=detector.pth image=photo.jpg question="…"`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from vinvl.run.door import door, enter
from vinvl.run.errors import UserError, say
from vinvl.run.options import IN_QUOTES, as_text, open_sections, task_as_a_value

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from vinvl.data.module import RegionDataModule
    from vinvl.task import VinVLTask

QUOTED = ("image", "question", "text", "weights", "labels", "features", "output")  # texts and file names
ONLY_WITH_PICTURES = (*QUOTED[1:], "task_name")
ITEM = re.compile(rf"\s*({IN_QUOTES.pattern}|[^,]+)\s*(?:,|$)")  # of a list


def predict(config: DictConfig) -> list[Any]:
    """Predictions for `data.predict_split`, written to `config.paths.output_dir` in the task's official result format.

    The files are in the order of the split's own file. With `image`, what the model says of pictures instead.
    """
    if config.image is not None:
        from vinvl.predictor.command import ask_about_pictures

        return ask_about_pictures(config)
    _refuse_without_pictures(config)
    from pytorch_lightning import seed_everything

    from vinvl.restore import restore
    from vinvl.run.callbacks import progress
    from vinvl.run.memory import FittingBatch
    from vinvl.run.progress import profiler
    from vinvl.run.survival import StopAtOnce

    seed_everything(config.seed, verbose=False)
    restored = restore(config, "predict")
    restored.datamodule.setup("predict")
    own = {"callbacks": [progress(), StopAtOnce(), FittingBatch()], "profiler": profiler(config)}
    trainer: pl.Trainer = instantiate(config.trainer, **own, logger=False, enable_checkpointing=False)
    batches = trainer.predict(restored.task, datamodule=restored.datamodule) or []
    predictions = in_file_order(gather([prediction for batch in batches for prediction in batch]))
    predictions, filled_in = with_left_out(predictions, restored.task, restored.datamodule)
    if trainer.is_global_zero:
        files = restored.task.write_predictions(predictions, Path(config.paths.output_dir))
        missing = records_to_predict(restored.datamodule) - len(predictions)
        say(f"{len(predictions):,} predictions for '{restored.data.predict_split}':")
        for what, path in files.items():
            say(f"{(what.removeprefix('official ') if missing else what) + ':':<22} {path}")
        if filled_in:
            say(f"{filled_in:,} of them, of images without regions, are {restored.task.filled_with}.")
        if missing:
            say(f"{missing:,} of the split's records have none: a server that wants them all would refuse the file.")
    return predictions


def picture_arguments(arguments: list[str]) -> list[str]:
    """Command-line arguments of a call about pictures, so that Hydra takes texts as they are and leaves no run folder.

    Others come back as they are. Commas, quotes and brackets in questions and file names mean something to Hydra.
    """
    if not any(argument.startswith("image=") for argument in arguments):
        return arguments
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    quoted = [argument if sweep else _quoted(argument) for argument in arguments]
    settings = {"hydra.run.dir": ".", "hydra.output_subdir": "null", "hydra/job_logging": "none"}
    said = {argument.split("=", 1)[0] for argument in arguments}
    return [*quoted, *(f"{key}={value}" for key, value in settings.items() if key not in said)]


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key not in QUOTED or not equals or value in ("", "null"):
        return argument
    if value.startswith("[") and value.endswith("]"):
        items = (one.strip() for one in ITEM.findall(value[1:-1]))
        return f"{key}=[{','.join(as_text(item) for item in items)}]"
    return f"{key}={as_text(value)}"


def _refuse_without_pictures(config: DictConfig) -> None:
    for key in ONLY_WITH_PICTURES:
        if config[key] is not None:
            raise UserError(f"{key}={config[key]} is for pictures: pass image=… with it, or leave it out.")


def gather(predictions: list[Any]) -> list[Any]:
    """The predictions of all ranks, on every rank."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        return predictions
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, predictions)
    return [prediction for part in parts for prediction in part]


def with_left_out(predictions: list[Any], task: VinVLTask, data: RegionDataModule) -> tuple[list[Any], int]:
    """The predictions with those of the records that data.on_missing=skip has left out, and how many these are.

    A server wants an answer to every record, and the task may know one without the image.
    """
    left_out = data.left_out
    if left_out is None:
        return predictions, 0
    task.commonest = task.commonest or data.known_commonest()
    found = [task.filled_in(left_out.records, index) for index in range(len(left_out.places))]
    filled_in = [
        one._replace(position=int(place)) for one, place in zip(found, left_out.places, strict=True) if one is not None
    ]
    own = [one._replace(position=int(left_out.kept[one.position])) for one in predictions]
    return in_file_order(own + filled_in), len(filled_in)


def records_to_predict(data: RegionDataModule) -> int:
    """How many records the split has, with and without regions."""
    return len(data.datasets["predict"]) + (0 if data.left_out is None else len(data.left_out.places))


def in_file_order(predictions: list[Any]) -> list[Any]:
    """Sorted by their `position` in the split's file: batches come longest first."""
    return sorted(predictions, key=lambda prediction: prediction.position)


main = door(predict, "predict")


if __name__ == "__main__":
    enter(
        main, "predict", open_sections(picture_arguments(task_as_a_value(sys.argv[1:]))), restored=("data", "decoding")
    )

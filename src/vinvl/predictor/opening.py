"""A trained model ready for use, from whatever kind of file it lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vinvl.captioning.task import positions_needed
from vinvl.models.encoder import VinVLModel
from vinvl.models.export import check_tokenizer
from vinvl.models.published import ENCODER, MODEL_OF_TASK, convert_model, model_of_task
from vinvl.models.weight_files import DATA_PARALLEL, MMF_MODEL, TRAINING_CHECKPOINT, CheckpointFiles, find_checkpoint
from vinvl.models.weights import LoadingReport
from vinvl.predictor.usage import DATA_OF_TASK, MMF_RECIPE, Usage, said_by_run
from vinvl.regions.feature_record import FeatureRecord
from vinvl.run.checkpoint import OUR_KEY, read_checkpoint
from vinvl.run.errors import UserError
from vinvl.run.faults import CHECKPOINTS
from vinvl.run.files import json_object
from vinvl.task import task_class
from vinvl.trained import find_answers, find_tokenizer, rows_of_given

# What a checkpoint of ours says besides its tensors, and whose model foreign weights are.


def read_ours(files: CheckpointFiles) -> dict[str, Any]:
    """The content of a checkpoint of ours, {} for anybody else's weights."""
    if files.weights.suffix != TRAINING_CHECKPOINT or not files.config:
        return {}
    checkpoint = read_checkpoint(files.weights)
    del checkpoint["state_dict"]  # read again where it is needed: two copies would not fit where one does
    return checkpoint


def task_of(ours: Mapping[str, Any], files: CheckpointFiles) -> str | None:
    """The task that a checkpoint of ours was trained on, None for anybody else's."""
    if not ours:
        return None
    name = task_class(dict(ours), files.weights).__module__.split(".")[1]
    model_of_task(name)
    return name


def only_task_of(model: object) -> str | None:
    """The task of a model that only one has."""
    tasks = [task for task, kind in MODEL_OF_TASK.items() if kind is type(model)]
    return tasks[0] if len(tasks) == 1 else None


# vinvl.json in a model folder: its task, how it is used, and how the features were made it was trained on.


USE_FILE = "vinvl.json"


def record_of_use(
    task: str | None, ours: Mapping[str, Any], files: CheckpointFiles, report: LoadingReport
) -> dict[str, Any] | None:
    """What the file says of a model; None where the task is none that a model is used for.

    Of anybody else's weights no more than the task is known, and whether they are MMF's. Of paths the file has the last
    name alone, for folders are published.

    Raises:
        UserError: a checkpoint of ours says of itself what cannot be.
    """
    if task not in DATA_OF_TASK:
        return None
    if not ours:
        return {"task": task, "recipe": recipe_of(report)}
    usage = Usage.of_task(task, said_by_run(ours), {}, {}, files.name).plain()
    if usage["inputs"]["tags"] is not None:
        usage["inputs"]["tags"] = Path(usage["inputs"]["tags"]).name
    constraints = usage["decoding"]["constraints"]
    if constraints is not None:
        usage["decoding"]["constraints"] = {name: _bare(value) for name, value in constraints.items()}
    features = FeatureRecord.of_plain(ours[OUR_KEY].get("features")).plain()
    return {"task": task, **usage, "features": features}


def recipe_of(report: LoadingReport) -> str | None:
    """The recipe whose numbers weights are used with, where they are not those of Oscar: MMF's, by their names."""
    originals = (DATA_PARALLEL.sub("", original) for original, _ in report.renamed)
    return MMF_RECIPE if any(MMF_MODEL.match(name) for name in originals) else None


def read_use_file(folder: Path) -> dict[str, Any]:
    """What the file in a folder says, {} if there is none; its values are not checked.

    Raises:
        UserError: it is no JSON object.
    """
    path = folder / USE_FILE
    if not path.is_file():
        return {}
    return json_object(path)


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(one) for one in value]
    return Path(value).name if isinstance(value, str) else value


ANSWERING = ("vqa", "gqa")
FINE_TUNING_TASKS = {"vqa": "vqa", "vqa_text": "vqa", "gqa": "gqa", "ir": "retrieval", "retrieval": "retrieval"}
"""`finetuning_task` in config.json, as Oscar's scripts and ours write it → the task."""


@dataclass(frozen=True)
class Used:
    """What a model that is used for a task needs besides its weights.

    Attributes:
        usage: what it sees of its inputs and how it decodes.
        tokenizer: the one that it was trained with.
        answers: those that an answering model chooses between; empty for others.
    """

    usage: Usage
    tokenizer: PreTrainedTokenizerBase
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, on the CPU.

    Attributes:
        name: as it was given.
        task: a key of `MODEL_OF_TASK`.
        model: of the class that the task has.
        used: what its use needs; None for encoders and pre-training models, which are no use as they are.
        features: how the features were made that it was trained on, as far as is known.
    """

    name: str
    task: str
    model: PreTrainedModel
    used: Used | None
    features: FeatureRecord


def open_trained(
    name: str | Path,
    *,
    task: str | None = None,
    tokenizer: str | Path | None = None,
    answers: str | Path | Sequence[str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """The model of a checkpoint of ours, of a run's folder, or of whatever `find_checkpoint` takes.

    Nothing that a file says is called; its settings are held against what they may be.

    Args:
        name: where it lies.
        task: what it was trained for, where neither the file nor its tensors show it.
        tokenizer: None: that of the training run, or the one beside the weights.
        answers: a file of them or the texts; None: those of the training run, or of the model's configuration.
        inputs, decoding: settings of `Usage` that go before those that the model was trained with.

    Raises:
        UserError: there is no such model, it is damaged, or something that it needs is not known.
    """
    place = str(name)
    files = find_checkpoint(_of_run(name))
    ours = read_ours(files)
    said = {} if ours else read_use_file(files.weights.parent)
    task = task or task_of(ours, files) or _task_in(said, files)
    model, report = convert_model(files, task, None, lambda size: rows_of_given(answers, files, size, new_ones=False))
    task = task or _task_of_model(model, files, place)
    if answers is not None and task not in ANSWERING:
        raise UserError(f"{place} is a model for {task}, which chooses no answers: leave answers out.")
    if decoding and task != "captioning":
        raise UserError(f"{place} is a model for {task}, which writes no captions: leave decoding out.")
    known = said_by_run(ours) if ours else {"recipe": recipe_of(report), **said}
    features = FeatureRecord.of_plain(ours[OUR_KEY].get("features") if ours else said.get("features"))
    model.requires_grad_(False)
    used = None
    if task in DATA_OF_TASK:
        usage = Usage.of_task(task, known, inputs or {}, decoding or {}, place)
        _check_positions(model, usage, task, place)
        tokenizer_name, found = find_tokenizer(None if tokenizer is None else str(tokenizer), files)
        check_tokenizer(model, found, tokenizer_name)
        used = Used(usage, found, _answers(answers, files, model, task, place))
    return TrainedModel(place, task, model, used, features)


def _of_run(name: str | Path) -> str | Path:
    """The best checkpoint, else the last, where a run's folder is named; else the name."""
    for which in ("best", "last"):
        path = Path(name).expanduser() / CHECKPOINTS / f"{which}.ckpt"
        if path.is_file():
            return path
    return name


def _task_in(said: Mapping[str, Any], files: CheckpointFiles) -> str | None:
    task = said.get("task")
    if task is not None and (not isinstance(task, str) or task not in MODEL_OF_TASK):
        raise UserError(f"The vinvl.json of {files.name} names a task that there is not: convert the model again.")
    return task


def _task_of_model(model: PreTrainedModel, files: CheckpointFiles, place: str) -> str:
    """The task of a model whose file does not name it."""
    if type(model) is VinVLModel:
        return ENCODER
    found = only_task_of(model) or FINE_TUNING_TASKS.get(str(files.config.get("finetuning_task")))
    if found is None:
        raise UserError(
            f"{place} does not say what its classifier of {model.config.num_labels:,} was trained for: pass task=vqa, "
            "gqa or retrieval."
        )
    return found


def _answers(
    given: str | Path | Sequence[str] | None, files: CheckpointFiles, model: PreTrainedModel, task: str, place: str
) -> tuple[str, ...]:
    if task not in ANSWERING:
        return ()
    found = find_answers(given, files, model)
    if found is None:
        raise UserError(
            f"{place} does not carry the texts of its {model.config.num_labels:,} answers: pass answers=FILE, the "
            "trainval_label2ans.pkl that it was published with, or a JSON list."
        )
    return tuple(found)


def _check_positions(model: PreTrainedModel, usage: Usage, task: str, place: str) -> None:
    captions = task == "captioning"
    needed = positions_needed(usage.caption_limits, usage.decoding_options) if captions else usage.max_tokens
    known = model.config.max_position_embeddings
    if needed > known:
        raise UserError(
            f"{place}: the text of an example may take {needed} positions, and the model knows {known}: give a lower "
            f"max_tokens{' or max_length' if captions else ''}."
        )

"""What a checkpoint of ours says besides its tensors, and whose model foreign weights are."""

from collections.abc import Mapping
from typing import Any

from vinvl.models.checkpoint_files import TRAINING_CHECKPOINT, CheckpointFiles
from vinvl.models.model_kinds import MODEL_OF_TASK, model_of_task
from vinvl.runs import task_class
from vinvl.tasks.checkpoints import read_checkpoint


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
    name = task_class(dict(ours), files.weights).__module__.rpartition(".")[2]
    model_of_task(name)
    return name


def only_task_of(model: object) -> str | None:
    """The task of a model that only one has."""
    tasks = [task for task, kind in MODEL_OF_TASK.items() if kind is type(model)]
    return tasks[0] if len(tasks) == 1 else None

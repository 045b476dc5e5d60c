"""The VinVL models in plain torch and transformers; they know nothing of training, data or Hydra.

What is named here is read from its file when it is asked for, so that no task loads the heads of another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vinvl.run.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinvl.models.answering import VinVLForAnswering, VinVLForPairs, answer_loss
    from vinvl.models.captioning import VinVLForCaptioning
    from vinvl.models.config import VinVLConfig
    from vinvl.models.encoder import VinVLModel
    from vinvl.models.pretraining import VinVLForPreTraining
    from vinvl.models.weight_files import load_published_state_dict
    from vinvl.models.weights import LoadingReport, initialise

__all__ = [
    "LoadingReport", "VinVLConfig", "VinVLForAnswering", "VinVLForCaptioning", "VinVLForPairs", "VinVLForPreTraining",
    "VinVLModel", "answer_loss", "initialise", "load_published_state_dict",
]  # fmt: skip
ENCODER = "encoder"  # only the encoder, of no task
MODEL_OF_TASK = {
    "vqa": "VinVLForAnswering", "gqa": "VinVLForAnswering", "retrieval": "VinVLForAnswering", "nlvr2": "VinVLForPairs",
    "captioning": "VinVLForCaptioning", "pretraining": "VinVLForPreTraining", ENCODER: "VinVLModel",
}  # fmt: skip


def model_of_task(task: str) -> "type[PreTrainedModel]":
    """The model class of a task; raises UserError if there is no such task."""
    if task not in MODEL_OF_TASK:
        raise UserError(f"There is no task {task!r} to convert for; choose one of {', '.join(MODEL_OF_TASK)}.")
    kind: type[PreTrainedModel] = __getattr__(MODEL_OF_TASK[task])
    return kind


def __getattr__(name: str) -> Any:
    for file in ("config", "answering", "captioning", "pretraining", "encoder", "weight_files", "weights"):
        if name in __all__ and hasattr(module := import_module(f"{__name__}.{file}"), name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The VinVL models in plain torch and transformers; they know nothing of training, data or Hydra.

What is named here is read from its file when it is asked for, so that no task loads the heads of another. Only the
encoder is there at once: transformers' AutoConfig and AutoModel know it from then on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vinvl.run.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinvl.models.answering import VinVLForAnswering, VinVLForPairs, answer_loss  # noqa: F401
    from vinvl.models.captioning import VinVLForCaptioning  # noqa: F401
    from vinvl.models.config import VinVLConfig  # noqa: F401
    from vinvl.models.encoder import VinVLModel  # noqa: F401
    from vinvl.models.pretraining import VinVLForPreTraining  # noqa: F401
    from vinvl.models.weight_files import load_published_state_dict  # noqa: F401
    from vinvl.models.weights import LoadingReport, initialise  # noqa: F401

_NAMES = {
    "answering": ("VinVLForAnswering", "VinVLForPairs", "answer_loss"), "captioning": ("VinVLForCaptioning",),
    "config": ("VinVLConfig",), "encoder": ("VinVLModel",), "pretraining": ("VinVLForPreTraining",),
    "weight_files": ("load_published_state_dict",), "weights": ("LoadingReport", "initialise"),
}  # fmt: skip
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
    file = next((file for file, names in _NAMES.items() if name in names), None)
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{file}"), name)


import_module(f"{__name__}.{ENCODER}")

"""Which model each task has, and what a foreign checkpoint's tensors say about the task they were trained for."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vinvl.errors import UserError
from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.encoder import VinVLModel
from vinvl.models.heads import VinVLForAnswering
from vinvl.models.pairs import VinVLForPairs
from vinvl.models.pretraining import VinVLForPreTraining

ENCODER = "encoder"  # the encoder alone, of no task
MODEL_OF_TASK: dict[str, type[PreTrainedModel]] = {
    "vqa": VinVLForAnswering,
    "gqa": VinVLForAnswering,
    "retrieval": VinVLForAnswering,
    "nlvr2": VinVLForPairs,
    "captioning": VinVLForCaptioning,
    "pretraining": VinVLForPreTraining,
    ENCODER: VinVLModel,
}


def model_of_task(task: str) -> type[PreTrainedModel]:
    """The model class of a task.

    Raises:
        UserError: no such task.
    """
    if task not in MODEL_OF_TASK:
        raise UserError(f"There is no task {task!r} to convert for; choose one of {', '.join(MODEL_OF_TASK)}.")
    return MODEL_OF_TASK[task]


def recognise_model(config: Mapping[str, Any], found: Mapping[str, Tensor]) -> type[PreTrainedModel]:
    """The model class that a checkpoint's config.json names, or else its tensors show.

    Plain BERT, which has no projection of regions, is an encoder whatever heads it brings: they know no regions.

    Args:
        config: the checkpoint's config.json.
        found: its tensors, as `by_modern_names` calls them.
    """
    named = {kind.__name__: kind for kind in MODEL_OF_TASK.values()}
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if name in named:
            return named[name]
    if "img_embedding.weight" not in found:
        return VinVLModel
    if "cls.seq_relationship.weight" in found:
        return VinVLForPreTraining
    if "cls.predictions.bias" in found:
        return VinVLForCaptioning
    if not any(name.startswith("classifier.") for name in found):
        return VinVLModel
    head, pooler = found.get("classifier.weight", found.get("classifier.0.weight")), found.get("pooler.dense.weight")
    if head is None or pooler is None or head.dim() != 2 or pooler.dim() != 2:
        return VinVLForAnswering  # which the conversion will find to be without a head of its kind
    return VinVLForPairs if head.shape[1] == 2 * pooler.shape[0] else VinVLForAnswering

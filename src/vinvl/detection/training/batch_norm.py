"""Batch norm while training from scratch, constants ever after.

The published detector, fine-tuned from an ImageNet network, keeps its batch norm frozen; random weights hardly learn
without it. So it is trained and then folded into the same constants, exactly.
"""

from typing import TypeVar

from torch import nn

from vinvl.detection.resnext import FrozenBatchNorm2d

NORM_EPSILON = 1e-5  # torch's, added to the variances
Norm = TypeVar("Norm", FrozenBatchNorm2d, nn.BatchNorm2d)


def train_batch_norm(module: nn.Module) -> None:
    """Puts trainable batch norm in the place of all frozen ones in a module; in evaluation it does the same as before.

    To the rounding of its epsilon: a variance smaller than that becomes that.
    """
    for parent, name, norm in _norms(module, FrozenBatchNorm2d):
        channels = norm.get_buffer("weight").numel()
        trained = nn.BatchNorm2d(channels, eps=NORM_EPSILON, device=norm.get_buffer("weight").device)
        state = dict(norm.state_dict())
        state["running_var"] = (state["running_var"] - trained.eps).clamp(min=0)
        trained.load_state_dict(state, strict=False)  # the count of batches is its own
        trained.train(norm.training)
        setattr(parent, name, trained)


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts constants in the place of all trainable batch norm in a module, which do what that does in evaluation.

    Frozen norm has no epsilon, so that of the trained one is added to the variance.
    """
    for parent, name, norm in _norms(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(norm.num_features).to(norm.weight.device)
        state = {key: value for key, value in norm.state_dict().items() if key != "num_batches_tracked"}
        state["running_var"] = state["running_var"] + norm.eps
        frozen.load_state_dict(state)
        frozen.train(norm.training)
        setattr(parent, name, frozen)


def _norms(module: nn.Module, kind: type[Norm]) -> list[tuple[nn.Module, str, Norm]]:
    """(parent, name in it, norm) of all norms of a kind."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]

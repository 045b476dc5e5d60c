"""Where half precision ends."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """A context in which a surrounding autocast, if there is one, does not lower anything on the tensor's device."""
    return torch.autocast(like.device.type, enabled=False)

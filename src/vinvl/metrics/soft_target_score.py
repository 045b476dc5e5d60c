"""The score that the published training code prints for VQA."""

import torch
from torch import Tensor
from torchmetrics import Metric


class SoftTargetScore(Metric):
    """Soft target of the arg-max answer, averaged over questions, in percent.

    This is the number the published Oscar code calls its score while training. It is *not* the official VQA accuracy
    (`VQAAccuracy`): it knows only answers of the vocabulary, compares normalised texts always and leaves nobody out.
    Report it under its own name.

    Sums stay on the device: `update` never waits for it. Targets that are multiples of 2^-33 (every float32 of 0.001 or
    more) are added without rounding, so order and ranks do not change the result for up to a million questions.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    total: Tensor
    questions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("questions", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds B questions; pass only questions that have people's answers.

        logits (B, A) any float type; targets (B, A) soft scores 0 to 1. A question none of whose answers is in the
        vocabulary has a row of zeros and counts as wrong. Raises ValueError if the shapes differ.
        """
        if logits.ndim != 2 or logits.shape != targets.shape:
            shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"Expected logits and targets of one shape (B, A), got {shapes}.")
        best = logits.detach().argmax(dim=1, keepdim=True)  # (B, 1)
        self.total += targets.detach().gather(1, best).sum(dtype=torch.float64)
        self.questions += targets.shape[0]

    def compute(self) -> Tensor:
        """Returns the mean in percent, 0 to 100, as a float64 scalar; nan if nothing was seen."""
        return 100 * self.total / self.questions

"""NLVR2: accuracy and consistency."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vinvl.exact import decode_lines, encode_lines
from vinvl.run.errors import UserError

OFFICIAL = re.compile(r"[^-]+-\d+-\d+-\d+")  # split-set-pair-sentence
PAIR_FIELD = 2


def is_official(identifier: str) -> bool:
    """Whether an identifier is of the form split-set-pair-sentence (dev-308-1-0), which consistency needs."""
    return OFFICIAL.fullmatch(identifier) is not None


def sentence_group(identifier: str) -> str:
    """The sentence that an example asks about: its official identifier with the third field, the pair, blanked.

    >>> sentence_group("dev-308-1-0")
    'dev-308--0'
    """
    fields = identifier.split("-")
    fields[PAIR_FIELD] = ""
    return "-".join(fields)


class PairAccuracy(Metric):
    """Accuracy and consistency of NLVR2 in percent, as float64 scalars "accuracy" and "consistency".

    Consistency is the share of sentences all of whose examples are right (official NLVR2 evaluation); it is left out
    where an identifier is not official, because then the sentences are unknown. Every identifier counts once, however
    often and on however many ranks it was seen; order and batches change nothing. Both are nan if nothing was seen.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    identifiers: list[Tensor]
    correct: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("identifiers", default=[], dist_reduce_fx="cat")
        self.add_state("correct", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no example must still join the gathering with tensors of the right types.
        self.identifiers = [encode_lines([]).to(self.device)]
        self.correct = [torch.empty(0, dtype=torch.uint8, device=self.device)]

    def update(self, identifiers: Sequence[str], predictions: Tensor, labels: Tensor) -> None:
        """Adds B examples: identifiers as in the NLVR2 files, predictions and labels (B,) bool.

        Raises ValueError if lengths or types differ.
        """
        for tensor in (predictions, labels):
            if tensor.dtype != torch.bool or tensor.shape != (len(identifiers),):
                raise ValueError(f"Expected bool ({len(identifiers)},), got {tensor.dtype} {tuple(tensor.shape)}.")
        self.identifiers.append(encode_lines([identifier] for identifier in identifiers).to(self.device))
        self.correct.append((predictions == labels).to(device=self.device, dtype=torch.uint8))

    def compute(self) -> dict[str, Tensor]:
        """Returns accuracy and, of official identifiers, consistency.

        Raises UserError if an identifier was seen both right and wrong.
        """
        right: dict[str, bool] = {}
        answers = dim_zero_cat(self.correct).tolist()
        for (identifier,), answer in zip(decode_lines(self.identifiers), answers, strict=True):
            if right.setdefault(identifier, bool(answer)) != bool(answer):
                raise UserError(
                    f"NLVR2 example {identifier!r} was seen twice, once answered right and once wrong; give one "
                    "prediction per identifier."
                )
        if not all(map(is_official, right)):
            return {"accuracy": self._percent(right)}
        groups: dict[str, bool] = {}
        for identifier, answer in right.items():
            group = sentence_group(identifier)
            groups[group] = groups.get(group, True) and answer
        return {"accuracy": self._percent(right), "consistency": self._percent(groups)}

    def _percent(self, right: dict[str, bool]) -> Tensor:
        value = 100 * sum(right.values()) / len(right) if right else float("nan")
        return torch.tensor(value, dtype=torch.float64, device=self.device)

"""An answer head's rows are answers: from a checkpoint's head to another list of answers, by their texts."""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vinvl.errors import UserError

NEW = -1  # no row there
NAMES_SHOWN = 5


@dataclass(frozen=True)
class AnswerRows:
    """Which row of a checkpoint's head each answer takes.

    Attributes:
        there: the answers of the checkpoint's head, by row.
        here: those of the model to build.
        rows: for each of `here` its row there, or `NEW`.
    """

    there: tuple[str, ...]
    here: tuple[str, ...]
    rows: tuple[int, ...]

    @classmethod
    def anew(cls, answers: Sequence[str]) -> Self:
        """All of them new."""
        return cls((), tuple(answers), (NEW,) * len(answers))

    @property
    def new(self) -> list[str]:
        """Answers without a row there: theirs are random."""
        return [answer for answer, row in zip(self.here, self.rows, strict=True) if row == NEW]

    @property
    def kept(self) -> int:
        """How many answers have a row there."""
        return len(self.here) - len(self.new)

    @property
    def dropped(self) -> list[str]:
        """Answers of the checkpoint whose rows are not used."""
        used = set(self.rows)
        return [answer for row, answer in enumerate(self.there) if row not in used]

    def place(self, source: str, found: MutableMapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Puts the head's rows of `found`, a checkpoint's tensors by our names, into the order of `here`.

        New rows are those of `own`, the model's fresh tensors. Where no answer is kept the head is left out altogether.

        Raises:
            UserError: the checkpoint `source` names more or fewer answers than its head has rows.
        """
        if not self.kept:
            for name in [name for name in found if name.startswith("classifier.")]:
                del found[name]
            return
        target = torch.tensor([number for number, row in enumerate(self.rows) if row != NEW])
        row_there = torch.tensor([row for row in self.rows if row != NEW])
        for name in output_layer(found):
            if len(found[name]) != len(self.there):
                raise UserError(
                    f"{source} has a head of {len(found[name]):,} answers and names {len(self.there):,}: get it again."
                )
            if name in own and own[name].shape == (len(self.here), *found[name].shape[1:]):
                rows = own[name].detach().clone()
                rows[target] = found[name][row_there].to(rows.dtype)
                found[name] = rows

    def __str__(self) -> str:
        if not self.kept:
            return "none of those there, the head begins anew"
        parts = [f"{self.kept:,} kept by their texts"]
        for what, names in (("new, randomly initialised", self.new), ("not used", self.dropped)):
            if names:
                more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
                parts.append(f"{len(names):,} {what} ({', '.join(map(repr, names[:NAMES_SHOWN]))}{more})")
        return ", ".join(parts)


def output_layer(found: Mapping[str, Tensor]) -> list[str]:
    """The tensors of an answer head that have a row per answer: of its only or last linear layer."""
    layers = {int(match[1] or -1) for name in found if (match := re.match(r"classifier\.(?:(\d+)\.)?weight$", name))}
    if not layers:
        return []
    prefix = "classifier." if max(layers) < 0 else f"classifier.{max(layers)}."
    return [name for name in (f"{prefix}weight", f"{prefix}bias") if name in found and found[name].dim() > 0]

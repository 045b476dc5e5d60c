"""NLVR2: accuracy and consistency."""

import re
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from vinvl.exact import Gathered, decode_lines, encode_lines
from vinvl.run.errors import UserError

OFFICIAL = re.compile(r"([^-]+-\d+)-\d+-(\d+)")  # split-set-pair-sentence, such as dev-308-1-0


def sentence_of(identifier: str) -> tuple[str, ...] | None:
    """What all examples with one sentence share, whatever the pair of pictures; None of one that is not official.

    >>> sentence_of("dev-308-1-0")
    ('dev-308', '0')
    """
    official = OFFICIAL.fullmatch(identifier)
    return None if official is None else official.groups()


class PairAccuracy(Gathered):
    """Accuracy and consistency of NLVR2 in percent, as float64 scalars "accuracy" and "consistency".

    Consistency is the share of sentences all of whose examples are right (official NLVR2 evaluation); it is left out
    where an identifier is not official, because then the sentences are unknown. Every identifier counts once, however
    often and on however many ranks it was seen; order and batches change nothing. Both are nan if nothing was seen.
    """

    def update(self, identifiers: Iterable[str], right: Tensor) -> None:
        """Adds B examples: identifiers as in the NLVR2 files, and whether they were judged rightly, (B,) bool."""
        self.seen.append(encode_lines(zip(identifiers, right.tolist(), strict=True)).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns accuracy and, of official identifiers, consistency.

        Raises UserError if an identifier was seen both right and wrong.
        """
        right: dict[str, bool] = {}
        for identifier, answer in decode_lines(self.seen):
            if right.setdefault(identifier, answer) != answer:
                raise UserError(
                    f"NLVR2 example {identifier!r} was seen twice, once answered right and once wrong; give one "
                    "prediction per identifier."
                )
        sentences: dict[tuple[str, ...] | None, bool] = {}
        for identifier, answer in right.items():
            sentence = sentence_of(identifier)
            sentences[sentence] = sentences.get(sentence, True) and answer
        figures = {"accuracy": self._percent(right.values())}
        return figures if None in sentences else figures | {"consistency": self._percent(sentences.values())}

    def _percent(self, right: Collection[bool]) -> Tensor:
        value = 100 * sum(right) / len(right) if right else float("nan")
        return torch.tensor(value, dtype=torch.float64, device=self.device)

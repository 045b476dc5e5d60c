"""NLVR2's result files: lines of `identifier,True` or `identifier,False`, as the official metrics.py reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vinvl.data.table import RecordTable
from vinvl.nlvr2.metric import PairAccuracy
from vinvl.nlvr2.task import NLVR2Task, accuracy_rows, nlvr2_examples
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.values import shown
from vinvl.said import Scored, by_name, matched

VERDICTS = {"true": 1, "false": 0}


def read_verdicts(path: Path) -> Iterator[tuple[str, str, int]]:
    """(place, identifier, 1 or 0) of each line that is not blank. Raises UserError for one that is something else."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}): give lines of identifier,True or identifier,False."
        ) from None
    for number, line in enumerate(text.splitlines(), start=1):
        identifier, comma, verdict = line.strip().rpartition(",")
        if not line.strip():
            continue
        if not comma or verdict.strip().lower() not in VERDICTS:
            raise UserError(f"{path} line {number} is {shown(line)}: give identifier,True or identifier,False.")
        yield f"{path} line {number}", identifier.strip(), VERDICTS[verdict.strip().lower()]


def score(data: Any, records: RecordTable, path: Path, missing: str) -> Scored:
    """Accuracy and, where identifiers are official, consistency."""
    said = matched(read_verdicts(path), [by_name(records["identifier"])], records, path, missing, absent=-1)
    labels, identifiers = list(records["label"]), list(records["identifier"])
    right = [said.values[place] == int(labels[place]) for place in said.places]
    accuracy = PairAccuracy()
    accuracy.update([str(identifiers[place]) for place in said.places], torch.tensor(right))
    found = {name: value.item() for name, value in accuracy.compute().items()}
    answered = np.array(
        [[place, said.values[place], 100.0 * is_right] for place, is_right in zip(said.places, right, strict=True)]
    )
    examples = nlvr2_examples(records, answered)
    return Scored(found, NLVR2Task.headline, accuracy_rows(found), examples, said.told, said.missing)

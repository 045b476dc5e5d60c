"""GQA's result files, `[{"questionId", "prediction"}]`, with all that the official script says of them."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from vinvl.data.table import RecordTable
from vinvl.exact import CategoryAccuracy, Earned
from vinvl.gqa.data import GQADataModule
from vinvl.gqa.metric import OfficialScores
from vinvl.gqa.official import Official, read_grounding
from vinvl.gqa.task import PREFIX, GQATask, accuracy_rows, gqa_examples, typed_accuracy
from vinvl.run.errors import UserError
from vinvl.run.files import json_parts
from vinvl.run.values import Id, decoded_records
from vinvl.said import Matched, Scored, by_name, matched, numbered
from vinvl.vqa.results import Top


class Predicted(msgspec.Struct, gc=False):
    questionId: Id | UnsetType = UNSET  # noqa: N815
    question_id: Id | UnsetType = UNSET
    prediction: str | UnsetType = UNSET
    top: list[Top] | UnsetType = UNSET


def read_predictions_given(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, question, answer) of each entry, of our predictions.jsonl too; a folder stands for its parts.

    Raises UserError for anything else.
    """
    decoder = msgspec.json.Decoder(Predicted)
    for file, number, one in chain.from_iterable(decoded_records(part, decoder) for part in json_parts(path)):
        name = one.questionId if one.questionId is not UNSET else one.question_id
        answer = one.prediction if one.prediction is not UNSET else one.top[0].answer if one.top else UNSET
        if name is UNSET or answer is UNSET:
            raise UserError(f'{file} {number} is no prediction: give [{{"questionId": …, "prediction": …}}].')
        yield f"{file} {number}", str(name), str(answer)


def score(data: GQADataModule, records: RecordTable, path: Path, missing: str, attentions: str | None = None) -> Scored:
    """Accuracy by type and, of the files that are there, the official figures; `attentions`: a file, for grounding."""
    split = data.split_of["test"]
    official = data.official(split)
    if attentions is not None and (official is None or official.objects is None):
        raise UserError(
            f"attentions={attentions} needs to know where objects are: pass data.scene_graphs.{split}=FILE."
        )
    said = matched(read_predictions_given(path), [by_name(records["question_id"])], records, path, missing)
    answers = list(records["answer"])
    right = [said.values[place] == answers[place] for place in said.places]
    found = accuracies(records, said, right)
    scores = None if official is None else official_scores_of(official, records, said, attentions)
    if scores is not None:
        found |= {f"{PREFIX}{name}": value for name, value in scores.flat().items()}
    texts, numbers = numbered(said.values, said.places)
    answered = np.stack([said.places, numbers, 100.0 * np.array(right)], axis=1)
    examples = gqa_examples(records, answered, texts)
    text = "" if scores is None else scores.printed()
    return Scored(found, GQATask.headline, accuracy_rows(found), examples, said.told, said.missing, text)


def accuracies(records: RecordTable, said: Matched, right: list[bool]) -> dict[str, float]:
    columns = [list(records.get(name) or [None] * len(records)) for name in ("structural", "semantic")]
    rows: list[Earned] = []
    for place, is_right in zip(said.places, right, strict=True):
        rows += typed_accuracy(is_right, *(column[place] for column in columns))
    accuracy = CategoryAccuracy()
    accuracy.update(rows)
    return {f"accuracy/{name}": value.item() for name, value in accuracy.compute().items()}


def official_scores_of(
    official: Official, records: RecordTable, said: Matched, attentions: str | None
) -> OfficialScores | None:
    ids = list(records["question_id"])
    predictions = {str(ids[place]): said.values[place] for place in said.places}
    grounding = None if attentions is None else read_grounding(attentions, official.objects or {})
    return official.scores_of_answered(predictions, grounding)

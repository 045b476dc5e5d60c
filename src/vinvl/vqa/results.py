"""VQA's result files: `[{"question_id", "answer"}]`, VizWiz's `[{"image", "answer"}]`, and our predictions.jsonl."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from vinvl.data.table import RecordTable
from vinvl.exact import OVERALL, CategoryAccuracy, Earned
from vinvl.run.errors import UserError
from vinvl.run.values import Id, decoded_records
from vinvl.said import Matched, Scored, by_name, matched, numbered
from vinvl.vqa.accuracy import official_accuracy
from vinvl.vqa.task import VQATask, accuracy_rows, vqa_examples


class Top(msgspec.Struct, gc=False):
    answer: str


class Answered(msgspec.Struct, gc=False):
    question_id: Id | UnsetType = UNSET
    image: str | UnsetType = UNSET
    answer: str | UnsetType = UNSET
    top: list[Top] | UnsetType = UNSET


def read_answers_given(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, question id or picture file, answer) of each entry. Raises UserError for one that is something else."""
    for file, number, one in decoded_records(path, msgspec.json.Decoder(Answered)):
        place, name = f"{file} {number}", one.question_id if one.question_id is not UNSET else one.image
        answer = one.answer if one.answer is not UNSET else one.top[0].answer if one.top else UNSET
        if name is UNSET or answer is UNSET:
            raise UserError(f'{place} is no answer: give [{{"question_id": …, "answer": …}}], or "image" for VizWiz.')
        yield place, str(name), str(answer)


def score(data: Any, records: RecordTable, path: Path, missing: str) -> Scored:
    """The official accuracy of a file of answers; of the published folder, without people's answers, the targets'."""
    names = [by_name(records["question_id"])]
    if "image_file" in records:
        names.append(by_name(records["image_file"]))
    said = matched(read_answers_given(path), names, records, path, missing)
    return (people_scored if "answers" in records else targets_scored)(records, said)


def people_scored(records: RecordTable, said: Matched) -> Scored:
    accuracy, rows, scores = CategoryAccuracy(), list[Earned](), list[float]()
    columns = [list(records.get(name) or [None] * len(records)) for name in ("answers", "answer_type", "question_type")]
    for place in said.places:
        earned = official_accuracy(said.values[place], *(column[place] for column in columns))
        if place in said.lacking:  # though people may have said what counts as nothing, "the"
            earned = [(category, most, 0, questions) for category, most, _, questions in earned]
        rows += earned
        scores.append(100 * earned[0][2] / earned[0][1])
    accuracy.update(rows)
    found = {f"accuracy/{name}": value.item() for name, value in accuracy.compute().items()}
    return scored_with(records, said, found, accuracy_rows(found), scores)


def targets_scored(records: RecordTable, said: Matched) -> Scored:
    targets = [
        dict(zip(*pair, strict=True)) for pair in zip(records["target_answers"], records["target_scores"], strict=True)
    ]
    scores = [
        0.0 if place in said.lacking else 100 * targets[place].get(said.values[place], 0.0) for place in said.places
    ]
    mean = float(np.mean(scores))
    what = "target of the answer (in-training score; without people's answers no official accuracy)"
    return scored_with(records, said, {f"accuracy/{OVERALL}": mean}, [(what, f"{mean:.2f}")], scores)


def scored_with(
    records: RecordTable, said: Matched, found: dict[str, float], rows: list[tuple[str, str]], scores: list[float]
) -> Scored:
    answers, numbers = numbered(said.values, said.places)
    answered = np.stack([said.places, numbers, scores], axis=1)
    return Scored(found, VQATask.headline, rows, vqa_examples(records, answered, answers), said.told, said.missing)

"""The files of GQA's official metrics: questions in full, choices, scene graphs, predictions and attention."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import msgspec
import numpy as np

from vinvl.gqa.metric import (
    Choices,
    OfficialQuestion,
    OfficialQuestions,
    OfficialScores,
    count_steps,
    grounding_of,
    map_cells,
    official_scores,
)
from vinvl.run.errors import UserError
from vinvl.run.files import json_parts
from vinvl.run.values import Id, json_items, json_members, wrong_value

Paths = str | Path | Sequence[str | Path]
Content = TypeVar("Content")

LARGEST = 1e9  # pixels, and what attention may be; JSON's readers also take NaN and 1e999
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]


class OfficialTypes(msgspec.Struct, gc=False):
    structural: str | None = None
    semantic: str | None = None
    detailed: str | None = None


class Groups(msgspec.Struct, gc=False):
    of_all: str | None = msgspec.field(name="global", default=None)


class Operation(msgspec.Struct, gc=False):
    operation: str
    argument: str = ""


class NamedObjects(msgspec.Struct, gc=False):
    question: dict[str, Id] = {}
    fullAnswer: dict[str, Id] = {}  # noqa: N815


class OfficialRecord(msgspec.Struct, gc=False):
    """A record of a question file with all that the metrics need; anything but the answer may be missing."""

    imageId: Id  # noqa: N815
    question: str
    answer: str
    isBalanced: bool = True  # noqa: N815
    types: OfficialTypes | None = None
    groups: Groups | None = None
    semantic: list[Operation] | None = None
    entailed: list[Id] | None = None
    annotations: NamedObjects | None = None


class Options(msgspec.Struct, gc=False):
    valid: list[str]
    plausible: list[str]


class SceneGraphObject(msgspec.Struct, gc=False):
    x: Number
    y: Number
    w: Number
    h: Number


class SceneGraph(msgspec.Struct, gc=False):
    width: Annotated[float, msgspec.Meta(ge=1, le=LARGEST)]
    height: Annotated[float, msgspec.Meta(ge=1, le=LARGEST)]
    objects: dict[str, SceneGraphObject]


class Attention(msgspec.Struct, gc=False):
    questionId: Id  # noqa: N815
    attention: list[list[Number]]


def members(paths: Paths, content: type[Content], called: str) -> Iterator[tuple[str, Content, str]]:
    """(id, record, place) of all files, each one object of records by id; `called` is what a record is called.

    Raises UserError for an id that comes twice, and as `json_members` does.
    """
    seen = set[str]()
    for path in json_parts(paths):
        for number, (key, value) in enumerate(json_members(path, f"ids with their {called}s"), start=1):
            place = f"{path} record {number} ({called} {key})"
            if key in seen:
                raise UserError(f"{place} is there twice: keep one of the two.")
            seen.add(key)
            try:
                yield key, msgspec.convert(value, content), place
            except msgspec.ValidationError as error:
                raise wrong_value(error, place) from None


def listed(
    paths: Paths, content: type[Content], called: str, own_id: Callable[[Any], Id]
) -> Iterator[tuple[str, Content, str]]:
    """The same of files that are lists of records, which say their ids themselves."""
    seen = set[str]()
    for path in json_parts(paths):
        for number, one in enumerate(json_items(path, content, f"{called}s"), start=1):
            key, place = str(own_id(one)), f"{path} record {number} ({called} of question {own_id(one)})"
            if key in seen:
                raise UserError(f"{place} is there twice: keep one of the two.")
            seen.add(key)
            yield key, one, place


def read_official_questions(paths: Paths) -> OfficialQuestions:
    """One or more question files with answers, or folders of them; of questions that are not balanced only the answer.

    Raises UserError as `members` does.
    """
    balanced, others = dict[str, OfficialQuestion](), dict[str, str]()
    for key, one, _ in members(paths, OfficialRecord, "question"):
        if not one.isBalanced:
            others[key] = one.answer
            continue
        types, groups, said = one.types or OfficialTypes(), one.groups or Groups(), one.annotations or NamedObjects()
        balanced[key] = OfficialQuestion(
            answer=one.answer,
            image_id=str(one.imageId),
            structural=types.structural or "unstated",
            semantic=types.semantic or "unstated",
            detailed=types.detailed or "",
            group=groups.of_all,
            words=len(one.question.split()),
            steps=count_steps((step.operation, step.argument) for step in one.semantic or ()),
            entailed=tuple(map(str, one.entailed or ())),
            objects=tuple(map(str, [*said.question.values(), *said.fullAnswer.values()])),
        )
    return OfficialQuestions(balanced, others)


def read_choices(paths: Paths, needed: Mapping[str, object]) -> dict[str, Choices]:
    """Question id → choices, of the questions `needed`."""
    return {
        key: Choices(frozenset(one.valid), frozenset(one.plausible))
        for key, one, _ in members(paths, Options, "choice")
        if key in needed
    }


def read_objects(paths: Paths, questions: OfficialQuestions) -> dict[str, np.ndarray]:
    """Question id → boxes (K, 4) float64 in shares of the image, of the objects that each balanced question names.

    Raises UserError if the scene graphs lack an image or an object that a question names.
    """
    images = {one.image_id for one in questions.balanced.values() if one.objects}
    scenes = {key: (scene, place) for key, scene, place in members(paths, SceneGraph, "image") if key in images}
    found = {}
    for key, one in questions.balanced.items():
        boxes = []
        for name in one.objects:
            if one.image_id not in scenes:
                raise UserError(
                    f"{paths} has no image {one.image_id}, whose objects question {key} names: give the "
                    "scene graphs of this split."
                )
            scene, place = scenes[one.image_id]
            if name not in scene.objects:
                raise UserError(
                    f"{place} has no object {name!r}, which question {key} names: give the scene graphs "
                    "that the questions were made of."
                )
            box = scene.objects[name]
            boxes.append([box.x, box.y, box.x + box.w, box.y + box.h])
        width, height = (scenes[one.image_id][0].width, scenes[one.image_id][0].height) if boxes else (1.0, 1.0)
        found[key] = np.array(boxes, dtype=np.float64).reshape(-1, 4) / [width, height, width, height]
    return found


def read_grounding(paths: Paths, objects: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Question id → `grounding_of` its attention; files of [{"questionId", "attention"}].

    The attention is a map (m, m), whose first index is x, or a list of [x1, y1, x2, y2, weight] in shares of the image.
    Five boxes may look like a map of five rows: they are boxes if all attention of the files can be.

    Args:
        objects: as `read_objects` gives them; attention of other questions does not count.
    """
    found: dict[str, dict[bool, float]] = {}
    can_be = {True: True, False: True}  # boxes, a map
    for key, one, place in listed(paths, Attention, "attention", lambda one: one.questionId):
        forms = attention_cells(one.attention, place)
        can_be = {is_boxes: can_be[is_boxes] and is_boxes in forms for is_boxes in can_be}
        if not any(can_be.values()):
            raise UserError(f"{place} is not of the form of those before it: give maps in all records, or boxes.")
        if key in objects:
            found[key] = {is_boxes: grounding_of(cells, objects[key]) for is_boxes, cells in forms.items()}
    return {key: forms[can_be[True]] for key, forms in found.items()}


def attention_cells(attention: Sequence[Sequence[float]], place: str) -> dict[bool, np.ndarray]:
    """(C, 5) boxes with attention, under True if they can be boxes, under False if a map; UserError if neither."""
    wanted = "give a map of as many rows as columns, or [x1, y1, x2, y2, weight] of each region, 0 to 1"
    if len({len(row) for row in attention}) > 1:
        raise UserError(f"{place} has rows of different lengths: {wanted}.")
    cells = np.array(attention, dtype=np.float64)
    if cells.size == 0:
        return dict.fromkeys((True, False), np.zeros((0, 5)))
    corners, forms = cells[:, :4], dict[bool, np.ndarray]()
    if cells.shape[1] == 5 and (corners[:, :2] <= corners[:, 2:]).all() and (np.abs(corners - 0.5) <= 0.5 + 1e-6).all():
        forms[True] = cells
    if cells.shape[0] == cells.shape[1]:
        forms[False] = map_cells(cells)
    if not forms:
        raise UserError(f"{place} has attention of shape {cells.shape[0]} × {cells.shape[1]}: {wanted}.")
    return forms


@dataclass(frozen=True)
class Official:
    """What a split's figures are computed of.

    Attributes:
        asked: the questions.
        choices: question id → choices; None where they are not known.
        objects: question id → boxes (K, 4) of the objects that it names; None where scene graphs are not known.
    """

    asked: OfficialQuestions
    choices: Mapping[str, Choices] | None = None
    objects: Mapping[str, np.ndarray] | None = None

    @classmethod
    def read(cls, questions: Paths, choices: Paths | None = None, scene_graphs: Paths | None = None) -> Self:
        """Each a file, a folder of parts, or a list of these. Raises UserError, naming file and record."""
        asked = read_official_questions(questions)
        return cls(
            asked,
            None if choices is None else read_choices(choices, asked.balanced),
            None if scene_graphs is None else read_objects(scene_graphs, asked),
        )

    def scores(
        self,
        predictions: Mapping[str, str],
        grounding: Mapping[str, float] | None = None,
        consistency: bool | None = None,
    ) -> OfficialScores:
        """The figures of question id → answer; see `official_scores`.

        `consistency` None: if all questions that others entail are there and answered. Raises UserError if predictions
        or what else is there lack a question.
        """
        if consistency is None:
            entailed = {other for one in self.asked.balanced.values() for other in one.entailed}
            consistency = all(key in predictions and self.asked.answer(key) is not None for key in entailed)
        return official_scores(
            self.asked, predictions, choices=self.choices, grounding=grounding, consistency=consistency
        )

    def scores_of_answered(
        self, predictions: Mapping[str, str], grounding: Mapping[str, float] | None = None
    ) -> OfficialScores | None:
        """The same of the balanced questions that there are predictions for; None if there are none."""
        balanced = {key: one for key, one in self.asked.balanced.items() if key in predictions}
        answered = replace(self, asked=replace(self.asked, balanced=balanced))
        return answered.scores(predictions, grounding) if balanced else None

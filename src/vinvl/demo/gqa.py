"""GQA's files of the demo world: questions of its own and of GQA alone, choices and scene graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from vinvl.demo.questions import Question, gqa_only_families, noun, only_ones
from vinvl.demo.scene import COLOURS, SHAPES, Scene

Record = dict[str, object]
FIRST_GQA_ONLY_NUMBER = 1000  # above every number of the world's own questions
_OF_TYPE = {  # GQA's structural and semantic type → families; counting is missing, as in GQA
    ("verify", "obj"): "exists_shape exists_colour",
    ("verify", "attr"): "is_colour",
    ("verify", "rel"): "is_left is_right is_above is_below",
    ("compare", "obj"): "more_shapes",
    ("compare", "attr"): "larger",
    ("query", "attr"): "colour_of",
    ("query", "cat"): "shape_of",
    ("query", "rel"): "shape_left shape_right shape_above shape_below",
    ("query", "global"): "most_colour most_shape",
    ("choose", "attr"): "choose_colour",
    ("choose", "cat"): "choose_shape",
    ("logical", "obj"): "exists_both exists_either",
}
TYPES = {family: types for types, families in _OF_TYPE.items() for family in families.split()}
ANSWER_GROUPS = {"color": tuple(COLOURS), "shape": SHAPES}  # GQA's `groups.global`; null for yes and no
YES_NO = ("yes", "no")
IS_THERE = ("exists_shape", "exists_colour")  # one noun each, at the end of the question
ANSWER_PLACE = "3"  # of "the answer is star"
_GQA_ONLY_NAMES = frozenset(family.name for family in gqa_only_families())


def gqa_records(questions: Iterable[Question], scenes: Iterable[Scene]) -> dict[str, Record]:
    """Question id → record with all keys of GQA's balanced question files, but for questions that count."""
    shown = {one.image_id: one for one in scenes}
    asked = [one for one in questions if one.family in TYPES]
    there: dict[int, list[Question]] = defaultdict(list)
    for one in asked:
        if one.family in IS_THERE:
            there[one.image_id].append(one)
    return {gqa_id(one): _gqa_record(one, shown[one.image_id], there[one.image_id]) for one in asked}


def without_answers(records: dict[str, Record]) -> dict[str, Record]:
    """The records as GQA's submission file has them: nothing in them gives the answer."""
    # The group names what kind of answer is right, and a thing that is named is there: they go as well.
    hidden = {"answer", "fullAnswer", "groups", "annotations", "entailed"}
    return {number: {key: one[key] for key in one if key not in hidden} for number, one in records.items()}


def gqa_id(question: Question) -> str:
    """A number as text: image id, then four digits that number the question within the picture."""
    first = FIRST_GQA_ONLY_NUMBER if question.family in _GQA_ONLY_NAMES else 0
    return str(question.image_id * 10_000 + first + question.number)


def _gqa_record(question: Question, scene: Scene, there: list[Question]) -> Record:
    structural, semantic = TYPES[question.family]
    group = next((name for name, words in ANSWER_GROUPS.items() if question.answer in words), None)
    named = list(_named(question))
    selects = [{"operation": "select", "argument": words, "dependencies": []} for _, words in named]
    told = {"operation": structural, "argument": question.family, "dependencies": list(range(len(named)))}
    answer = _thing(scene, question.answer)
    return {
        "semantic": [*selects, told],
        "entailed": [gqa_id(one) for one in there if _follows(one, question)],
        "equivalent": [gqa_id(question)],
        "question": question.text,
        "imageId": str(question.image_id),
        "isBalanced": True,
        "groups": {"global": group, "local": question.family},
        "answer": question.answer,
        "semanticStr": "",
        "annotations": {
            "answer": {} if answer is None else {"0": answer},
            "question": {place: own_id for place, words in named if (own_id := _thing(scene, words)) is not None},
            "fullAnswer": {} if answer is None else {ANSWER_PLACE: answer},
        },
        "types": {"detailed": question.family, "semantic": semantic, "structural": structural},
        "fullAnswer": f"the answer is {question.answer}",
    }


def _named(question: Question) -> Iterator[tuple[str, str]]:
    """(place, words) of things that a question speaks of, as "the star"; of "a star" if it asks what there is.

    The place is that of a word, or of words 3 and 4 "3:5", in GQA's way.
    """
    articles = ("the", "a") if question.family.startswith("exists") else ("the",)
    words = question.text.replace(",", "").removesuffix("?").split()
    for place, (article, word) in enumerate(pairwise(words), start=1):
        if article in articles and word in SHAPES:
            yield str(place), word
        elif article in articles and word in COLOURS:
            yield f"{place}:{place + 2}", noun("colour", word)


def _thing(scene: Scene, words: str) -> str | None:
    """The id of the only thing of a shape or colour: "star", "red object"; None if there is no such one."""
    attribute, value = ("shape", words) if words in SHAPES else ("colour", words.removesuffix(" object"))
    thing = only_ones(scene, attribute).get(value)
    return None if thing is None else _object_id(scene, scene.objects.index(thing))


def _object_id(scene: Scene, place: int) -> str:
    return str(scene.image_id * 100 + place)


def _follows(other: Question, question: Question) -> bool:
    """Whether something is there, as `other` asks, for `question` calls it "the …" or has it as its answer."""
    subject = other.text.removesuffix("?").rpartition(" a ")[2]
    answer = noun("colour", question.answer) if question.answer in COLOURS else question.answer
    return f"the {subject}" in question.text or subject == answer


def choices(questions: Iterable[Question], scenes: Iterable[Scene]) -> dict[str, Record]:
    """Question id → valid answers, all of the kind that is asked for, and plausible ones, which the picture shows."""
    shown = {one.image_id: {w for thing in one.objects for w in (thing.shape, thing.colour)} for one in scenes}
    found: dict[str, Record] = {}
    for one in questions:
        if one.family in TYPES:
            valid = next((words for words in (YES_NO, *ANSWER_GROUPS.values()) if one.answer in words), ())
            plausible = [word for word in valid if word in YES_NO or word in shown[one.image_id]]
            found[gqa_id(one)] = {"valid": list(valid), "plausible": plausible}
    return found


def scene_graphs(scenes: Iterable[Scene]) -> dict[str, Record]:
    """Image id → size and objects in the form of GQA's scene graphs, without relations."""
    return {
        str(scene.image_id): {
            "width": scene.width,
            "height": scene.height,
            "objects": {
                _object_id(scene, place): {
                    "name": thing.shape,
                    "x": round(thing.box[0]),
                    "y": round(thing.box[1]),
                    "w": round(2 * thing.radius),
                    "h": round(2 * thing.radius),
                    "attributes": [thing.colour, thing.texture, thing.size],
                    "relations": [],
                }
                for place, thing in enumerate(scene.objects)
            },
        }
        for scene in scenes
    }

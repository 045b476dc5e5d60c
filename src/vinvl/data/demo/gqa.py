"""Questions of the demo world as the records of GQA: the world's own, without counting, and kinds that only GQA has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import permutations, product

from vinvl.data.demo.question_kinds import Fillings, QuestionFamily, only_ones
from vinvl.data.demo.questions import Question
from vinvl.data.demo.scene import COLOURS, SHAPES, Scene

GQA_ONLY_PER_IMAGE = 3
FIRST_GQA_ONLY_NUMBER = 1000  # above every number of the world's own questions
TYPES = {  # family -> GQA's structural and semantic type; counting is missing, as in GQA
    "exists_shape": ("verify", "obj"),
    "exists_colour": ("verify", "obj"),
    "colour_of": ("query", "attr"),
    "is_colour": ("verify", "attr"),
    "is_left": ("verify", "rel"),
    "is_right": ("verify", "rel"),
    "is_above": ("verify", "rel"),
    "is_below": ("verify", "rel"),
    "more_shapes": ("compare", "obj"),
    "larger": ("compare", "attr"),
    "shape_of": ("query", "cat"),
    "shape_left": ("query", "rel"),
    "shape_right": ("query", "rel"),
    "shape_above": ("query", "rel"),
    "shape_below": ("query", "rel"),
    "choose_colour": ("choose", "attr"),
    "choose_shape": ("choose", "cat"),
    "exists_both": ("logical", "obj"),
    "exists_either": ("logical", "obj"),
    "most_colour": ("query", "global"),
    "most_shape": ("query", "global"),
}
ANSWER_GROUPS = {"color": tuple(COLOURS), "shape": SHAPES}  # GQA's `groups.global`; null for yes and no


def gqa_records(questions: Iterable[Question]) -> dict[str, dict[str, object]]:
    """Question id to record, with all keys of GQA's balanced question files and the true answer.

    Questions of families that are not in `TYPES` (those that count) are left out.
    """
    return {gqa_id(question): _record(question) for question in questions if question.family in TYPES}


def without_answers(records: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The records as GQA's submission file has them: nothing in them gives the answer."""
    # The group names what kind of answer is right, so it goes as well.
    hidden = {"answer", "fullAnswer", "groups"}
    return {number: {key: value for key, value in record.items() if key not in hidden}
            for number, record in records.items()}  # fmt: skip


def gqa_id(question: Question) -> str:
    """A number as text: image id, then four digits that number the question within the picture."""
    number = question.number
    if question.family in _GQA_ONLY_NAMES:
        number += FIRST_GQA_ONLY_NUMBER
    return str(question.image_id * 10_000 + number)


def gqa_only_families() -> tuple[QuestionFamily, ...]:
    """Kinds of questions that the world's VQA files do not ask: choices, logic and the picture as a whole."""
    choose_colour = ("is the {0} {1} or {2}?", "which color is the {0}, {1} or {2}?")
    choose_shape = ("is the {0} a {1} or a {2}?", "what is the {0}, a {1} or a {2}?")
    both = ("is there a {0} and a {1}?", "does the picture show both a {0} and a {1}?")
    either = ("is there a {0} or a {1}?", "does the picture show either a {0} or a {1}?")
    return (
        QuestionFamily("choose_colour", "choose", "other", 2, choose_colour, _choose("shape", "colour")),
        QuestionFamily("choose_shape", "choose", "other", 2, choose_shape, _choose("colour", "shape")),
        QuestionFamily("exists_both", "logical", "yes/no", 2, both, _exists_two(all)),
        QuestionFamily("exists_either", "logical", "yes/no", 2, either, _exists_two(any)),
        QuestionFamily("most_colour", "global", "other", 1, ("what color are most of the objects?",), _most("colour")),
        QuestionFamily("most_shape", "global", "other", 1, ("what shape are most of the objects?",), _most("shape")),
    )


def _choose(named_by: str, asked: str) -> Callable[[Scene], Fillings]:
    """Which of two values of `asked` the only thing of a shape or colour has."""
    values = tuple(COLOURS) if asked == "colour" else SHAPES

    def fillings(scene: Scene) -> Fillings:
        result: Fillings = {}
        for value, thing in only_ones(scene, named_by).items():
            noun = value if named_by == "shape" else f"{value} object"
            truth = getattr(thing, asked)
            words = [(noun, *offered) for offered in permutations(values, 2) if truth in offered]
            result.setdefault(truth, []).extend(words)
        return result

    return fillings


def _exists_two(combine: Callable[[tuple[bool, bool]], bool]) -> Callable[[Scene], Fillings]:
    """Whether a shape and a colour are both (`all`) or not both missing (`any`) in the scene."""

    def fillings(scene: Scene) -> Fillings:
        shapes = {thing.shape for thing in scene.objects}
        colours = {thing.colour for thing in scene.objects}
        result: Fillings = {"yes": [], "no": []}
        for shape, colour in product(SHAPES, COLOURS):
            truth = combine((shape in shapes, colour in colours))
            result["yes" if truth else "no"].append((shape, f"{colour} object"))
        return result

    return fillings


def _most(asked: str) -> Callable[[Scene], Fillings]:
    """What more than half of the objects are."""

    def fillings(scene: Scene) -> Fillings:
        value, count = Counter(getattr(thing, asked) for thing in scene.objects).most_common(1)[0]
        return {value: [()]} if 2 * count > len(scene.objects) else {}

    return fillings


_GQA_ONLY_NAMES = frozenset(family.name for family in gqa_only_families())


def _record(question: Question) -> dict[str, object]:
    structural, semantic = TYPES[question.family]
    group = next((name for name, words in ANSWER_GROUPS.items() if question.answer in words), None)
    return {
        "semantic": [],
        "entailed": [],
        "equivalent": [gqa_id(question)],
        "question": question.text,
        "imageId": str(question.image_id),
        "isBalanced": True,
        "groups": {"global": group, "local": question.family},
        "answer": question.answer,
        "semanticStr": "",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": question.family, "semantic": semantic, "structural": structural},
        "fullAnswer": f"the answer is {question.answer}",
    }

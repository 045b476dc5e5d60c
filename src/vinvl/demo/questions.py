"""Questions on scenes, with answers spread as evenly as the scenes allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

import numpy as np

from vinvl.demo.scene import COLOURS, HEIGHT, SHAPES, SIZE_RADII, WIDTH, Scene, SceneObject

# The kinds of questions of the demo world: for a scene, every question of a kind, grouped by its true answer.


MAX_COUNT = 4  # counting questions have answers from 1 to this
MARGIN = 0.10  # of the picture's side: things closer than this are neither left nor right of one another

Fillings = dict[str, list[tuple[str, ...]]]  # true answer -> words that fill the template's gaps


@dataclass(frozen=True)
class QuestionFamily:
    """Questions that share their logic: a filling closes the gaps {0}, {1} … of a phrasing."""

    name: str
    kind: str  # the `question_type` in the files
    answer_type: str  # yes/no | number | other
    weight: float  # relative share among the questions
    phrasings: tuple[str, ...]
    fillings: Callable[[Scene], Fillings]


def only_ones(scene: Scene, attribute: str) -> dict[str, SceneObject]:
    """Objects that are the only one of their `attribute` ("shape" or "colour") in the scene, by its value."""
    counts = Counter(getattr(thing, attribute) for thing in scene.objects)
    return {getattr(t, attribute): t for t in scene.objects if counts[getattr(t, attribute)] == 1}


def noun(attribute: str, value: str, many: bool = False) -> str:
    """What is called by its shape or its colour: "star", "red object", "stars", "red objects"."""
    if attribute == "shape":
        return f"{value}s" if many else value
    return f"{value} object{'s' if many else ''}"


def _yes_or_no(cases: Iterable[tuple[bool, tuple[str, ...]]]) -> Fillings:
    """(whether it is so, the words) of all that can be asked."""
    result: Fillings = {"yes": [], "no": []}
    for truth, words in cases:
        result["yes" if truth else "no"].append(words)
    return result


def _exists(attribute: str, scene: Scene) -> Fillings:
    present = {getattr(thing, attribute) for thing in scene.objects}
    values = SHAPES if attribute == "shape" else tuple(COLOURS)
    return _yes_or_no((value in present, (noun(attribute, value),)) for value in values)


def _count(attribute: str, scene: Scene) -> Fillings:
    result: Fillings = {}
    for value, count in sorted(Counter(getattr(thing, attribute) for thing in scene.objects).items()):
        if count <= MAX_COUNT:
            result.setdefault(str(count), []).append((noun(attribute, value, many=True),))
    return result


def _attribute(named_by: str, asked: str, scene: Scene) -> Fillings:
    """Open questions for the `asked` attribute of the only thing of a shape or colour."""
    result: Fillings = {}
    for value, thing in only_ones(scene, named_by).items():
        result.setdefault(getattr(thing, asked), []).append((noun(named_by, value),))
    return result


def _colour_check(scene: Scene) -> Fillings:
    """Yes/no questions for the colour of the only thing of a shape."""
    things = only_ones(scene, "shape").items()
    return _yes_or_no((thing.colour == colour, (shape, colour)) for shape, thing in things for colour in COLOURS)


def _offset(first: SceneObject, second: SceneObject, direction: str) -> float:
    """How far `first` lies from `second` towards `direction`, as a share of the picture's side."""
    across, down = (first.x - second.x) / WIDTH, (first.y - second.y) / HEIGHT
    offset = across if direction in ("left", "right") else down
    return offset if direction in ("right", "below") else -offset


def _compared(compare: Callable[[SceneObject, SceneObject], float], scene: Scene) -> Fillings:
    """Yes/no questions that compare two things, each the only one of its colour; at 0 nothing is asked."""
    pairs = permutations(only_ones(scene, "colour").items(), 2)
    differences = ((compare(a, b), (noun("colour", one), noun("colour", other))) for (one, a), (other, b) in pairs)
    return _yes_or_no((difference > 0, words) for difference, words in differences if difference)


def _further(direction: str, first: SceneObject, second: SceneObject) -> float:
    return offset if abs(offset := _offset(first, second, direction)) >= MARGIN else 0.0


def _larger(first: SceneObject, second: SceneObject) -> float:
    order = list(SIZE_RADII)
    return order.index(first.size) - order.index(second.size)


def _more_shapes(scene: Scene) -> Fillings:
    """More of one shape than of another; both are in the scene and their counts differ."""
    counts = Counter(thing.shape for thing in scene.objects)
    pairs = [(one, other) for one, other in permutations(sorted(counts), 2) if counts[one] != counts[other]]
    return _yes_or_no((counts[one] > counts[other], (f"{one}s", f"{other}s")) for one, other in pairs)


def _extreme(direction: str, scene: Scene) -> Fillings:
    """The shape of the thing furthest towards `direction`, when it leads the next by `MARGIN`."""
    reference = scene.objects[0]
    ranked = sorted(scene.objects, key=lambda thing: -_offset(thing, reference, direction))
    return {} if _offset(ranked[0], ranked[1], direction) < MARGIN else {ranked[0].shape: [()]}


_SIDES = {  # direction -> (relation phrase, place phrase)
    "left": ("to the left of", "on the far left"),
    "right": ("to the right of", "on the far right"),
    "above": ("above", "at the top"),
    "below": ("below", "at the bottom"),
}


def question_families() -> tuple[QuestionFamily, ...]:
    """All kinds of questions with their shares, in a fixed order."""
    kind, yes_no, other = QuestionFamily, "yes/no", "other"
    exists = ("is there a {0}?", "can you see a {0}?")
    count = ("how many {0} are there?", "how many {0} can you see?")
    colour_of = ("what color is the {0}?", "which color does the {0} have?")
    is_colour = ("is the {0} {1}?", "would you call the {0} {1}?")
    more = ("are there more {0} than {1}?", "do you see more {0} than {1}?")
    larger = ("is the {0} bigger than the {1}?", "is the {0} larger than the {1}?")
    shape_of = ("what shape is the {0}?", "which shape does the {0} have?")
    spatial, which = [], []
    for side, (relation, place) in _SIDES.items():
        is_there = (f"is the {{0}} {relation} the {{1}}?", f"can you find the {{0}} {relation} the {{1}}?")
        further = partial(_compared, partial(_further, side))
        spatial.append(kind(f"is_{side}", "spatial", yes_no, 1.5, is_there, further))
        what = (f"which object is {place}?", f"what is the object {place}?")
        which.append(kind(f"shape_{side}", "which", other, 0.75, what, partial(_extreme, side)))
    return (
        kind("exists_shape", "existence", yes_no, 12, exists, partial(_exists, "shape")),
        kind("exists_colour", "existence", yes_no, 12, exists, partial(_exists, "colour")),
        kind("count_shape", "count", "number", 4, count, partial(_count, "shape")),
        kind("count_colour", "count", "number", 4, count, partial(_count, "colour")),
        kind("colour_of", "attribute", other, 14, colour_of, partial(_attribute, "shape", "colour")),
        kind("is_colour", "attribute", yes_no, 12, is_colour, _colour_check),
        *spatial,
        kind("more_shapes", "comparison", yes_no, 5, more, _more_shapes),
        kind("larger", "comparison", yes_no, 3, larger, partial(_compared, _larger)),
        kind("shape_of", "which", other, 14, shape_of, partial(_attribute, "colour", "shape")),
        *which,
    )


def gqa_only_families() -> tuple[QuestionFamily, ...]:
    """Kinds of questions that the world's VQA files do not ask: choices, logic and the picture as a whole."""
    kind = QuestionFamily
    choose_colour = ("is the {0} {1} or {2}?", "which color is the {0}, {1} or {2}?")
    choose_shape = ("is the {0} a {1} or a {2}?", "what is the {0}, a {1} or a {2}?")
    both = ("is there a {0} and a {1}?", "does the picture show both a {0} and a {1}?")
    either = ("is there a {0} or a {1}?", "does the picture show either a {0} or a {1}?")
    most_colour, most_shape = (f"what {what} are most of the objects?" for what in ("color", "shape"))
    return (
        kind("choose_colour", "choose", "other", 2, choose_colour, partial(_choose, "shape", "colour")),
        kind("choose_shape", "choose", "other", 2, choose_shape, partial(_choose, "colour", "shape")),
        kind("exists_both", "logical", "yes/no", 2, both, partial(_exists_two, all)),
        kind("exists_either", "logical", "yes/no", 2, either, partial(_exists_two, any)),
        kind("most_colour", "global", "other", 1, (most_colour,), partial(_most, "colour")),
        kind("most_shape", "global", "other", 1, (most_shape,), partial(_most, "shape")),
    )


def _choose(named_by: str, asked: str, scene: Scene) -> Fillings:
    """Which of two values of `asked` the only thing of a shape or colour has."""
    result: Fillings = {}
    for value, thing in only_ones(scene, named_by).items():
        truth = getattr(thing, asked)
        offers = permutations(COLOURS if asked == "colour" else SHAPES, 2)
        words = [(noun(named_by, value), *offered) for offered in offers if truth in offered]
        result.setdefault(truth, []).extend(words)
    return result


def _exists_two(combine: Callable[[tuple[bool, bool]], bool], scene: Scene) -> Fillings:
    """Whether a shape and a colour are both (`all`) or not both missing (`any`) in the scene."""
    shapes, colours = ({getattr(thing, of) for thing in scene.objects} for of in ("shape", "colour"))
    pairs = product(SHAPES, COLOURS)
    return _yes_or_no(
        (combine((one in shapes, other in colours)), (one, noun("colour", other))) for one, other in pairs
    )


def _most(asked: str, scene: Scene) -> Fillings:
    """What more than half of the objects are."""
    value, count = Counter(getattr(thing, asked) for thing in scene.objects).most_common(1)[0]
    return {value: [()]} if 2 * count > len(scene.objects) else {}


FAMILY_TRIES = 40  # families tried for one question before the picture gets fewer questions


@dataclass(frozen=True)
class Question:
    """A question on one picture and its true answer."""

    image_id: int
    number: int  # 0, 1, … within the picture
    text: str
    answer: str
    kind: str  # question_type
    family: str
    answer_type: str


def ask(
    scenes: list[Scene],
    questions_per_image: int,
    rng: np.random.Generator,
    families: Sequence[QuestionFamily],
) -> list[Question]:
    """Ask questions of some families so that their text tells little of the answer.

    A family is used on a scene only where at least two answers are possible, or for open questions where the rarest
    answer so far is within reach, so that inside every family each answer comes up about equally often.
    """
    shares = np.array([family.weight for family in families])
    shares = shares / shares.sum()
    given: dict[str, Counter[str]] = {family.name: Counter() for family in families}
    questions: list[Question] = []
    for scene in scenes:
        asked: set[str] = set()
        for _ in range(FAMILY_TRIES):
            if len(asked) == questions_per_image:
                break
            family = families[int(rng.choice(len(families), p=shares))]
            question = _ask_one(family, scene, given[family.name], len(asked), rng)
            if question is not None and question.text not in asked:
                asked.add(question.text)
                given[family.name][question.answer] += 1
                questions.append(question)
    return questions


def _ask_one(
    family: QuestionFamily, scene: Scene, given: Counter[str], number: int, rng: np.random.Generator
) -> Question | None:
    possible = {answer: words for answer, words in family.fillings(scene).items() if words}
    if len(possible) < (2 if family.answer_type == "yes/no" else 1):
        return None  # a scene that allows one answer only would tip the balance
    fewest = min(given[answer] for answer in possible)
    # An open question is refused when all it could be answered with has been answered too often already.
    if family.answer_type != "yes/no" and given and fewest > sum(given.values()) / len(given) + 0.5:
        return None
    rarest = sorted(answer for answer in possible if given[answer] == fewest)
    answer = rarest[int(rng.integers(len(rarest)))]
    words = possible[answer][int(rng.integers(len(possible[answer])))]
    phrasing = family.phrasings[int(rng.integers(len(family.phrasings)))]
    return Question(
        scene.image_id, number, phrasing.format(*words), answer, family.kind, family.name, family.answer_type
    )


# Ten answers a question, as ten people would type them: mostly the same, now and then another word or a slip.

NUM_PEOPLE = 10
VARIANT_RATE = 0.05  # answers in other words: a synonym, a longer phrase or a typing error
WRONG_RATE = 0.03  # answers that are wrong
VARIANTS = {
    "yes": ("yes it is", "yeah", "yes i think so", "yse"),
    "no": ("no it is not", "nope", "i do not think so", "on"),
    "1": ("just 1", "only 1"),
    "2": ("2 of them", "a pair"),
    "3": ("3 of them", "three of them"),
    "4": ("4 of them", "four or so"),
    "red": ("dark red", "rde"),
    "green": ("grass green", "gren"),
    "blue": ("dark blue", "bleu"),
    "yellow": ("golden", "yelow"),
    "circle": ("disc", "round thing", "cirlce"),
    "square": ("box", "rectangle", "sqaure"),
    "triangle": ("triangel", "pyramid"),
    "star": ("5 pointed star", "satr"),
}
_GROUPS = (("yes", "no"), ("1", "2", "3", "4"), tuple(COLOURS), SHAPES)


def human_answers(question: Question, rng: np.random.Generator) -> list[dict[str, str | int]]:
    """Ten answers in the form of VQA v2: `answer`, `answer_confidence` (yes | maybe | no), `answer_id` 1 … 10.

    Tries again in the rare case that fewer than seven of the ten say the true answer.
    """
    texts: list[str] = []
    while texts.count(question.answer) < 7:
        texts = [_one_answer(question.answer, rng) for _ in range(NUM_PEOPLE)]
    return [
        {"answer": text, "answer_confidence": _confidence(text == question.answer, rng), "answer_id": number}
        for number, text in enumerate(texts, start=1)
    ]


def _confidence(right: bool, rng: np.random.Generator) -> str:
    return "yes" if rng.random() < (0.9 if right else 0.4) else ("maybe", "maybe", "no")[int(rng.integers(3))]


def most_common_answer(answers: list[dict[str, str | int]]) -> str:
    """The `multiple_choice_answer` of VQA v2; the first given wins a tie."""
    return Counter(str(answer["answer"]) for answer in answers).most_common(1)[0][0]


def _one_answer(truth: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < VARIANT_RATE:
        return VARIANTS[truth][int(rng.integers(len(VARIANTS[truth])))]
    if draw < VARIANT_RATE + WRONG_RATE:
        others = [other for group in _GROUPS if truth in group for other in group if other != truth]
        return others[int(rng.integers(len(others)))]
    return truth

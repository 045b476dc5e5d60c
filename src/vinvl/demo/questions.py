"""Questions on scenes, with answers spread as evenly as the scenes allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from vinvl.demo.scene import COLOURS, HEIGHT, SHAPES, SIZE_RADII, TEXTURES, WIDTH, Scene, SceneObject

# The kinds of questions of the demo world: for a scene, every question of a kind, grouped by its true answer.


MAX_COUNT = 4  # counting questions have answers from 1 to this
MARGIN = 0.10  # of the picture's side: things closer than this are neither left nor right of one another

Fillings = dict[str, list[tuple[str, ...]]]  # true answer -> words that fill the template's gaps


@dataclass(frozen=True)
class QuestionFamily:
    """Questions that share their logic: `phrasings` have gaps {0}, {1} … that a filling from `fillings` closes."""

    name: str
    kind: str  # the `question_type` in the files
    answer_type: str  # yes/no | number | other
    weight: float  # relative share among the questions
    phrasings: tuple[str, ...]
    fillings: Callable[[Scene], Fillings]


def plural(word: str) -> str:
    """circle -> circles, cross -> crosses."""
    return word + ("es" if word.endswith("s") else "s")


def only_ones(scene: Scene, attribute: str) -> dict[str, SceneObject]:
    """Objects that are the only one of their `attribute` ("shape" or "colour") in the scene, by its value."""
    counts = Counter(getattr(thing, attribute) for thing in scene.objects)
    return {getattr(t, attribute): t for t in scene.objects if counts[getattr(t, attribute)] == 1}


def _words(attribute: str) -> Sequence[str]:
    return SHAPES if attribute == "shape" else tuple(COLOURS)


def _noun(attribute: str, value: str) -> str:
    return value if attribute == "shape" else f"{value} object"


def _exists(attribute: str) -> Callable[[Scene], Fillings]:
    def fillings(scene: Scene) -> Fillings:
        present = {getattr(thing, attribute) for thing in scene.objects}
        result: Fillings = {"yes": [], "no": []}
        for value in _words(attribute):
            result["yes" if value in present else "no"].append((_noun(attribute, value),))
        return result

    return fillings


def _count(attribute: str) -> Callable[[Scene], Fillings]:
    def fillings(scene: Scene) -> Fillings:
        counts = Counter(getattr(thing, attribute) for thing in scene.objects)
        result: Fillings = {}
        for value, count in sorted(counts.items()):
            if count <= MAX_COUNT:
                noun = plural(value) if attribute == "shape" else f"{value} objects"
                result.setdefault(str(count), []).append((noun,))
        return result

    return fillings


def _attribute(named_by: str, asked: str) -> Callable[[Scene], Fillings]:
    """Open questions for the `asked` attribute of the only thing of a shape or colour."""

    def fillings(scene: Scene) -> Fillings:
        result: Fillings = {}
        for value, thing in only_ones(scene, named_by).items():
            result.setdefault(getattr(thing, asked), []).append((_noun(named_by, value),))
        return result

    return fillings


def _attribute_check(named_by: str, asked: str, values: Sequence[str]) -> Callable[[Scene], Fillings]:
    """Yes/no questions for the `asked` attribute of the only thing of a shape or colour."""

    def fillings(scene: Scene) -> Fillings:
        result: Fillings = {"yes": [], "no": []}
        for named, thing in only_ones(scene, named_by).items():
            for value in values:
                word = "yes" if getattr(thing, asked) == value else "no"
                result[word].append((_noun(named_by, named), value))
        return result

    return fillings


def _offset(first: SceneObject, second: SceneObject, direction: str) -> float:
    """How far `first` lies from `second` towards `direction`, as a share of the picture's side."""
    across, down = (first.x - second.x) / WIDTH, (first.y - second.y) / HEIGHT
    offset = across if direction in ("left", "right") else down
    return offset if direction in ("right", "below") else -offset


def _spatial_check(attribute: str, direction: str) -> Callable[[Scene], Fillings]:
    def fillings(scene: Scene) -> Fillings:
        result: Fillings = {"yes": [], "no": []}
        for (first, a), (second, b) in permutations(only_ones(scene, attribute).items(), 2):
            offset = _offset(a, b, direction)
            if abs(offset) >= MARGIN:
                words = (_noun(attribute, first), _noun(attribute, second))
                result["yes" if offset > 0 else "no"].append(words)
        return result

    return fillings


def _more(attribute: str) -> Callable[[Scene], Fillings]:
    """More of one than of another; both are in the scene and their counts differ."""

    def fillings(scene: Scene) -> Fillings:
        counts = Counter(getattr(thing, attribute) for thing in scene.objects)
        result: Fillings = {"yes": [], "no": []}
        for first, second in permutations(sorted(counts), 2):
            if counts[first] != counts[second]:
                nouns = [plural(value) if attribute == "shape" else f"{value} objects" for value in (first, second)]
                result["yes" if counts[first] > counts[second] else "no"].append((nouns[0], nouns[1]))
        return result

    return fillings


def _larger(attribute: str) -> Callable[[Scene], Fillings]:
    """Between only things of different sizes."""
    order = list(SIZE_RADII)

    def fillings(scene: Scene) -> Fillings:
        result: Fillings = {"yes": [], "no": []}
        for (first, a), (second, b) in permutations(only_ones(scene, attribute).items(), 2):
            difference = order.index(a.size) - order.index(b.size)
            if difference:
                words = (_noun(attribute, first), _noun(attribute, second))
                result["yes" if difference > 0 else "no"].append(words)
        return result

    return fillings


def _extreme(direction: str, asked: str) -> Callable[[Scene], Fillings]:
    """The thing furthest towards `direction`, when it leads the next by `MARGIN`."""

    def fillings(scene: Scene) -> Fillings:
        reference = scene.objects[0]
        ranked = sorted(scene.objects, key=lambda thing: -_offset(thing, reference, direction))
        if _offset(ranked[0], ranked[1], direction) < MARGIN:
            return {}
        return {getattr(ranked[0], asked): [()]}

    return fillings


_SIDES = {  # direction -> (relation phrase, place phrase)
    "left": ("to the left of", "on the far left"),
    "right": ("to the right of", "on the far right"),
    "above": ("above", "at the top"),
    "below": ("below", "at the bottom"),
}


def question_families() -> tuple[QuestionFamily, ...]:
    """All kinds of questions with their shares, in a fixed order."""
    return (*_existence(), *_counts(), *_attributes(), *_spatial(), *_comparisons(), *_which())


def _existence() -> list[QuestionFamily]:
    phrasings = ("is there a {0}?", "can you see a {0}?")
    return [
        QuestionFamily("exists_shape", "existence", "yes/no", 12, phrasings, _exists("shape")),
        QuestionFamily("exists_colour", "existence", "yes/no", 12, phrasings, _exists("colour")),
    ]


def _counts() -> list[QuestionFamily]:
    phrasings = ("how many {0} are there?", "how many {0} can you see?")
    return [
        QuestionFamily("count_shape", "count", "number", 4, phrasings, _count("shape")),
        QuestionFamily("count_colour", "count", "number", 4, phrasings, _count("colour")),
    ]


def _attributes() -> list[QuestionFamily]:
    colour = ("what color is the {0}?", "which color does the {0} have?")
    check = ("is the {0} {1}?", "would you call the {0} {1}?")
    checked = _attribute_check("shape", "colour", tuple(COLOURS))
    return [
        QuestionFamily("colour_of", "attribute", "other", 14, colour, _attribute("shape", "colour")),
        QuestionFamily("is_colour", "attribute", "yes/no", 12, check, checked),
    ]


def _spatial() -> list[QuestionFamily]:
    families = []
    for direction, (relation, _) in _SIDES.items():
        check = (f"is the {{0}} {relation} the {{1}}?", f"can you find the {{0}} {relation} the {{1}}?")
        checked = _spatial_check("colour", direction)
        families.append(QuestionFamily(f"is_{direction}", "spatial", "yes/no", 1.5, check, checked))
    return families


def _comparisons() -> list[QuestionFamily]:
    more = ("are there more {0} than {1}?", "do you see more {0} than {1}?")
    larger = ("is the {0} bigger than the {1}?", "is the {0} larger than the {1}?")
    return [
        QuestionFamily("more_shapes", "comparison", "yes/no", 5, more, _more("shape")),
        QuestionFamily("larger", "comparison", "yes/no", 3, larger, _larger("colour")),
    ]


def _which() -> list[QuestionFamily]:
    shape = ("what shape is the {0}?", "which shape does the {0} have?")
    families = [QuestionFamily("shape_of", "which", "other", 14, shape, _attribute("colour", "shape"))]
    for direction, (_, place) in _SIDES.items():
        phrasings = (f"which object is {place}?", f"what is the object {place}?")
        families.append(
            QuestionFamily(f"shape_{direction}", "which", "other", 0.75, phrasings, _extreme(direction, "shape"))
        )
    return families


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
    families: Sequence[QuestionFamily] | None = None,
) -> list[Question]:
    """Ask questions of the given families (`question_families` without) so that their text tells little of the answer.

    A family is used on a scene only where at least two answers are possible, or for open questions where the rarest
    answer so far is within reach, so that inside every family each answer comes up about equally often.
    """
    families = question_families() if families is None else families
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
    if family.answer_type == "yes/no" and len(possible) < 2:
        return None  # a scene that allows one answer only would tip the balance
    if not possible:
        return None
    fewest = min(given[answer] for answer in possible)
    # An open question is refused when all it could be answered with has been answered too often already.
    if family.answer_type != "yes/no" and given and fewest > sum(given.values()) / len(given) + 0.5:
        return None
    rarest = sorted(answer for answer in possible if given[answer] == fewest)
    answer = rarest[int(rng.integers(len(rarest)))]
    fillings = possible[answer]
    words = fillings[int(rng.integers(len(fillings)))]
    phrasing = family.phrasings[int(rng.integers(len(family.phrasings)))]
    text = phrasing.format(*words)
    return Question(scene.image_id, number, text, answer, family.kind, family.name, family.answer_type)


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
    "purple": ("violet", "puple"),
    "black": ("dark grey", "balck"),
    "circle": ("disc", "round thing", "cirlce"),
    "square": ("box", "rectangle", "sqaure"),
    "triangle": ("triangel", "pyramid"),
    "star": ("5 pointed star", "satr"),
    "cross": ("plus sign", "corss"),
    "diamond": ("rhombus", "dimond"),
    "plain": ("no pattern", "solid"),
    "striped": ("stripes", "stirped"),
    "dotted": ("dots", "polka dots"),
    "small": ("little", "tiny"),
    "medium": ("middle", "average"),
    "large": ("big", "huge"),
}
_GROUPS = (("yes", "no"), ("1", "2", "3", "4"), tuple(COLOURS), SHAPES, TEXTURES, tuple(SIZE_RADII))


def human_answers(question: Question, rng: np.random.Generator) -> list[dict[str, str | int]]:
    """Ten answers in the form of VQA v2: `answer`, `answer_confidence` (yes | maybe | no), `answer_id` 1 … 10.

    Tries again in the rare case that fewer than seven of the ten say the true answer.
    """
    while True:
        texts = [_one_answer(question.answer, rng) for _ in range(NUM_PEOPLE)]
        if texts.count(question.answer) >= 7:
            break
    answers: list[dict[str, str | int]] = []
    for number, text in enumerate(texts, start=1):
        sure = 0.9 if text == question.answer else 0.4
        confidence = "yes" if rng.random() < sure else ("maybe", "maybe", "no")[int(rng.integers(3))]
        answers.append({"answer": text, "answer_confidence": confidence, "answer_id": number})
    return answers


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

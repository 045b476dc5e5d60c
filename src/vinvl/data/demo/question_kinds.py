"""The kinds of questions of the demo world: for a scene, every question of a kind, grouped by its true answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

from vinvl.data.demo.scene import COLOURS, HEIGHT, SHAPES, SIZE_RADII, WIDTH, Scene, SceneObject

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

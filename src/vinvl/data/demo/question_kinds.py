"""The kinds of questions of the demo world: for a scene, every question of a kind, grouped by its true answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

from vinvl.data.demo.scene import COLOURS, HEIGHT, SHAPES, SIZE_RADII, TEXTURES, WIDTH, Scene, SceneObject

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


def _exists_pair(scene: Scene) -> Fillings:
    """A colour and a shape together; the no-questions name a colour and a shape that are both there, but apart."""
    pairs = {(thing.colour, thing.shape) for thing in scene.objects}
    colours, shapes = sorted({colour for colour, _ in pairs}), sorted({shape for _, shape in pairs})
    result: Fillings = {"yes": [], "no": []}
    for colour in colours:
        for shape in shapes:
            result["yes" if (colour, shape) in pairs else "no"].append((colour, shape))
    return result


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


def _spatial_choice(attribute: str, direction: str) -> Callable[[Scene], Fillings]:
    def fillings(scene: Scene) -> Fillings:
        result: Fillings = {}
        for (first, a), (second, b) in permutations(only_ones(scene, attribute).items(), 2):
            offset = _offset(a, b, direction)
            if abs(offset) >= MARGIN:
                words = (_noun(attribute, first), _noun(attribute, second))
                result.setdefault(first if offset > 0 else second, []).append(words)
        return result

    return fillings


def _more(attribute: str, sign: int) -> Callable[[Scene], Fillings]:
    """More (`sign` 1) or fewer (-1) of one than of another; both are in the scene and their counts differ."""

    def fillings(scene: Scene) -> Fillings:
        counts = Counter(getattr(thing, attribute) for thing in scene.objects)
        result: Fillings = {"yes": [], "no": []}
        for first, second in permutations(sorted(counts), 2):
            if counts[first] != counts[second]:
                nouns = [plural(value) if attribute == "shape" else f"{value} objects" for value in (first, second)]
                result["yes" if sign * (counts[first] - counts[second]) > 0 else "no"].append((nouns[0], nouns[1]))
        return result

    return fillings


def _as_many(scene: Scene) -> Fillings:
    counts = Counter(thing.shape for thing in scene.objects)
    result: Fillings = {"yes": [], "no": []}
    for first, second in permutations(sorted(counts), 2):
        answer = "yes" if counts[first] == counts[second] else "no"
        result[answer].append((plural(first), plural(second)))
    return result


def _larger(attribute: str, sign: int) -> Callable[[Scene], Fillings]:
    """Larger (`sign` 1) or smaller (-1), between only things of different sizes."""
    order = list(SIZE_RADII)

    def fillings(scene: Scene) -> Fillings:
        result: Fillings = {"yes": [], "no": []}
        for (first, a), (second, b) in permutations(only_ones(scene, attribute).items(), 2):
            difference = sign * (order.index(a.size) - order.index(b.size))
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


_SIDES = {  # direction -> (relation phrase, place phrase, adverb)
    "left": ("to the left of", "on the far left", "further to the left"),
    "right": ("to the right of", "on the far right", "further to the right"),
    "above": ("above", "at the top", "higher up"),
    "below": ("below", "at the bottom", "lower down"),
}


def question_families() -> tuple[QuestionFamily, ...]:
    """All kinds of questions with their shares, in a fixed order."""
    return (*_existence(), *_counts(), *_attributes(), *_spatial(), *_comparisons(), *_which())


def _existence() -> list[QuestionFamily]:
    plain = ("is there a {0}?", "is there a {0} in the picture?", "can you see a {0}?", "does the image show a {0}?")
    pair = ("is there a {0} {1}?", "can you see a {0} {1}?", "is any {1} {0}?")
    return [
        QuestionFamily("exists_shape", "existence", "yes/no", 14, plain, _exists("shape")),
        QuestionFamily("exists_colour", "existence", "yes/no", 14, plain, _exists("colour")),
        QuestionFamily("exists_pair", "existence", "yes/no", 3, pair, _exists_pair),
    ]


def _counts() -> list[QuestionFamily]:
    phrasings = ("how many {0} are there?", "how many {0} can you see?", "what number of {0} is shown?")
    return [
        QuestionFamily("count_shape", "count", "number", 8, phrasings, _count("shape")),
        QuestionFamily("count_colour", "count", "number", 8, phrasings, _count("colour")),
    ]


def _attributes() -> list[QuestionFamily]:
    colour = ("what color is the {0}?", "which color does the {0} have?", "what is the color of the {0}?")
    texture = ("what pattern does the {0} have?", "is the {0} plain, striped or dotted?")
    size = ("what size is the {0}?", "how big is the {0}?")
    check = ("is the {0} {1}?", "would you call the {0} {1}?")
    return [
        QuestionFamily("colour_of", "attribute", "other", 9, colour, _attribute("shape", "colour")),
        QuestionFamily("texture_of", "attribute", "other", 1.5, texture, _attribute("colour", "texture")),
        QuestionFamily("size_of", "attribute", "other", 1.5, size, _attribute("colour", "size")),
        QuestionFamily(
            "is_colour", "attribute", "yes/no", 8, check, _attribute_check("shape", "colour", tuple(COLOURS))
        ),
        QuestionFamily("is_texture", "attribute", "yes/no", 4, check, _attribute_check("colour", "texture", TEXTURES)),
    ]


def _spatial() -> list[QuestionFamily]:
    families = []
    for direction, (relation, _, adverb) in _SIDES.items():
        check = (f"is the {{0}} {relation} the {{1}}?", f"can you find the {{0}} {relation} the {{1}}?")
        choice = (f"which one is {adverb}, the {{0}} or the {{1}}?",)
        checked = _spatial_check("colour", direction)
        families.append(QuestionFamily(f"is_{direction}", "spatial", "yes/no", 4, check, checked))
        further = _spatial_choice("colour", direction)
        families.append(QuestionFamily(f"further_{direction}", "spatial", "other", 0.5, choice, further))
    return families


def _comparisons() -> list[QuestionFamily]:
    more = ("are there more {0} than {1}?", "do you see more {0} than {1}?")
    fewer = ("are there fewer {0} than {1}?", "do you see fewer {0} than {1}?")
    as_many = ("are there as many {0} as {1}?", "is the number of {0} and {1} the same?")
    larger = ("is the {0} bigger than the {1}?", "is the {0} larger than the {1}?")
    smaller = ("is the {0} smaller than the {1}?", "is the {1} the bigger one compared to the {0}?")
    return [
        QuestionFamily("more_shapes", "comparison", "yes/no", 8, more, _more("shape", 1)),
        QuestionFamily("fewer_shapes", "comparison", "yes/no", 3, fewer, _more("shape", -1)),
        QuestionFamily("as_many_shapes", "comparison", "yes/no", 0.5, as_many, _as_many),
        QuestionFamily("larger", "comparison", "yes/no", 4, larger, _larger("colour", 1)),
        QuestionFamily("smaller", "comparison", "yes/no", 2, smaller[:1], _larger("colour", -1)),
    ]


def _which() -> list[QuestionFamily]:
    shape = ("what shape is the {0}?", "which shape does the {0} have?", "what is the {0}?")
    families = [QuestionFamily("shape_of", "which", "other", 9, shape, _attribute("colour", "shape"))]
    for direction, (_, place, _) in _SIDES.items():
        phrasings = (f"which object is {place}?", f"what is the object {place}?")
        families.append(
            QuestionFamily(f"shape_{direction}", "which", "other", 0.75, phrasings, _extreme(direction, "shape"))
        )
    return families

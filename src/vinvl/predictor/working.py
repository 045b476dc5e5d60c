"""Many pictures and texts, worked on a window at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vinvl.predictor.finding import Finder, Looking, Place
from vinvl.predictor.pairing import Pairs, checked_text
from vinvl.predictor.taking import Taking

WINDOW = 128  # pictures, or pairs of picture and text, that are in memory at a time
Result = TypeVar("Result")
Work = Callable[[list[list[Place]], list[str]], list[Result]]
"""Of some items where the regions of each one's pictures are, and the texts → the results."""


def worked(
    looking: Looking,
    pairs: Pairs,
    text_is: str | None,
    work: Work[Result],
    pictures_of: Callable[[Any], Sequence[Any]] = lambda image: (image,),
) -> list[Result]:
    """The results of all (image, text), in their order.

    Args:
        looking: where regions come from.
        pairs: which belong together.
        text_is: what the text is called in messages; None where there is none.
        work: makes results of a window.
        pictures_of: the pictures in what stands for the image.

    Raises:
        UserError: what is no picture or no text, or a broken picture.
    """
    order = _by_picture(pairs.items, looking.taking, pictures_of)
    finder = Finder(looking)
    results: list[Result] = []
    for start in range(0, len(order), WINDOW):
        window = [pairs.items[index] for index in order[start : start + WINDOW]]
        texts = ["" if text_is is None else checked_text(text, text_is) for _, text in window]
        taken = [[looking.taking.take(one) for one in pictures_of(image)] for image, _ in window]
        places = iter(finder.find([one for pictures in taken for one in pictures]))
        results += work([[next(places) for _ in pictures] for pictures in taken], texts)
    by_index = dict(zip(order, results, strict=True))
    return [by_index[index] for index in range(len(order))]


def _by_picture(items: list[tuple[Any, Any]], taking: Taking, pictures_of: Callable[[Any], Sequence[Any]]) -> list[int]:
    """The order in which pictures, of two the first, come for the first time: of one that comes again, all at once."""
    keys = [taking.key(pictures_of(image)[0]) for image, _ in items]
    firsts: dict[Any, int] = {}
    for index, key in enumerate(keys):
        firsts.setdefault(key, index)
    return sorted(range(len(keys)), key=lambda index: firsts[keys[index]])

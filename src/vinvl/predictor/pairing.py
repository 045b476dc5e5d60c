"""One picture or many, with one text or many: which belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat, zip_longest
from typing import Any

import numpy as np
from torch import Tensor

from vinvl.errors import UserError

_END = object()


def is_many(value: object) -> bool:
    """Whether this is a list, a generator or the like, and neither a text nor a picture."""
    single = isinstance(value, str | bytes | np.ndarray | Tensor | Mapping)
    return isinstance(value, Iterable) and not single


@dataclass(frozen=True)
class Pairs:
    """What belongs together.

    Attributes:
        items: (image, text): a list, or where there is a generator something that draws from it as the work goes on.
        single: there are one picture and one text, and the result is no list.
        lasting: the pictures stay as they are; what a generator gives out may be one object that changes.
    """

    items: list[tuple[Any, Any]] | Iterator[tuple[Any, Any]]
    single: bool
    lasting: bool


def paired(images: Any, texts: Any, image_is_many: Callable[[object], bool] = is_many) -> Pairs:
    """One picture goes with all texts, one text with all pictures, and lists of one length belong together.

    Args:
        images: one picture, or many of them in a list or a generator.
        texts: the same of texts.
        image_is_many: tells the one from the other.

    Raises:
        UserError: two lists of different length; of generators while they are drawn from.
    """
    many_images, many_texts = image_is_many(images), is_many(texts)
    lasting = not many_images or isinstance(images, Sequence)
    sized = lasting and (not many_texts or isinstance(texts, Sequence))
    if not many_images and not many_texts:
        return Pairs([(images, texts)], True, lasting)
    if not many_texts:
        pairs: Iterator[tuple[Any, Any]] = zip(images, repeat(texts), strict=False)
    elif not many_images:
        pairs = zip(repeat(images), texts, strict=False)
    else:
        if sized and len(images) != len(texts):
            raise UserError(
                f"There are {len(images):,} pictures and {len(texts):,} texts: give as many of the one as of the "
                "other, or a single one for all."
            )
        pairs = _of_one_length(images, texts)
    return Pairs(list(pairs) if sized else pairs, False, lasting)


def checked_text(text: object, what: str) -> str:
    """A question, statement or caption.

    Raises:
        UserError: it is no text, or there is nothing in it.
    """
    if not isinstance(text, str):
        raise UserError(f"The {what} is a {type(text).__name__}: give a text.")
    if not text.strip():
        raise UserError(f"The {what} is blank: give a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"The {what} {ascii(text)[:60]} is no valid Unicode text.") from None
    return text


def _of_one_length(images: Iterable[Any], texts: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    for count, (image, text) in enumerate(zip_longest(images, texts, fillvalue=_END)):
        if image is _END or text is _END:
            fewer, more = ("pictures", "texts") if image is _END else ("texts", "pictures")
            raise UserError(f"There are {count:,} {fewer} and more {more}: give as many of the one as of the other.")
        yield image, text

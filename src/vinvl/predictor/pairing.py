"""One picture or many, with one text or many: which belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vinvl.errors import UserError


def is_many(value: object) -> bool:
    """Whether this is a list or the like, and neither a text nor a picture."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


class Pairs(NamedTuple):
    """What belongs together: (image, text) each. Where there is a single one, the result is no list."""

    items: list[tuple[Any, Any]]
    single: bool


def paired(images: Any, texts: Any, image_is_many: Callable[[object], bool] = is_many) -> Pairs:
    """One picture goes with all texts, one text with all pictures, and lists of one length belong together.

    Args:
        images: one picture, or a list of them.
        texts: the same of texts.
        image_is_many: tells the one from the other.

    Raises:
        UserError: two lists of different length.
    """
    many_images, many_texts = image_is_many(images), is_many(texts)
    if not many_images and not many_texts:
        return Pairs([(images, texts)], True)
    if not many_texts:
        return Pairs([(image, texts) for image in images], False)
    if not many_images:
        return Pairs([(images, text) for text in texts], False)
    if len(images) != len(texts):
        raise UserError(
            f"There are {len(images):,} pictures and {len(texts):,} texts: give as many of the one as of the other, or "
            "a single one for all."
        )
    return Pairs(list(zip(images, texts, strict=True)), False)


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

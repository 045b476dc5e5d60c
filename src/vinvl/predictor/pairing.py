"""One picture or many, with one text or many: which belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vinvl.run.errors import UserError


def is_many(value: object) -> bool:
    """Whether this is a list or the like, and neither a text nor a picture."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def paired(
    images: Any, texts: Any, image_is_many: Callable[[object], bool] = is_many
) -> tuple[list[tuple[Any, Any]], bool]:
    """(image, text) each, and whether there is a single one, so that the result is no list.

    One picture goes with all texts, one text with all pictures, and lists of one length belong together; UserError for
    lists of different length. `image_is_many` tells one picture from a list of them.
    """
    many_images, many_texts = image_is_many(images), is_many(texts)
    if many_images and many_texts and len(images) != len(texts):
        raise UserError(
            f"There are {len(images):,} pictures and {len(texts):,} texts: give as many of the one as of the other, or "
            "a single one for all."
        )
    images = images if many_images else [images] * (len(texts) if many_texts else 1)
    texts = texts if many_texts else [texts] * len(images)
    return list(zip(images, texts, strict=True)), not (many_images or many_texts)


def checked_text(text: object, what: str) -> str:
    """A question, statement or caption. Raises UserError if it is not a text, or blank."""
    if not isinstance(text, str):
        raise UserError(f"The {what} is a {type(text).__name__}: give a text.")
    if not text.strip():
        raise UserError(f"The {what} is blank: give a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"The {what} {ascii(text)[:60]} is not valid Unicode text.") from None
    return text


def both_of(image: Any) -> tuple[Any, Any]:
    """The two pictures that a statement is about. Raises UserError for anything but a tuple of two."""
    if not isinstance(image, tuple) or len(image) != 2:
        raise UserError("A statement is about two pictures: give a tuple of the left and the right one.")
    return image

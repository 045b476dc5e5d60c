"""One picture or many, one text or many: what belongs together, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vinvl.predictor.pairing import checked_text, paired
from vinvl.run.errors import UserError

ARRAY, IMAGE = np.zeros((2, 2), dtype=np.uint8), Image.new("L", (2, 2))


LISTS: list[Callable[[Any], Any]] = [list, tuple]


@pytest.mark.parametrize("as_images", LISTS)
@pytest.mark.parametrize("as_texts", LISTS)
@pytest.mark.parametrize(
    ("images", "texts", "pairs"),
    [("ab", "xy", ["ax", "by"]), ("a", "x", ["ax"]), ("", "", [])],
)
def test_lists_of_one_length_belong_together(
    images: str, texts: str, pairs: list[str], as_images: Any, as_texts: Any
) -> None:
    assert paired(as_images(images), as_texts(texts)) == ([(image, text) for image, text in pairs], False)


@pytest.mark.parametrize("many", LISTS)
def test_one_goes_with_all(many: Any) -> None:
    assert paired("a", many("xy")) == ([("a", "x"), ("a", "y")], False)
    assert paired(many("ab"), "x") == ([("a", "x"), ("b", "x")], False)
    assert paired(many(""), "x") == paired("a", many("")) == ([], False)
    assert paired("a", "x") == ([("a", "x")], True)
    assert paired(ARRAY, many("x"))[0][0][0] is ARRAY


@pytest.mark.parametrize("as_images", LISTS)
@pytest.mark.parametrize("as_texts", LISTS)
@pytest.mark.parametrize(("images", "texts"), [("abc", "xy"), ("a", "xy"), ("", "x"), ("a", "")])
def test_lists_of_other_lengths_are_refused(images: str, texts: str, as_images: Any, as_texts: Any) -> None:
    with pytest.raises(UserError, match=f"{len(images)} pictures and {len(texts)} texts: give as many of the one as"):
        paired(as_images(images), as_texts(texts))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(3, "The question is a int"), (None, "is a NoneType"), (" \n", "is blank"), ("\ud800", "not valid Unicode")],
)
def test_what_is_no_question(text: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        checked_text(text, "question")

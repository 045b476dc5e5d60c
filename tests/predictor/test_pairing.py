"""One picture or many, one text or many: who belongs together, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vinvl.predictor.predictor import checked_text, is_many, paired
from vinvl.run.errors import UserError

ARRAY, IMAGE = np.zeros((2, 2), dtype=np.uint8), Image.new("L", (2, 2))


@pytest.mark.parametrize("one", ["a.jpg", b"a", ARRAY, IMAGE, {"a": 1}, 3, None, (one for one in "ab")])
def test_single_things(one: Any) -> None:
    assert not is_many(one)


@pytest.mark.parametrize("many", [[], ["a"], ("a", "b")])
def test_many_things(many: Any) -> None:
    assert is_many(many)


LISTS: list[Callable[[list[Any]], Any]] = [list, tuple]


@pytest.mark.parametrize("as_images", LISTS)
@pytest.mark.parametrize("as_texts", LISTS)
def test_lists_of_one_length_belong_together(as_images: Any, as_texts: Any) -> None:
    pairs = paired(as_images(["a", "b"]), as_texts(["x", "y"]))
    assert pairs == ([("a", "x"), ("b", "y")], False)


@pytest.mark.parametrize("many", LISTS)
def test_one_goes_with_all(many: Any) -> None:
    assert paired("a", many(["x", "y"])) == ([("a", "x"), ("a", "y")], False)
    assert paired(many(["a", "b"]), "x") == ([("a", "x"), ("b", "x")], False)
    assert paired("a", "x") == ([("a", "x")], True)
    assert paired(ARRAY, many(["x"]))[0][0][0] is ARRAY


@pytest.mark.parametrize("many", LISTS)
def test_nothing_gives_nothing(many: Any) -> None:
    for pairs in (paired(many([]), "x"), paired("a", many([])), paired(many([]), many([]))):
        assert pairs == ([], False)


@pytest.mark.parametrize("as_images", LISTS)
@pytest.mark.parametrize("as_texts", LISTS)
@pytest.mark.parametrize(("images", "texts"), [("abc", "xy"), ("a", "xy"), ("", "x"), ("a", "")])
def test_lists_of_other_lengths_are_refused(images: str, texts: str, as_images: Any, as_texts: Any) -> None:
    with pytest.raises(UserError, match=f"{len(images)} pictures and {len(texts)} texts: give as many of the one as"):
        paired(as_images(list(images)), as_texts(list(texts)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(3, "The question is a int"), (None, "is a NoneType"), (" \n", "is blank"), ("\ud800", "no valid Unicode")],
)
def test_what_is_no_question(text: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        checked_text(text, "question")

"""Shared by the tests of the file readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from vinvl.run.errors import UserError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
sentences = texts.filter(str.strip)
ids = st.one_of(st.integers(), sentences.filter(lambda text: "\0" not in text))
unique_ids = st.lists(ids, min_size=1, max_size=6, unique_by=str)

BROKEN_FILES = [
    (b"", "is empty|found nothing"),
    (b" \n\t", "is empty|found nothing"),
    (b"\xff\xfe{", "is not UTF-8 text"),
    (b'{"a": ' + b"[" * 200_000, "not usable JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON"),
    (b'{"a": {"b": "unfinis', "is not valid JSON"),
    (b'{"a": {"b" 1}}', "is not valid JSON .*Expecting ':' delimiter"),
    (b"{'a': 1}", "is not valid JSON"),
    (b"{\x00}", "is not valid JSON"),
]
"""(bytes, expression) of files that no reader can use, and what is said of them."""


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The one sentence of a reader that refused."""
    with pytest.raises(UserError) as error:
        call(*arguments, **named)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith("."), sentence
    sentence.encode()
    return sentence

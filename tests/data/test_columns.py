"""Text columns hold what was put in, share memory after pickling as arrays, and join."""

import pickle
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.data.columns import CategoricalColumn, TextColumn

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(deadline=None)
@given(st.lists(texts))
@pytest.mark.parametrize("column_type", [TextColumn, CategoricalColumn])
def test_round_trip(column_type: type[TextColumn] | type[CategoricalColumn], values: list[str]) -> None:
    column = pickle.loads(pickle.dumps(column_type.from_texts(values)))
    assert len(column) == len(values)
    assert list(column) == values
    assert [column[index] for index in range(len(values))] == values
    assert [column[np.int64(index)] for index in range(-len(values), 0)] == values
    for outside in (len(values), -len(values) - 1):
        with pytest.raises(IndexError):
            column[outside]


@settings(deadline=None)
@given(st.lists(st.lists(texts), min_size=1, max_size=4))
def test_joining(parts: list[list[str]]) -> None:
    expected = list(chain.from_iterable(parts))
    assert list(TextColumn.concatenate([TextColumn.from_texts(part) for part in parts])) == expected
    assert list(CategoricalColumn.concatenate([CategoricalColumn.from_texts(part) for part in parts])) == expected

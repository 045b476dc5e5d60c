"""Pickles of plain containers and NumPy arrays, read without letting them call anything else."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from vinvl.errors import UserError


def load_restricted(content: bytes, place: str) -> Any:
    """The object in a pickle of dicts, lists, tuples, sets, texts, numbers, NumPy arrays and NumPy scalars.

    Pickles of Python 2 are read with their texts as Latin-1. NumPy's functions in a pickle are replaced by ones that
    make arrays of data only, so that no pickle has a class to call.

    Raises:
        UserError: the pickle wants anything else, or is damaged; the sentence names `place`.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _ForeignGlobalError as error:
        raise UserError(
            f"{place} is a pickle that wants to call {error}; only plain containers and NumPy arrays are read, for "
            "anything else could run a program."
        ) from None
    except Exception as error:  # damaged opcodes raise whatever they run into
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{place} is a damaged pickle ({reason}); get the file again.") from None


class _ForeignGlobalError(Exception):
    """The name of something that a pickle must not use."""


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core", 1)  # its name before NumPy 2
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _ForeignGlobalError(f"{module}.{name}"[:80]) from None


class _ArrayType:
    """Stands where a pickle says `numpy.ndarray`; cannot be called."""


def _empty_array(*_: object) -> np.ndarray:
    """What NumPy fills with the state that follows in the pickle."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _scalar(dtype: np.dtype, content: bytes) -> Any:
    return np.frombuffer(content, dtype=dtype)[0]


def _from_buffer(content: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype=dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise _ForeignGlobalError(f"the codec {encoding}"[:80])
    return text.encode("latin1")


def _data_type(text: str, *_: object) -> np.dtype:
    return np.dtype(str(text), False, True)  # a copy, for the byte order that follows in the pickle is set on it


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | _ArrayType] = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _data_type,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}

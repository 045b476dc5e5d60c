"""Pickles of plain containers and NumPy arrays, read by Python's own unpickler cut down to what they need.

As it is, it lets a file set the state of whatever it may name; arrays and their types have states that make the
interpreter read and write foreign memory. Here a file's state is only read and compared with its content.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vinvl.run.errors import UserError

DEEPEST = 100  # containers within each other
EXPANSION = 16  # how much more than its bytes a pickle may hold, where it names a container or text more than once
_TYPES = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,5}|O[48]?")
_SCALARS = {int, float, bool, type(None)}
_KEYS = (int, bool, type(None), str, bytes, np.integer, np.str_)  # of which nobody makes many with one hash


def load_restricted(content: bytes, place: str) -> Any:
    """The object in a pickle of dicts, lists, tuples, sets, texts, numbers, NumPy arrays and NumPy scalars.

    Pickles of Python 2 are read with their texts as Latin-1; ordered dicts and
    those with a default number come as dicts. Arrays of numbers and texts
    cannot be written to. Raises UserError if the pickle wants anything else, is damaged, contains itself, or holds far
    more than its bytes; the sentence names `place`.
    """
    try:
        value = _Unpickler(content).load()
        inspect_plain((value,), EXPANSION * len(content) + 1000)
        return value
    except _ForeignError as error:
        raise UserError(
            f"{place} is a pickle that wants to {error}; only plain containers and NumPy arrays are read, for "
            "anything else could run a program."
        ) from None
    except Exception as error:  # damaged opcodes raise whatever they run into
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        reason = (
            "it is cut off, or uses more than plain data needs" if isinstance(error, LookupError | EOFError) else reason
        )
        raise UserError(f"{place} is a damaged pickle ({reason}); get the file again.") from None


def plain_array(kind: np.dtype, shape: tuple[int, ...], content: bytes, fortran: bool = False) -> np.ndarray:
    """An array of numbers or texts over the bytes of a file; it cannot be written to.

    Args:
        kind: of truth values, whole or floating-point numbers, or texts.
        content: as many bytes as the shape needs; Fortran's order of them if `fortran`.

    Raises:
        ValueError: another kind, other bytes than the shape needs, truth values that are neither 0 nor 1, or texts
            that are no Unicode (both of which NumPy takes on trust).
    """
    if kind.kind not in "biufSU" or not kind.itemsize or kind.shape or kind.names:
        raise ValueError(f"an array of {kind}")
    expected = math.prod(shape) * kind.itemsize
    if len(content) != expected:
        raise ValueError(f"{len(content):,} bytes of data, expected {expected:,}; it may be cut off")
    if kind.kind == "b" and content.translate(None, b"\x00\x01"):
        raise ValueError("truth values that are neither 0 nor 1")
    if kind.kind == "U":
        points = np.frombuffer(content, dtype=np.dtype("u4").newbyteorder(kind.byteorder))
        if np.any((points > 0x10FFFF) | ((points >= 0xD800) & (points < 0xE000))):
            raise ValueError("texts that are no Unicode")
    return np.ndarray(shape, kind, content, order="F" if fortran else "C")


class _ForeignError(ValueError):
    """What a pickle wants to do and must not, as the end of "wants to …"."""


class _Name:
    """Something that a pickle may name and, if it has `make`, call."""

    def __init__(self, make: Callable[..., Any] | None = None) -> None:
        self.make = make


class _ArrayType:
    """A dtype: its kind as text, and the byte order that follows in the pickle."""

    def __init__(self, _pickle: _Unpickler, text: Any, *_: object) -> None:
        if not isinstance(text, str) or not _TYPES.fullmatch(text):
            raise _ForeignError(f"make arrays of the type {text!r}"[:80])
        self.text, self.order = text, "="

    def set_state(self, state: Any) -> None:
        _version, order, *structure = state[:5]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in structure):
            raise _ForeignError("make arrays of a type of its own")
        self.order = order


class _Unfilled:
    """Where an array will be, once its state has followed in the pickle."""

    def __init__(self, _pickle: _Unpickler, kind: Any, *_: object) -> None:
        if kind is not _NDARRAY:
            raise _ForeignError("make an array of another class")
        self.array: np.ndarray | None = None


_PYTHONS: Any = pickle._Unpickler  # its own, written in Python: what it knows is a table of opcodes


class _Unpickler(_PYTHONS):
    """Python's own with the opcodes of `_OPCODES` alone; texts of Python 2 are Latin-1."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._budget = EXPANSION * len(content) + 1000

    def _spend(self, amount: int) -> None:
        """Counts what is copied, because a pickle may name one thing many times."""
        self._budget -= amount
        if self._budget < 0:
            raise ValueError("it holds far more than its bytes")

    def _push(self, value: Any) -> None:
        self.append(value)  # which another is after a mark

    def _get(self, key: int) -> None:
        value = self.memo[key]
        if type(value) is _Unfilled:
            if value.array is None:
                raise ValueError("an array contains itself")
            value = value.array
        self.append(value)

    def _decimal(self) -> None:
        text = self.readline()[:-1]
        if len(text) > 21:
            raise ValueError("a whole number of more than 64 bits")
        self.append(text == b"01" if text in (b"00", b"01") else int(text.removesuffix(b"L")))

    def _long(self, length: int) -> None:
        if length > 9:
            raise ValueError("a whole number of more than 64 bits")
        self.append(int.from_bytes(self._whole(length), "little", signed=True))

    def _number(self, length: int) -> int:
        return int.from_bytes(self._whole(length), "little")

    def _whole(self, length: int) -> bytes:
        """So many bytes, which Python's own takes for granted."""
        content: bytes = self.read(length)
        if len(content) != length:
            raise EOFError
        return content

    def _fill(self, kind: Any, items: Any) -> None:
        """Adds to the container that is on top of the stack."""
        target = self.stack[-1]
        if type(target) is not kind:
            raise _ForeignError(f"change a {type(target).__name__}")
        target.update(items)

    def find_class(self, module: Any, name: Any) -> Any:
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core", 1)  # its name before NumPy 2
        if (module, name) not in _NAMES:
            raise _ForeignError("call " + ascii(f"{module}.{name}"[:80])[1:-1])
        return _NAMES[module, name]

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or function.make is None or type(arguments) is not tuple:
            raise _ForeignError("call what is no function")
        self.append(function.make(self, *arguments))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple or type(target) not in (_ArrayType, _Unfilled):
            raise _ForeignError(f"set the state of a {type(target).__name__}")
        if type(target) is _ArrayType:
            target.set_state(state)
        elif target.array is None:
            _version, shape, kind, fortran, content = state
            target.array = self.stack[-1] = self._array(content, kind, shape, bool(fortran))

    def _array(self, content: Any, kind: Any, shape: Any, fortran: bool) -> np.ndarray:
        if type(kind) is not _ArrayType or type(shape) is not tuple or any(type(one) is not int for one in shape[:64]):
            raise ValueError("an array without type or shape")
        if len(shape) > 32 or any(length < 0 for length in shape):
            raise ValueError("an array of a shape that cannot be")
        if not kind.text.startswith("O"):
            return plain_array(np.dtype(kind.order + kind.text), shape, self._bytes(content), fortran)
        if type(content) is not list or len(content) != math.prod(shape):
            raise ValueError(f"an array of the shape {shape} without as many objects")
        if any(type(one) is np.ndarray and one.dtype.hasobject for one in content):
            raise ValueError("arrays of objects within each other")
        self._spend(len(content))
        array = np.empty(len(content), dtype=object)
        for position, value in enumerate(content):
            array[position] = value
        return array.reshape(shape)  # objects are listed in C's order whatever the array's

    def _bytes(self, content: Any) -> bytes:
        if type(content) not in (bytes, str):
            raise ValueError(f"an array of a {type(content).__name__} in place of bytes")
        self._spend(len(content))
        return content.encode("latin1") if isinstance(content, str) else content  # texts: in pickles of Python 2

    def _scalar(self, kind: Any, content: Any) -> Any:
        return self._array(content, kind, (), False)[()]

    def _latin1(self, text: Any, encoding: Any) -> bytes:
        """How pickles of protocol 2 write bytes."""
        if encoding in ("latin1", "latin-1"):
            return self._bytes(text)
        raise _ForeignError(f"call the codec {encoding!r}"[:80])

    def _set(self, items: Any = ()) -> set[Any]:
        self._spend(len(items))
        return set(_keys(items))

    def _ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        self._spend(len(pairs))
        return _dict([part for key, value in pairs for part in (key, value)])

    def _defaulted(self, default: Any = None) -> dict[Any, Any]:
        """Without its default, which is a number: whoever reads it knows."""
        if default is not _NUMBER:
            raise _ForeignError("make a dict with a default of its own")
        return {}


def _keys(items: Any) -> Any:
    for item in items:
        of_texts = type(item) is tuple and all(type(part) is str for part in item)
        if not of_texts and not isinstance(item, _KEYS):
            raise ValueError(f"a {type(item).__name__} as a key")
    return items


def _dict(items: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def _text(escaped: bytes) -> str:
    """Of protocol 0; a Python 2 of 16-bit characters wrote surrogates for all others."""
    return escaped.decode("raw-unicode-escape").encode("utf-16", "surrogatepass").decode("utf-16")


def inspect_plain(value: Any, limit: int = 10**7) -> None:
    """Raises ValueError for what is no plain data, contains itself, or counted out has more values than `limit`."""
    _inspect(value, limit, {})


def _inspect(value: Any, limit: int, sizes: dict[int, int], depth: int = 0) -> int:
    """How many values it holds; `sizes` are those of the containers that are known, by id, 0 inside of one."""
    kind = type(value)
    if isinstance(value, np.generic) or (kind is np.ndarray and not value.dtype.hasobject):
        return 1 + int(value.nbytes) // 256
    if id(value) in sizes:
        if sizes[id(value)] == 0:
            raise ValueError("it contains itself")
        return sizes[id(value)]
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} containers within each other")
    if kind not in (list, tuple, dict, set, frozenset, np.ndarray):
        raise _ForeignError(f"give away a {kind.__name__}")
    sizes[id(value)], total = 0, 1
    _keys(value if kind is dict else ())
    items = value.values() if kind is dict else value.flat if kind is np.ndarray else value
    for item in items:
        if type(item) in _SCALARS:
            total += 1
        elif type(item) is str or type(item) is bytes:
            total += 1 + len(item) // 256
        else:
            total += _inspect(item, limit, sizes, depth + 1)
    if total > limit:
        raise ValueError("it holds far more than its bytes")
    sizes[id(value)] = total
    return total


_NDARRAY, _NUMBER = _Name(), _Name()
_NAMES = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Name(_ArrayType),
    ("numpy._core.multiarray", "_reconstruct"): _Name(_Unfilled),
    ("numpy._core.multiarray", "scalar"): _Name(_Unpickler._scalar),
    ("numpy._core.numeric", "_frombuffer"): _Name(
        lambda m, content, kind, shape, order: m._array(content, kind, shape, order == "F")
    ),
    ("_codecs", "encode"): _Name(_Unpickler._latin1),
    ("collections", "OrderedDict"): _Name(_Unpickler._ordered),
    ("collections", "defaultdict"): _Name(_Unpickler._defaulted),
}
for _module in ("builtins", "__builtin__"):
    _NAMES[_module, "float"] = _NAMES[_module, "int"] = _NUMBER
    _NAMES[_module, "set"] = _Name(_Unpickler._set)
    _NAMES[_module, "frozenset"] = _Name(lambda m, *items: frozenset(m._set(*items)))
    _NAMES[_module, "bytes"] = _Name(lambda _: b"")  # how protocols before 3 write no bytes

_KEPT = (  # opcodes that are read as Python reads them
    "PROTO", "FRAME", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "FLOAT",
    "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "EMPTY_SET", "PUT",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL",
)  # fmt: skip
_OWN: dict[str, Callable[[_Unpickler], None]] = {
    "BYTEARRAY8": lambda p: p._push(p._whole(p._number(8))),
    "INT": _Unpickler._decimal,
    "LONG": _Unpickler._decimal,
    "LONG1": lambda p: p._long(p._number(1)),
    "LONG4": lambda p: p._long(p._number(4)),
    "BINUNICODE": lambda p: p._push(p._whole(p._number(4)).decode()),  # Python's own lets half a character through
    "SHORT_BINUNICODE": lambda p: p._push(p._whole(p._number(1)).decode()),
    "BINUNICODE8": lambda p: p._push(p._whole(p._number(8)).decode()),
    "UNICODE": lambda p: p._push(_text(p.readline()[:-1])),
    "DICT": lambda p: p._push(_dict(p.pop_mark())),
    "SETITEM": lambda p: p._fill(dict, _dict([*reversed([p.stack.pop(), p.stack.pop()])])),
    "SETITEMS": lambda p: p._fill(dict, _dict(p.pop_mark())),
    "ADDITEMS": lambda p: p._fill(set, _keys(p.pop_mark())),
    "FROZENSET": lambda p: p._push(frozenset(_keys(p.pop_mark()))),
    "GET": lambda p: p._get(int(p.readline()[:-1])),
    "BINGET": lambda p: p._get(p._number(1)),
    "LONG_BINGET": lambda p: p._get(p._number(4)),
    "REDUCE": _Unpickler._call,
    "BUILD": _Unpickler._build,
}
_OPCODES = {name: ord(getattr(pickle, name)) for name in (*_KEPT, *_OWN)}
_Unpickler.dispatch = {code: _OWN.get(name) or _PYTHONS.dispatch[code] for name, code in _OPCODES.items()}

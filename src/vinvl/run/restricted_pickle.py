"""Pickles of plain containers and NumPy arrays, read by a machine of our own that knows nothing else.

Python's own unpickler lets a file set the state of whatever it may name; arrays and their types have states that make
the interpreter read and write foreign memory. Here a file's state is only read and compared with its content.
"""

from __future__ import annotations

import codecs
import math
import pickle
import re
import struct
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

    Pickles of Python 2 are read with their texts as Latin-1; ordered dicts come as dicts. Arrays of numbers and texts
    cannot be written to. Raises UserError: the pickle wants anything else, is damaged, contains itself, or holds far
    more than its bytes; the sentence names `place`.
    """
    try:
        return _Machine(content).result()
    except _ForeignError as error:
        raise UserError(
            f"{place} is a pickle that wants to {error}; only plain containers and NumPy arrays are read, for "
            "anything else could run a program."
        ) from None
    except Exception as error:  # damaged opcodes raise whatever they run into
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        reason = "it is cut off, or uses more than plain data needs" if isinstance(error, LookupError) else reason
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

    def __init__(self, _machine: _Machine, text: Any, *_: object) -> None:
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

    def __init__(self, _machine: _Machine, kind: Any, *_: object) -> None:
        if kind is not _NDARRAY:
            raise _ForeignError("make an array of another class")
        self.array: np.ndarray | None = None


class _Machine:
    """Runs the opcodes of the protocols 0 to 5 that plain data needs."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = bytes(content), 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._budget = EXPANSION * len(content) + 1000

    def result(self) -> Any:
        """Runs to the end; what is left is plain data."""
        content, stop = self._content, ord(".")
        while (opcode := content[self._position]) != stop:
            self._position += 1
            _STEPS[opcode](self)
        value = self._stack.pop()
        inspect_plain((value,), EXPANSION * len(self._content) + 1000)
        return value

    def _take(self, length: int) -> bytes:
        start, self._position = self._position, self._position + length
        if self._position > len(self._content):
            raise EOFError("it is cut off")
        return self._content[start : self._position]

    def _line(self) -> bytes:
        end = self._content.index(b"\n", self._position)
        line = self._take(end - self._position)
        self._position += 1
        return line

    def _spend(self, amount: int) -> None:
        """Counts what is copied, because a pickle may name one thing many times."""
        self._budget -= amount
        if self._budget < 0:
            raise ValueError("it holds far more than its bytes")

    def _marked(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _last(self, number: int) -> tuple[Any, ...]:
        items = tuple(self._stack[len(self._stack) - number :])
        if len(items) != number:
            raise IndexError
        del self._stack[-number:]
        return items

    def _fill(self, kind: type, items: Any) -> None:
        """Adds to the container that is on top of the stack."""
        target = self._stack[-1]
        if type(target) is not kind:
            raise _ForeignError(f"change a {type(target).__name__}")
        getattr(target, "extend" if kind is list else "update")(items)

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _get(self, key: int) -> None:
        value = self._memo[key]
        if type(value) is _Unfilled:
            if value.array is None:
                raise ValueError("an array contains itself")
            value = value.array
        self._stack.append(value)

    def _decimal(self, text: bytes) -> None:
        if len(text) > 21:
            raise ValueError("a whole number of more than 64 bits")
        self._stack.append(text == b"01" if text in (b"00", b"01") else int(text.removesuffix(b"L")))

    def _long(self, length: int) -> None:
        if length > 9:
            raise ValueError("a whole number of more than 64 bits")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core", 1)  # its name before NumPy 2
        found = _NAMES.get((module, name))
        if found is None:
            raise _ForeignError("call " + ascii(f"{module}.{name}"[:80])[1:-1])
        self._stack.append(found)

    def _call(self) -> None:
        function, arguments = self._last(2)
        if type(function) is not _Name or function.make is None or type(arguments) is not tuple:
            raise _ForeignError("call what is no function")
        self._stack.append(function.make(self, *arguments))

    def _build(self) -> None:
        (state,) = self._last(1)
        target = self._stack[-1]
        if type(state) is not tuple or type(target) not in (_ArrayType, _Unfilled):
            raise _ForeignError(f"set the state of a {type(target).__name__}")
        if type(target) is _ArrayType:
            target.set_state(state)
        elif target.array is None:
            _version, shape, kind, fortran, content = state
            target.array = self._stack[-1] = self._array(content, kind, shape, bool(fortran))

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


def _keys(items: Any) -> Any:
    for item in items:
        if not isinstance(item, _KEYS):
            raise ValueError(f"a {type(item).__name__} as a key")
    return items


def _dict(items: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def _text(escaped: bytes) -> str:
    """Of protocol 0; a Python 2 of 16-bit characters wrote surrogates for all others."""
    return escaped.decode("raw-unicode-escape").encode("utf-16", "surrogatepass").decode("utf-16")


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


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


_NDARRAY = _Name()
_NAMES = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Name(_ArrayType),
    ("numpy._core.multiarray", "_reconstruct"): _Name(_Unfilled),
    ("numpy._core.multiarray", "scalar"): _Name(_Machine._scalar),
    ("numpy._core.numeric", "_frombuffer"): _Name(
        lambda m, content, kind, shape, order: m._array(content, kind, shape, order == "F")
    ),
    ("_codecs", "encode"): _Name(_Machine._latin1),
    ("collections", "OrderedDict"): _Name(_Machine._ordered),
}
for _module in ("builtins", "__builtin__"):
    _NAMES[_module, "set"] = _Name(_Machine._set)
    _NAMES[_module, "frozenset"] = _Name(lambda m, *items: frozenset(m._set(*items)))
    _NAMES[_module, "bytes"] = _Name(lambda _: b"")  # how protocols before 3 write no bytes


def _number(form: str) -> Callable[[_Machine], Any]:
    packed = struct.Struct(form)

    def read(machine: _Machine) -> Any:
        (value,) = packed.unpack_from(machine._content, machine._position)
        machine._position += packed.size
        return value

    return read


_1, _2, _4, _8 = map(_number, ("B", "<H", "<I", "<Q"))
_SIGNED, _FLOAT = _number("<i"), _number(">d")
_STEPS_BY_NAME: dict[str, Callable[[_Machine], Any]] = {
    "BININT": lambda m: m._stack.append(_SIGNED(m)),
    "BININT1": lambda m: m._stack.append(_1(m)),
    "BININT2": lambda m: m._stack.append(_2(m)),
    "BINFLOAT": lambda m: m._stack.append(_FLOAT(m)),
    "BINSTRING": lambda m: m._stack.append(m._take(_4(m)).decode("latin1")),
    "SHORT_BINSTRING": lambda m: m._stack.append(m._take(_1(m)).decode("latin1")),
    "BINUNICODE": lambda m: m._stack.append(m._take(_4(m)).decode()),
    "SHORT_BINUNICODE": lambda m: m._stack.append(m._take(_1(m)).decode()),
    "BINUNICODE8": lambda m: m._stack.append(m._take(_8(m)).decode()),
    "BINBYTES": lambda m: m._stack.append(m._take(_4(m))),
    "SHORT_BINBYTES": lambda m: m._stack.append(m._take(_1(m))),
    "BINBYTES8": lambda m: m._stack.append(m._take(_8(m))),
    "BYTEARRAY8": lambda m: m._stack.append(m._take(_8(m))),
    "PROTO": lambda m: m._take(1),  # the protocol
    "FRAME": lambda m: m._take(8),  # the length of what follows
    "MARK": lambda m: m._marks.append(len(m._stack)),
    "NONE": lambda m: m._stack.append(None),
    "NEWTRUE": lambda m: m._stack.append(True),
    "NEWFALSE": lambda m: m._stack.append(False),
    "INT": lambda m: m._decimal(m._line()),
    "LONG": lambda m: m._decimal(m._line()),
    "LONG1": lambda m: m._long(_1(m)),
    "LONG4": lambda m: m._long(_4(m)),
    "FLOAT": lambda m: m._stack.append(float(m._line())),
    "STRING": lambda m: m._stack.append(_quoted(m._line())),
    "UNICODE": lambda m: m._stack.append(_text(m._line())),
    "EMPTY_TUPLE": lambda m: m._stack.append(()),
    "TUPLE": lambda m: m._stack.append(tuple(m._marked())),
    "TUPLE1": lambda m: m._stack.append(m._last(1)),
    "TUPLE2": lambda m: m._stack.append(m._last(2)),
    "TUPLE3": lambda m: m._stack.append(m._last(3)),
    "EMPTY_LIST": lambda m: m._stack.append([]),
    "LIST": lambda m: m._stack.append(m._marked()),
    "APPEND": lambda m: m._fill(list, m._last(1)),
    "APPENDS": lambda m: m._fill(list, m._marked()),
    "EMPTY_DICT": lambda m: m._stack.append({}),
    "DICT": lambda m: m._stack.append(_dict(m._marked())),
    "SETITEM": lambda m: m._fill(dict, _dict(m._last(2))),
    "SETITEMS": lambda m: m._fill(dict, _dict(m._marked())),
    "EMPTY_SET": lambda m: m._stack.append(set()),
    "ADDITEMS": lambda m: m._fill(set, _keys(m._marked())),
    "FROZENSET": lambda m: m._stack.append(frozenset(_keys(m._marked()))),
    "PUT": lambda m: m._put(int(m._line())),
    "BINPUT": lambda m: m._put(_1(m)),
    "LONG_BINPUT": lambda m: m._put(_4(m)),
    "MEMOIZE": lambda m: m._put(len(m._memo)),
    "GET": lambda m: m._get(int(m._line())),
    "BINGET": lambda m: m._get(_1(m)),
    "LONG_BINGET": lambda m: m._get(_4(m)),
    "GLOBAL": lambda m: m._name(m._line().decode(), m._line().decode()),
    "STACK_GLOBAL": lambda m: m._name(*m._last(2)),
    "REDUCE": lambda m: m._call(),
    "BUILD": lambda m: m._build(),
}
_STEPS = {ord(getattr(pickle, name)): step for name, step in _STEPS_BY_NAME.items()}

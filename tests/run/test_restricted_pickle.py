"""Pickles that were made to break the interpreter: every one is plain data or refused, in little time and memory."""

import collections
import pickle
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vinvl.run.errors import UserError
from vinvl.run.restricted_pickle import load_restricted, plain_array

ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
OBJECTS = b"cnumpy\ndtype\n(U\x01OI0\nI1\ntR"
FLOATS = b"cnumpy\ndtype\n(U\x02f8I0\nI1\ntR"
SCALAR = b"cnumpy.core.multiarray\nscalar\n"


def state(shape: bytes, kind: bytes, content: bytes) -> bytes:
    return b"(I1\n(" + shape + b"t" + kind + b"I00\n" + content + b"tb"


HOSTILE = {
    "objects read past their end": (ARRAY + state(b"I1000\n", OBJECTS, b"(I1\nl") + b".", "without as many objects"),
    "fewer objects than none": (ARRAY + state(b"I-1\n", OBJECTS, b"]") + b".", "a shape that cannot be"),
    "numbers as pointers": (ARRAY + state(b"I1\n", OBJECTS, b"U\x08AAAAAAAA") + b".", "without as many objects"),
    "a type with flags": (FLOATS + b"(I3\nU\x01<U\x01ONNI8\nI8\nI63\ntb.", "make arrays of a type of its own"),
    "a type with fields": (FLOATS + b"(I3\nU\x01|N(U\x01at}NI8\nI1\nI16\ntb.", "make arrays of a type of its own"),
    "a type that is left": (FLOATS + b".", "give away a _ArrayType"),
    "a type of its own": (b"cnumpy\ndtype\n(U\x05V9999tR.", "make arrays of the type"),
    "an array of nothing": (ARRAY + state(b"I9\n", b"cnumpy\ndtype\n(U\x02U0tR", b"U\0") + b".", "of the type 'U0'"),
    "an array without state": (b"]" + ARRAY + b"a.", "give away a _Unfilled"),
    "bytes that are no truth": (
        ARRAY + state(b"I1\n", b"cnumpy\ndtype\n(U\x02b1tR", b"U\x01\x02") + b".", "neither 0 nor 1"),
    "bytes that are no text": (
        SCALAR + b"(cnumpy\ndtype\n(U\x02U1tRU\x04\xff\xff\xff\xfftR.", "no Unicode"),
    "a scalar of an object": (SCALAR + b"(" + OBJECTS + b"U\x08AAAAAAAAtR.", "without as many objects"),
    "a shape beyond numbers": (ARRAY + state(b"I4611686018427387904\n" * 3, FLOATS, b"U\0") + b".", "0 bytes of data"),
    "thousands of dimensions": (ARRAY + state(b"I1\n" * 9999, FLOATS, b"U\x08AAAAAAAA") + b".", "a shape that"),
    "an array in itself": (ARRAY + b"p0\n" + state(b"I1\n", OBJECTS, b"(g0\nl") + b".", "contains itself"),
    "arrays within arrays": (b"".join([ARRAY + b"(I1\n(I1\nt" + OBJECTS + b"I00\n("] * 9999) + b"I1\n" + b"ltb" * 9999
                             + b".", "within each other"),
    "a list in itself": (b"]p0\ng0\na.", "it contains itself"),
    "a dict in itself": (b"}p0\nI1\ng0\ns.", "it contains itself"),
    "lists within lists": (b"(" * 99_999 + b"l" * 99_999 + b".", "within each other"),
    "a deep key": (b"}" + b"(" * 199_999 + b"t" * 199_999 + b"I1\ns.", "a tuple as a key"),
    "a deep set": (b"((" + b"(" * 99_999 + b"t" * 99_999 + b"t\x91.", "a tuple as a key"),
    "a billion lists": (b"]q\0" + b"".join(b"(" + b"h%c" % n * 9 + b"lq%c" % (n + 1) for n in range(40)) + b".",
                        "far more than its bytes"),
    "a text a million times": (b"X\0\0\1\0" + b"a" * 65536 + b"q\0](" + b"h\0" * 20_000 + b"e.", "far more than"),
    "bytes made a million times": (b"X\0\0\1\0" + b"a" * 65536 + b"q\0"
                                   + b"c_codecs\nencode\nq\2](" + b"h\2(h\0U\6latin1tR" * 20_000 + b"e.", "far"),
    "objects a million times": (b"(" + b"N" * 9999 + b"lq\0](" + (ARRAY + state(b"I9999\n", OBJECTS, b"h\0")) * 999
                                + b"e.", "far more than"),
    "a set a million times": (b"(" + b"N" * 9999 + b"lq\0](" + b"c__builtin__\nset\n(h\0tR" * 9999 + b"e.", "far"),
    "bytes that are not there": (b"\x8e" + b"\xff" * 7 + b"\x7f.", "it is cut off"),
    "an array of bytes that are not there": (b"\x96\0\0\0\0\1\0\0\0.", "it is cut off"),
    "a number of megabytes": (b"\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20 + b".", "more than 64 bits"),
    "a number of many digits": (b"L" + b"9" * 9999 + b"L\n.", "more than 64 bits"),
    "a key without a value": (b"}(I1\nu.", "is shorter than"),
    "half a character": (b"X\3\0\0\0\xed\xa0\x80.", "decode"),
    "half a character, escaped": (b"V\\ud800\n.", "decode"),
    "the state of a dict": (b"ccollections\nOrderedDict\n)R}(U\5itemsI1\nub.", "set the state of a dict"),
    "the state of a function": (b"c__builtin__\nset\n}(U\4makeI1\nub.", "set the state of a _Name"),
    "the slots of a function": (b"c_codecs\nencode\nN}(U\4makeI1\nu\x86b.", "set the state of a _Name"),
    "the state of a type, as a dict": (FLOATS + b"}(U\4textU\1Oub.", "set the state"),
    "a new object": (b"cnumpy\nndarray\n)\x81.", "plain data"),
    "an instance": (b"(icollections\nOrderedDict\n.", "plain data"),
    "an old object": (b"(c__builtin__\nset\no.", "plain data"),
    "an extension": (b"\x82\x01.", "plain data"),
    "somebody's object": (b"Pid\n.", "plain data"),
    "a buffer of others": (b"\x97.", "plain data"),
    "a call of what was called": (b"c__builtin__\nset\n)R)R.", "call what is no function"),
    "a call of a name": (b"cnumpy\nndarray\n(I9\ntR.", "call what is no function"),
    "a name by parts": (b"\x8c\x02os\x8c\x06system\x93.", "call os.system"),
    "an attribute of a name": (b"\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "call numpy.ndarray.__init__"),
    "another codec": (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "call the codec 'zlib'"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=r"^labels.pkl is a (damaged pickle|pickle that wants to)") as refused:
        load_restricted(content, "labels.pkl")
    assert words in str(refused.value) and "\n" not in str(refused.value)


SOUND: list[Any] = [
    b"", [b"\xff", "a\nb"], {1: "é😀", None: (True, -(2**63), 1e300)}, collections.OrderedDict(a=1),
    frozenset("a"), np.array(["é😀", ""]), np.array([b"a", b""]), np.array({"a": np.eye(2, dtype="f2")}, "O"),
    np.array([["a", None], [3, [4]]], dtype=object, order="F"), np.zeros((2, 0), ">f4"), np.array([True]),
    np.str_("é"), np.bool_(True), np.int16(-3), np.array(5), np.arange(6, dtype=">u2").reshape(1, 2, 3, order="F"),
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_sound_pickles_are_read(protocol: int) -> None:
    again = load_restricted(pickle.dumps(SOUND, protocol), "data")
    for value, read in zip(SOUND, again, strict=True):
        assert repr(read) == repr(dict(value) if isinstance(value, collections.OrderedDict) else value)
        if isinstance(value, np.ndarray | np.generic):
            assert type(read) is type(value) and (read.dtype, read.shape) == (value.dtype, value.shape)


def test_texts_of_16_bit_pythons() -> None:
    assert load_restricted(b"(V\\ud83d\\ude00\nS'caf\\xe9'\nl.", "data") == ["😀", "café"]


def test_plain_arrays_are_of_numbers_and_texts() -> None:
    np.testing.assert_array_equal(plain_array(np.dtype("<u2"), (2,), b"\1\0\2\0"), [1, 2])
    for kind in ("O", "V8", "M8[s]", "c16", "f8,f8"):
        with pytest.raises(ValueError, match="an array of"):
            plain_array(np.dtype(kind), (1,), bytes(8))


def programs(number: int) -> Iterator[bytes]:
    """Sound pickles with some bytes changed, hostile ones put together, and opcodes at random."""
    rng = random.Random(12)
    sound = [pickle.dumps(value, protocol) for value in [SOUND, *SOUND] for protocol in range(6)]
    pieces = [content.removesuffix(b".") for content, _ in HOSTILE.values() if len(content) < 500] + [ARRAY, OBJECTS]
    pieces += [FLOATS, state(b"I2\n", FLOATS, b"U\x02ab"), SCALAR, b"p0\n", b"q\0", b"h\0", b"g0\n", b"(", b"t", b"l"]
    pieces += [bytes([code]) for code in b"()}]NtldasueRb\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94.012oQ\x81\x92"]
    for turn in range(number):
        if turn % 3 == 0:
            yield b"".join(rng.choices(pieces, k=rng.randrange(1, 12))) + b"."
            continue
        content = bytearray(rng.choice(sound))
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(content))
            if turn % 3 == 1:
                content[place] = rng.randrange(256)
            else:
                content[place:place] = rng.choice(pieces)
        yield bytes(content)


def attack() -> None:
    """In a process of its own, with little memory."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    counts: collections.Counter[str] = collections.Counter()
    for content in [*programs(6000), *(content for content, _ in HOSTILE.values())]:
        try:
            value = load_restricted(content, "x")
        except UserError:
            counts["refused"] += 1
        else:
            pickle.dumps(value)  # touches all of it
            repr(value)
            counts["read"] += 1
    print(*counts.values())


def test_nothing_that_is_tried_ends_the_interpreter() -> None:
    program = "from tests.run.test_restricted_pickle import attack; attack()"
    here = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert min(map(int, done.stdout.split())) > 200, done.stdout

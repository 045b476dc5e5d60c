"""LMDBs of features: MMF's pickled dict for each image, of the same keys as its npy files, and UNITER's arrays by name.

UNITER's (ChenRocks/UNITER, scripts/convert_imgdir.py) are packed by msgpack and msgpack-numpy, or an npz in a database
whose name ends `_compressed`; keys are the names of the npz files.

Its records are read from its pages: the package lmdb dies of a signal where a file is damaged.

A file is of pages of one size, each with a header of 16 bytes. The first two tell where the tree of the records
begins (the newer of them counts); branch pages lead on to leaf pages, whose nodes hold a key and its value, or the
number of the page where a long value begins. (LMDB 0.9, data version 1, little-endian, 64 bits.)
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np

from vinvl.regions.formats.arrays import PLAIN, read_npz
from vinvl.regions.formats.fields import KNOWN, FieldReader
from vinvl.regions.formats.rows import MOST_BYTES, Done, Found, at, images_of_items
from vinvl.run.errors import UserError
from vinvl.run.files import parse_json, reading
from vinvl.run.restricted_pickle import load_restricted, plain_array
from vinvl.run.values import json_members, shown

MAGIC = 0xBEEFC0DE, 1
BRANCH, LEAF, LONG_VALUE, META = 1, 2, 4, 8  # what a page is
BIG, NO_VALUE = 1, 6  # flags of a node: a long value; trees and lists of values, which features do not have
HEADER = struct.Struct("<QHHHH")  # page number, (unused), flags, end of the nodes' places, (unused)
META_PAGE = struct.Struct("<II16x I44x IHH24x QQ QQ")  # magic, version; page size; (tree); records, root, last, number
NODE = struct.Struct("<HHHH")  # size of the value or number of a page, low and high; flags or highest; size of the key
NO_PAGE = 2**64 - 1
MOST_PAGE, LEAST_PAGE = 2**16, 2**9
KEYS = (b"keys", b"__keys__")  # a list of all ids: a pickle of MMF's, JSON of UNITER's
MAPS = {bytes([first]) for first in (*range(0x81, 0x90), 0xDE, 0xDF)}  # how a map of MessagePack begins, and no pickle


class Record(NamedTuple):
    """A key, and the bytes start to stop of the file that hold its value; `page` is the first page of a long one."""

    key: bytes
    start: int
    stop: int
    page: int | None


class Tree(NamedTuple):
    """Where the records are, as one of the first two pages tells."""

    page_size: int
    records: int
    root: int
    number: int


def read_records(file: IO[bytes]) -> list[Record]:
    """All records in the order of their keys. A value may lie behind the end of a file that is cut off.

    Raises UserError if it is no LMDB, or damaged in its structure.
    """
    size = os.fstat(file.fileno()).st_size
    tree = _newest_tree(file)
    records: list[Record] = []
    visited: set[int] = set()
    waiting = [] if tree.root == NO_PAGE else [tree.root]
    while waiting:
        number = waiting.pop()
        if number in visited or (number + 1) * tree.page_size > size:
            raise UserError(f"page {number:,} lies behind its end or comes twice; it is damaged or cut off")
        visited.add(number)
        file.seek(number * tree.page_size)
        page = file.read(tree.page_size)
        flags = _flags_of(page, number)
        if flags == BRANCH:
            waiting += reversed([low | high << 16 | flags << 32 for _, low, high, flags, _ in _nodes(page)])
        elif flags == LEAF:
            records += [_record(page, number, tree.page_size, node) for node in _nodes(page)]
        else:
            raise UserError(f"page {number:,} is no page of records; it is damaged")
    if len(records) != tree.records or any(one.key >= two.key for one, two in pairwise(records)):
        raise UserError(f"it has {len(records):,} records, not {tree.records:,} in the order of their keys")
    places = sorted((record.start, record.stop) for record in records if record.stop <= size)
    if any(stop > start for (_, stop), (start, _) in pairwise(places)):
        raise UserError("two of its records are in one place; it is damaged")
    return records


def read_value(file: IO[bytes], record: Record) -> bytes:
    """The value of a record. Raises UserError if it is long, lies behind the end, or not where a value begins."""
    if record.stop - record.start > MOST_BYTES:
        raise UserError(f"the record has {record.stop - record.start:,} bytes, at most {MOST_BYTES:,} are read.")
    begin = record.start if record.page is None else record.start - HEADER.size
    file.seek(begin)
    content = file.read(record.stop - begin)
    if len(content) != record.stop - begin:
        raise UserError("the record lies behind the end of the file, which is cut off; get it again.")
    if record.page is not None and _flags_of(content, record.page) != LONG_VALUE:
        raise UserError("the record is not where its key sends; the file is damaged.")
    return content[record.start - begin :]


def _newest_tree(file: IO[bytes]) -> Tree:
    first = _tree(file.read(META_PAGE.size + HEADER.size), 0)
    file.seek(first.page_size)
    second = _tree(file.read(META_PAGE.size + HEADER.size), 1)
    newest = max(first, second, key=lambda tree: tree.number)
    # The two are written in turn, so that one is always whole; in a new file both have the number 0.
    in_turn = newest.number % 2 == (newest is second) or newest.root == NO_PAGE
    if first.page_size != second.page_size or abs(first.number - second.number) > 1 or not in_turn:
        raise UserError("its first two pages are not of one file; it is damaged")
    return newest


def _tree(page: bytes, number: int) -> Tree:
    if len(page) < META_PAGE.size + HEADER.size or _flags_of(page, number) != META:
        raise UserError("it does not begin as one")
    magic, version, page_size, _, flags, _, records, root, _, transaction = META_PAGE.unpack_from(page, HEADER.size)
    if (magic, version) != MAGIC or page_size.bit_count() != 1 or not LEAST_PAGE <= page_size <= MOST_PAGE or flags:
        raise UserError("it is of another version or kind")
    return Tree(page_size, records, root, transaction)


def _flags_of(page: bytes, number: int) -> int:
    """What a page is. Raises UserError if it is not the page of that number."""
    own, _, flags, _, _ = HEADER.unpack_from(page)
    if own != number:
        raise UserError(f"page {number:,} says that it is page {own:,}; it is damaged")
    return int(flags)


def _nodes(page: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(place, low, high, flags, size of the key) of each node."""
    end = HEADER.unpack_from(page)[3]
    if not HEADER.size <= end <= len(page) or end % 2:
        raise UserError("a page of records has no list of them; it is damaged")
    for (place,) in struct.iter_unpack("<H", page[HEADER.size : end]):
        if place + NODE.size > len(page):
            raise UserError("a record begins outside of its page; it is damaged")
        yield place, *NODE.unpack_from(page, place)


def _record(page: bytes, number: int, page_size: int, node: tuple[int, int, int, int, int]) -> Record:
    place, low, high, flags, key_size = node
    begin = place + NODE.size + key_size
    size = low | high << 16
    if flags & NO_VALUE or begin + (8 if flags & BIG else size) > page_size:
        raise UserError(f"page {number:,} has a record that does not fit into it; it is damaged")
    value_page = struct.unpack_from("<Q", page, begin)[0] if flags & BIG else None
    start = number * page_size + begin if value_page is None else value_page * page_size + HEADER.size
    return Record(page[place + NODE.size : begin], start, start + size, value_page)


def images_of_lmdb(folder: Path, reader: FieldReader, workers: int, done: Done) -> Iterator[Found]:
    """The images of an LMDB in the order of their keys, which are the ids; what is cut off comes first."""
    path = folder / "data.mdb"
    with reading(path), path.open("rb") as file:
        try:
            records = read_records(file)
        except UserError as error:
            raise UserError(f"{folder} is no LMDB, or a damaged one ({error}); get the folder again.") from None
        size = os.fstat(file.fileno()).st_size
        counts = _counts_in(counts_beside(folder))
        missing = list(_missing(folder, file, records, counts))
    ordered = sorted((one for one in records if one.key not in KEYS), key=lambda record: record.stop <= size)
    read = partial(_read_image, folder=folder, reader=reader, counts=counts)
    yield from images_of_items([*missing, *ordered], read, workers, done)


def counts_beside(folder: Path) -> Path | None:
    """How many regions of each record UNITER reads: `nbb_th0.2_max100_min10.json` beside `feat_th0.2_max100_min10`."""
    kind = folder.name.removeprefix("feat_").removesuffix("_compressed")
    path = folder.parent / f"nbb_{kind}.json"
    return path if kind != folder.name and path.is_file() else None


def _counts_in(path: Path | None) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, count in json_members(path, "names of records with their numbers of regions") if path else ():
        if type(count) is not int:
            raise UserError(f"{path} says {shown(count)} of {shown(name)}, expected a number of regions.")
        if counts.setdefault(name, count) != count:
            raise UserError(f"{path} says {counts[name]} and {count} of {shown(name)}; get it again.")
    return counts


def _missing(folder: Path, file: IO[bytes], records: list[Record], counts: Mapping[str, int]) -> Iterator[Record | str]:
    """What is wrong with the list of all ids: those in it that have no record."""
    present = {record.key for record in records}
    for record in records:
        if record.key not in KEYS:
            continue
        place = f"{folder}, list of all ids {record.key.decode()!r}"
        try:
            content = read_value(file, record)
            listed = parse_json(content, place) if content[:1] == b"[" else load_restricted(content, place)
            if not isinstance(listed, list | tuple):
                raise UserError(f"it is {shown(listed)}, expected a list.")
        except UserError as error:
            yield f"{place}: {error}"
            continue
        for key in listed:
            encoded = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
            if not isinstance(encoded, bytes) or encoded not in present:
                yield f"{place} has {shown(key)}, which has no record; get the folder again."
    for name in counts.keys() - {key.decode("utf-8", "replace") for key in present}:
        yield f"{folder} has no {shown(name)}, which the nbb_*.json beside it names; get both again."


def _read_image(record: Record | str, folder: Path, reader: FieldReader, counts: Mapping[str, int]) -> Found:
    if isinstance(record, str):
        return Found("", UserError(record), 0)
    key = record.key.decode("utf-8", "backslashreplace")
    image_id = key.removesuffix(".npz")  # UNITER's keys are names of files
    place, size = f"{folder}, image {image_id!r}", record.stop - record.start
    try:
        with at(place), reading(folder / "data.mdb"), (folder / "data.mdb").open("rb") as file:
            fields = fields_of(read_value(file, record))
            if key in counts:
                fields["num_kept"] = counts[key]
    except UserError as error:
        return Found(place, error, size)
    return reader.found(place, image_id, fields, size)


def fields_of(value: bytes) -> dict[str, Any]:
    """Named arrays of a value: an npz, a MessagePack map or a pickled dict. Raises UserError for all else."""
    if value.startswith(b"PK"):
        return read_npz(io.BytesIO(value), "the record")
    if value[:1] in MAPS:
        try:
            packed = msgspec.msgpack.decode(value, type=dict[str, Any])
            return {name: _unpacked(one) for name, one in packed.items() if name in KNOWN}
        except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"the record is damaged MessagePack ({reason}); get the folder again.") from None
    content = load_restricted(value, "the record")
    if not isinstance(content, dict):
        raise UserError(f"the record is {type(content).__name__}, expected a dict with features and bbox.")
    return content


def _unpacked(value: Any) -> Any:
    """An array as the package msgpack-numpy packs it, else the value itself."""
    if not isinstance(value, dict) or b"nd" not in value:
        return value
    kind, shape = value[b"type"], value.get(b"shape", ())
    if not isinstance(kind, str) or not PLAIN.fullmatch(kind.encode("ascii", "replace")):
        raise ValueError(f"an array of {shown(kind)}")
    if any(type(length) is not int or length < 0 for length in shape) or not isinstance(value[b"data"], bytes):
        raise ValueError("an array without shape or data")
    return plain_array(np.dtype(kind), tuple(shape), value[b"data"])

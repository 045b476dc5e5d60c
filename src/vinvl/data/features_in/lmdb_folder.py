"""MMF's LMDB of features: a pickled dict for each image, of the same keys as its npy files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vinvl.data.features_in.array_fields import regions_of_fields
from vinvl.data.features_in.base64_arrays import MOST_BYTES
from vinvl.data.features_in.lines import Found
from vinvl.data.features_in.lmdb_pages import Record, read_records, read_value
from vinvl.data.features_in.rows import KnownNames, ReadOptions
from vinvl.data.record_fields import shown
from vinvl.data.restricted_pickle import load_restricted
from vinvl.data.store import Regions
from vinvl.errors import UserError

KEYS = b"keys"  # a list of all ids


def images_of_lmdb(folder: Path, options: ReadOptions, known: KnownNames) -> Iterator[Found]:
    """The images of an LMDB in the order of their keys, which are the ids; what is cut off comes first.

    Raises:
        UserError: it is no LMDB, or so damaged that its records cannot be told.
    """
    path = folder / "data.mdb"
    try:
        with path.open("rb") as file:
            try:
                records = read_records(file)
            except UserError as error:
                raise UserError(f"{folder} is no LMDB, or a damaged one ({error}); get the folder again.") from None
            size = os.fstat(file.fileno()).st_size
            yield from _missing(folder, file, records)
            position = 0
            for record in sorted(records, key=lambda record: record.stop <= size):
                if record.key != KEYS:
                    image_id = record.key.decode("utf-8", "backslashreplace")
                    position += record.stop - record.start
                    yield _image(f"{folder}, image {image_id!r}", image_id, file, record, options, known, position)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def _missing(folder: Path, file: IO[bytes], records: list[Record]) -> Iterator[Found]:
    """The ids in the list of all that have no record."""
    present = {record.key for record in records}
    place = f"{folder}, list of all ids {KEYS.decode()!r}"
    try:
        listed = [load_restricted(_value(file, record), place) for record in records if record.key == KEYS]
        if listed and not isinstance(listed[0], list | tuple):
            raise UserError(f"it is {shown(listed[0])}, expected a list.")
    except UserError as error:
        yield Found(place, UserError(f"{place}: {error}"), 0)
        return
    for key in listed[0] if listed else []:
        encoded = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        if not isinstance(encoded, bytes) or encoded not in present:
            yield Found(place, UserError(f"{place} has {shown(key)}, which has no record; get the folder again."), 0)


def _image(
    place: str,
    image_id: str,
    file: IO[bytes],
    record: Record,
    options: ReadOptions,
    known: KnownNames,
    position: int,
) -> Found:
    found: Regions | UserError
    try:
        content = load_restricted(_value(file, record), "the record")
        if not isinstance(content, dict):
            raise UserError(f"the record is {type(content).__name__}, expected a dict with features and bbox.")
        found = regions_of_fields(image_id, content, options, known)
    except UserError as error:
        found = UserError(f"{place}: {error}")
    return Found(place, found, position)


def _value(file: IO[bytes], record: Record) -> bytes:
    if record.stop - record.start > MOST_BYTES:
        raise UserError(f"the record has {record.stop - record.start:,} bytes, at most {MOST_BYTES:,} are read.")
    return read_value(file, record)

"""MMF's LMDB of features: a pickled dict for each image, of the same keys as its npy files."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from vinvl.data.features_in.array_fields import regions_of_fields
from vinvl.data.features_in.lines import Found
from vinvl.data.features_in.rows import ReadOptions
from vinvl.data.restricted_pickle import load_restricted
from vinvl.errors import UserError

KEYS = b"keys"  # a list of all ids


def images_of_lmdb(folder: Path, options: ReadOptions) -> Iterator[Found]:
    """The images of an LMDB in the order of their keys, which are the ids.

    Raises:
        UserError: the package lmdb is not installed, or the file is damaged or holds anything else.
    """
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError:
        raise UserError(f"{folder} is an LMDB, which needs the package lmdb: pip install lmdb.") from None
    position = 0
    try:
        with (
            lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False) as database,
            database.begin(buffers=False) as transaction,
        ):
            for key, value in transaction.cursor():
                if key == KEYS:
                    continue
                image_id = key.decode("utf-8", "backslashreplace")
                place = f"{folder}, image {image_id!r}"
                content = load_restricted(value, place)
                if not isinstance(content, dict):
                    raise UserError(f"{place} is {type(content).__name__}, expected a dict with features and bbox.")
                try:
                    regions = regions_of_fields(image_id, content, options)
                except UserError as error:
                    raise UserError(f"{place}: {error}") from None
                position += len(value)
                yield Found(place, regions, position)
    except lmdb.Error as error:
        raise UserError(f"{folder} is no LMDB, or a damaged one ({error}); get the folder again.") from None

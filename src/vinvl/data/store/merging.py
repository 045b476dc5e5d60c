"""Several store files → one, by copying rows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from vinvl.data.store.assembly import Selection, StoreAttributes, write_store_file
from vinvl.data.store.reader import RegionStore
from vinvl.data.store.shard import Shard
from vinvl.data.store.spool import RowShapes
from vinvl.data.store.verify import quick_problems, unlike_checksum
from vinvl.errors import UserError
from vinvl.files import put_in_place, work_folder

SHARD_NAME = re.compile(r"(?P<name>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)?")
NAMES_SHOWN = 5


def shard_path(path: Path, index: int, count: int) -> Path:
    """The name of part `index`, from 0, of `count` parts of a store: features.h5 → features-00003-of-00016.h5."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}") if count > 1 else path


class CheckedShard:
    """A file that is read from its first row to its last, and held against its checksums on the way."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._checksums = dict.fromkeys(shard.header.arrays, 0)
        self.offsets, self.sizes, self.image_ids = shard.offsets, shard.sizes, shard.image_ids
        for problem in quick_problems(shard):
            raise UserError(problem)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an array. Raises UserError once all are read, if they are not as they were written."""
        rows = self._shard.rows(name, start, stop)
        self._checksums[name] = crc32(rows.data, self._checksums[name])
        if stop == self._shard.header.num_regions:
            for problem in unlike_checksum(self._shard, name, self._checksums[name]):
                raise UserError(problem)
        return rows


def merge_stores(files: Sequence[str | Path], target: str | Path, *, overwrite: bool = False) -> RegionStore:
    """One store file with the images of all, in the order of the files; returns it opened.

    Args:
        files: store files or folders of shards that are alike, with no image twice.
        target: the file to make.
        overwrite: whether a file of that name is replaced, once the new one is whole.

    Raises:
        UserError: `target` exists, files do not belong together, are damaged or missing, or the disk is full; nothing
            is changed then.
    """
    target = Path(target)
    if not overwrite and os.path.lexists(target):
        raise UserError(f"{target} exists already: give another name, or say --overwrite.")
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file to write.")
    _refuse_gaps([Path(file) for file in files])
    store = RegionStore(list(files))
    attributes = StoreAttributes(
        RowShapes(store.feature_dim, store.feature_dtype, store.num_attributes),
        store.detector,
        store.label_map,
        json.dumps(store.provenance) if store.provenance else None,
    )
    with work_folder(target) as folder:
        made = folder / target.name
        sources = [CheckedShard(source) for source in store.sources]
        write_store_file(made, attributes, sources, Selection.whole(*sources))
        put_in_place(made, target)
    return RegionStore(target)


def _refuse_gaps(files: Sequence[Path]) -> None:
    """Files that call themselves parts of one store must be all of its parts."""
    parts: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := SHARD_NAME.fullmatch(file.name):
            whole = f"{match['name']}{match['suffix'] or ''}", int(match["count"])
            parts.setdefault(whole, set()).add(int(match["index"]))
    for (name, count), found in parts.items():
        missing = sorted(set(range(count)) - found)
        if missing:
            shown = ", ".join(map(str, missing[:NAMES_SHOWN])) + (" …" if len(missing) > NAMES_SHOWN else "")
            raise UserError(
                f"Of the {count} parts of {name}, {len(missing)} are not among the files (shard.index {shown}): "
                "extract them first."
            )

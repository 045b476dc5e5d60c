"""Writing a store: image by image, in constant memory, and either finished or not there at all."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vinvl.data.store.assembly import Selection, StoreAttributes, write_store_file
from vinvl.data.store.checks import RegionChecker, encoded_id
from vinvl.data.store.labels import LabelMap
from vinvl.data.store.layout import FEATURE_DTYPES
from vinvl.data.store.manifest import ShardEntry, write_manifest
from vinvl.data.store.regions import Regions
from vinvl.data.store.spool import RowShapes, Spool, WorkFolder
from vinvl.errors import UserError
from vinvl.files import PARTIAL_SUFFIX, failure_told, put_in_place, reserve_folder

HOW_TO_GO_ON = "check folder and permissions, or make room for the store twice, then write it again"


class RegionStoreWriter:
    """Writes images' regions to one store file, or to a folder of shards.

        with RegionStoreWriter("coco.h5", feature_dim=2048, detector="…", label_map=labels) as writer:
            writer.add(regions)

    Work goes on in a folder `.<name>.<random>.partial` beside `path`. Leaving the block normally moves the finished
    store to `path`; an exception, `abort`, or losing the writer removes the folder, and `path` is as it was. The image
    ids are all that is kept in memory, to refuse duplicates; the disk must have room for a file (or shard) twice.

    path                  the file, replaced if it exists; with `max_images_per_shard` a folder, new or empty
    feature_dim           D
    detector              which detector, with which settings, made the features; free text
    label_map             names of classes and attributes
    num_attributes        K, attributes a region
    feature_dtype         "float16" or "float32"
    max_images_per_shard  None writes one file
    provenance            what else is known of how the features were made, of types that JSON has; as it is when a file
                          is finished

    Raises UserError for bad arguments, for a path that cannot be written, and from `add` for a bad image.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        feature_dim: int,
        detector: str,
        label_map: LabelMap,
        num_attributes: int = 0,
        feature_dtype: str = "float16",
        max_images_per_shard: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        _check_arguments(self.path, feature_dim, num_attributes, feature_dtype)
        if max_images_per_shard is not None and max_images_per_shard < 1:
            raise UserError(f"{path}: max_images_per_shard is {max_images_per_shard}, it must be at least 1.")
        _check_target(self.path, is_folder=max_images_per_shard is not None)
        dtype = np.dtype(feature_dtype).newbyteorder("<")
        self._checker = RegionChecker(feature_dim, dtype, num_attributes, label_map)
        self._attributes = StoreAttributes(RowShapes(feature_dim, dtype, num_attributes), detector, label_map)
        self._provenance = provenance
        self._max_images_per_shard = max_images_per_shard
        self._seen: set[bytes] = set()
        self._shards: list[ShardEntry] = []
        self._failed = False
        with failure_told(self.path, HOW_TO_GO_ON):
            self._work = WorkFolder(*reserve_folder(self.path))
        # Also runs when the writer is dropped without being closed, and when the interpreter exits.
        self._discard = weakref.finalize(self, self._work.remove)
        (self._work.path / "store").mkdir()
        self._spool = Spool(self._work, self._attributes.shapes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add(self, regions: Regions) -> None:
        """Write one image. A refused image (UserError) leaves the writer as it was.

        Refused are: duplicate and malformed ids, a wrong feature dimension, arrays of unlike numbers of rows, values
        that are not finite (in the data type of the store), indices outside of the label map, sizes that are not
        positive.
        """
        self._check_open()
        try:
            key = encoded_id(regions.image_id)
            if key in self._seen:
                raise UserError(f"image {regions.image_id!r} was added before; every image id may be added once.")
            arrays = self._checker.checked_arrays(regions)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        # Whatever interrupts the writing below leaves the side files out of step: nothing may be finished then.
        self._failed = True
        with failure_told(self.path, HOW_TO_GO_ON):
            if self._spool.length.images == self._max_images_per_shard:
                self._finish_shard()
                self._spool = Spool(self._work, self._attributes.shapes)
            self._spool.append(key, arrays)
        self._seen.add(key)
        self._failed = False

    def close(self) -> None:
        """Finish the store and move it to its path. Does nothing if it is finished or aborted already."""
        if not self._discard.alive:
            return
        try:
            if self._failed:
                raise UserError(f"{self.path}: an earlier write failed, so the store cannot be finished.")
            with failure_told(self.path, HOW_TO_GO_ON):
                self._finish_shard()
                self._move_into_place()
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop all that was not finished; `path` is as it was before."""
        self._discard()

    def _check_open(self) -> None:
        if not self._discard.alive or self._failed:
            raise UserError(f"{self.path}: the writer is closed or has failed; start a new one.")

    def _finish_shard(self) -> None:
        name = f"shard-{len(self._shards):05d}.h5"
        rows = self._spool.rows()
        said = None if self._provenance is None else json.dumps(self._provenance)
        attributes = replace(self._attributes, provenance=said)
        made = self._work.path / "store" / name
        checksums = write_store_file(made, attributes, [rows], Selection.whole(rows))
        self._shards.append(ShardEntry.of(name, self._spool.length.images, checksums))
        self._spool.clear()

    def _move_into_place(self) -> None:
        store = self._work.path / "store"
        if self._max_images_per_shard is None:
            put_in_place(store / self._shards[0].file, self.path)
        else:
            write_manifest(store, self._shards)
            put_in_place(store, self.path)


def _check_arguments(path: Path, feature_dim: int, num_attributes: int, feature_dtype: str) -> None:
    if feature_dim < 1:
        raise UserError(f"{path}: feature_dim is {feature_dim}, it must be at least 1.")
    if num_attributes < 0:
        raise UserError(f"{path}: num_attributes is {num_attributes}, it must not be negative.")
    if feature_dtype not in FEATURE_DTYPES:
        raise UserError(f"{path}: feature_dtype is {feature_dtype!r}, choose one of {', '.join(FEATURE_DTYPES)}.")


def _check_target(path: Path, is_folder: bool) -> None:
    if path.name.endswith(PARTIAL_SUFFIX):
        raise UserError(f"{path}: names ending in {PARTIAL_SUFFIX} are for unfinished stores; choose another name.")
    if not is_folder and path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write, or ask for shards.")
    if is_folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; delete it or choose another folder for the shards.")

"""RegionStore: one face over one or many store files."""

from __future__ import annotations

import bisect
import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.regions.layout import (
    MANIFEST_NAME,
    ShardEntry,
    ShardHeader,
    common_provenance,
    read_header,
    read_manifest,
    refuse_unfinished,
)
from vinvl.regions.regions import LabelMap, Regions, StoreAttributes
from vinvl.regions.shard import IdLookup, Shard, quick_problems, verify_shard
from vinvl.run.errors import UserError


class RegionStore:
    """The regions of N images, read by image id (`store["262148"]`) or by index (`store.at(0)`).

    `path` is a store file, a folder of shards with a manifest, or a list of either, which act as one store. Features
    are never loaded whole: an image's rows are read from the file when it is asked for, chunked and compressed ones
    through h5py, one handle a process. A pickled store carries no handle, and may be used in forked and spawned
    DataLoader workers. Files must not change while they are read; one that is cut short is told.

    Raises UserError, naming the file, if a file is missing, foreign, damaged, unfinished or of another layout version,
    if files differ in feature dimension, data type, detector or label map, or if an image id comes twice.
    """

    def __init__(self, path: str | Path | Sequence[str | Path]) -> None:
        paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(entry) for entry in path]
        if not paths:
            raise UserError("A region store needs at least one file; the list of files is empty.")
        headers = [header for entry in paths for header in _read_headers(entry)]
        for header in headers[1:]:
            _check_alike(headers[0], header)
        # One label map for all, so that a pickled store of many shards carries it once.
        headers = [replace(header, attributes=headers[0].attributes) for header in headers]
        self._name = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        self._set_headers(headers)
        if len(headers) > 1:
            _check_unique_ids(self._shards, self._starts, self.encoded_ids)

    def _set_headers(self, headers: Iterable[ShardHeader]) -> None:
        self._shards = [Shard(header) for header in headers]
        # Index of the first image of each shard, and the total at the end.
        self._starts = [0, *accumulate(shard.header.num_images for shard in self._shards)]
        self._length = self._starts[-1]

    def __getstate__(self) -> tuple[str, list[ShardHeader]]:
        return self._name, [shard.header for shard in self._shards]

    def __setstate__(self, state: tuple[str, list[ShardHeader]]) -> None:
        self._name, headers = state
        self._set_headers(headers)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"RegionStore({self._name!r}: {len(self):,} images, features of dimension {self.feature_dim})"

    @property
    def attributes(self) -> StoreAttributes:
        """What all images have in common, with the provenance."""
        return replace(self._shards[0].header.attributes, provenance=self.provenance or None)

    @property
    def feature_dim(self) -> int:
        """D"""
        return self._shards[0].header.attributes.feature_dim

    @property
    def feature_dtype(self) -> np.dtype:
        """float16 or float32"""
        return self._shards[0].header.attributes.feature_dtype

    @property
    def num_attributes(self) -> int:
        """K, attributes a region"""
        return self._shards[0].header.attributes.num_attributes

    @property
    def label_map(self) -> LabelMap:
        return self._shards[0].header.attributes.label_map

    @property
    def detector(self) -> str:
        """Which detector made the features, with its settings."""
        return self._shards[0].header.attributes.detector

    @property
    def provenance(self) -> dict[str, Any]:
        """What else the files say of how their features were made; where they differ, a list of what each says.

        {} if they say nothing. Raises UserError if it is no JSON object.
        """
        return common_provenance(self.headers)

    @property
    def sources(self) -> list[Shard]:
        """The files, in order, for copying rows from."""
        return list(self._shards)

    @property
    def headers(self) -> tuple[ShardHeader, ...]:
        """What each file says about itself, in order."""
        return tuple(shard.header for shard in self._shards)

    @property
    def num_regions(self) -> np.ndarray:
        """(N,) int64, regions of each image"""
        return np.concatenate([np.diff(shard.offsets) for shard in self._shards])

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32, width and height of each image in pixels"""
        return np.concatenate([shard.sizes for shard in self._shards])

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(N,) array of str. Made on first use, at four bytes a character; `at(index).image_id` needs none of it."""
        try:
            return np.char.decode(self.encoded_ids, "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self._name}: image_ids hold bytes that are not UTF-8; write the store again.") from None

    def __contains__(self, image_id: str) -> bool:
        return self._find(image_id) >= 0

    def __getitem__(self, image_id: str) -> Regions:
        """The regions of an image. Raises UserError if the store does not hold it."""
        return self.at(self.index_of(image_id))

    def index_of(self, image_id: str) -> int:
        """The index of an image, 0 <= index < N. Raises UserError if the store does not hold it."""
        index = self._find(image_id)
        if index < 0:
            holds = f"{len(self):,} images, ids like {self.at(0).image_id!r}" if len(self) else "no images"
            raise UserError(f"{self._name} has no image {image_id!r}; it holds {holds}.")
        return index

    def at(self, index: int) -> Regions:
        """The regions of the image at `index`, 0 <= index < N. Raises UserError outside of that."""
        shard, position = self._place(index)
        return shard.regions(position)

    def classes_at(self, index: int) -> np.ndarray:
        """`at(index).classes`, (R,) int32, without all the rest. Raises UserError as `at` does."""
        shard, position = self._place(index)
        return shard.classes(position)

    def features_into(self, index: int, out: np.ndarray) -> None:
        """Fills `out`, (r, D), with the features of the first r regions of an image. Raises UserError as `at` does."""
        shard, position = self._place(index)
        shard.features_into(position, out)

    def _place(self, index: int) -> tuple[Shard, int]:
        position = operator.index(index)
        if not 0 <= position < self._length:
            raise UserError(f"{self._name} has no image at index {position}; it holds {len(self):,} images from 0 on.")
        shard = bisect.bisect_right(self._starts, position) - 1 if len(self._shards) > 1 else 0
        return self._shards[shard], position - self._starts[shard]

    def require_feature_dim(self, dim: int) -> None:
        """Raise UserError if the features are not of dimension `dim`, which a model wants."""
        if self.feature_dim != dim:
            raise UserError(
                f"{self._name} holds features of dimension {self.feature_dim}, the model wants {dim}; "
                f"use features of that dimension or a model made for {self.feature_dim}."
            )

    def require_sound(self, contents: bool = False) -> None:
        """Raise UserError for the first thing that is wrong; whoever is about to use a store calls this.

        Checked are repeated and empty ids, offsets, sizes and indices into the label map, and the checksums of what is
        read for that: some bytes a region. With `contents` all that `verify` looks at.
        """
        ids = () if contents else (f"{self._name}: {problem}" for problem in self._lookup.problems())
        found = chain(ids, *((verify_shard if contents else quick_problems)(shard) for shard in self._shards))
        for problem in found:
            raise UserError(f"{problem} `python -m vinvl.regions verify FILE` says all that is wrong with a store.")

    @property
    def has_checksums(self) -> bool:
        """Whether all files have checksums; those of earlier versions have none."""
        return all(header.checksums is not None for header in self.headers)

    def verify(self) -> list[str]:
        """Read all files through and return what is wrong with them, a sentence each; [] if the store is sound.

        Checked are offsets, ids, finite features, boxes and scores, box bounds, indices into the label map, and where a
        file has them the checksums of all arrays.
        """
        return [problem for shard in self._shards for problem in verify_shard(shard)]

    @property
    def encoded_ids(self) -> np.ndarray:
        """(N,) UTF-8 bytes of fixed width: a quarter of `image_ids`; a view where there is one file, else made."""
        arrays = [shard.image_ids for shard in self._shards]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    @cached_property
    def _lookup(self) -> IdLookup:
        return IdLookup(self.encoded_ids)

    def _find(self, image_id: str) -> int:
        """The index of an image, or -1."""
        if not isinstance(image_id, str):
            raise UserError(f"{self._name}: image ids are text, not {type(image_id).__name__}; pass {str(image_id)!r}.")
        return self._lookup.find(image_id)


def _read_headers(path: Path) -> list[ShardHeader]:
    refuse_unfinished(path)
    if not path.is_dir():
        return [read_header(path)]
    headers, manifest = [], path / MANIFEST_NAME
    for entry in read_manifest(path):
        header = read_header(path / entry.file)
        if header.num_images != entry.images:
            counts = f"holds {header.num_images} images but {manifest} says {entry.images}"
            raise UserError(f"{header.path} {counts}; write the store again.")
        if entry.checksum is not None and ShardEntry.of(entry.file, entry.images, header.checksums) != entry:
            raise UserError(f"{header.path} is not the file that {manifest} was written for; copy it again.")
        headers.append(header)
    return headers


def _check_alike(first: ShardHeader, other: ShardHeader) -> None:
    own, theirs = first.attributes, other.attributes
    facts = (
        ("features of dimension", own.feature_dim, theirs.feature_dim),
        ("features of type", own.feature_dtype, theirs.feature_dtype),
        ("detector", own.detector, theirs.detector),
        ("attributes a region", own.num_attributes, theirs.num_attributes),
    )
    differing = [f"{what} {one} and {two}" for what, one, two in facts if one != two]
    if own != theirs:
        what = differing[0] if differing else "their label maps differ"
        raise UserError(f"{first.path} and {other.path} cannot be one store: {what}.")


def _check_unique_ids(shards: list[Shard], starts: list[int], ids: np.ndarray) -> None:
    """Keeps nothing: of millions of images, ids and order would take some 100 MB of every rank."""
    order = np.argsort(ids)
    sorted_ids = ids[order]
    repeats = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
    if len(repeats):
        first, second = sorted(order[repeats[0] : repeats[0] + 2].tolist())
        files = [shards[bisect.bisect_right(starts, index) - 1].header.path for index in (first, second)]
        image_id = ids[first].decode("utf-8", "replace")
        raise UserError(f"{files[0]} and {files[1]} both hold image {image_id!r}; an image id may come once.")

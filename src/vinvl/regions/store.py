"""RegionStore: one face over one or many store files; and what it says of how its features were made."""

from __future__ import annotations

import bisect
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from vinvl.regions.layout import AS_IT_IS, ShardHeader, View, parsed_json, read_headers
from vinvl.regions.regions import Regions, StoreAttributes, is_number
from vinvl.regions.shard import IdLookup, Shard, problems
from vinvl.run.errors import UserError


class RegionStore:
    """The regions of N images, read by image id (`store["262148"]`) or by index (`store.at(0)`).

    `path` is a store file, a folder of shards with a manifest, or a list of either, which act as one store. Features
    are never loaded whole: an image's rows are read from the file when it is asked for, chunked and compressed ones
    through h5py, one handle a process. A pickled store carries no handle, and may be used in forked and spawned
    DataLoader workers. Files must not change while they are read; one that is cut short is told.

    Attributes:
        feature_dim: D
        feature_dtype: float16 or float32
        num_attributes: K, attributes a region
        label_map: names of classes and attributes
        detector: which one made the features, with its settings

    Raises UserError, naming the file, if a file is missing, foreign, damaged, unfinished or of another layout version,
    if files differ in feature dimension, data type, detector or label map, or if an image id comes twice.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], views: Sequence[View] | None = None) -> None:
        """`views`: of each entry of a list how it is read, see `View`."""
        paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(entry) for entry in path]
        if not paths:
            raise UserError("A region store needs at least one file; the list of files is empty.")
        seen = zip(paths, views or [AS_IT_IS] * len(paths), strict=True)
        headers = [header.seen(view) for entry, view in seen for header in read_headers(entry)]
        for header in headers[1:]:
            _check_alike(headers[0], header)
        # One label map for all, so that a pickled store of many shards carries it once.
        headers = [replace(header, attributes=headers[0].attributes) for header in headers]
        self._name = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        self._set_headers(headers)
        if len(headers) > 1:
            ids = self.encoded_ids  # neither they nor their order are kept: of millions, some 100 MB of every rank
            count, pair = IdLookup(ids).repeats()
            if count:
                files = " and ".join(str(self._place(index)[0].header.path) for index in pair)
                image_id = ids[pair[0]].decode("utf-8", "replace")
                raise UserError(
                    f"{files} both hold image {image_id!r}; an image id may come once: where it is another image, "
                    "convert one of them again with features.id_prefix."
                )

    def _set_headers(self, headers: Iterable[ShardHeader]) -> None:
        self.sources = [Shard(header) for header in headers]
        """The files, in order, for copying rows from."""
        # Index of the first image of each shard, and the total at the end.
        self._starts = [0, *accumulate(shard.header.num_images for shard in self.sources)]
        self._length = self._starts[-1]
        common = self.sources[0].header.attributes
        self.feature_dim, self.feature_dtype = common.feature_dim, common.feature_dtype
        self.num_attributes, self.label_map, self.detector = common.num_attributes, common.label_map, common.detector

    def __getstate__(self) -> tuple[str, tuple[ShardHeader, ...]]:
        return self._name, self.headers

    def __setstate__(self, state: tuple[str, tuple[ShardHeader, ...]]) -> None:
        self._name, headers = state
        self._set_headers(headers)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"RegionStore({self._name!r}: {len(self):,} images, features of dimension {self.feature_dim})"

    @property
    def attributes(self) -> StoreAttributes:
        """What all images have in common, with the provenance."""
        return replace(self.sources[0].header.attributes, provenance=self.provenance or None)

    @property
    def provenance(self) -> dict[str, Any]:
        """What else the files say of how their features were made; where they differ, a list of what each says."""
        said: list[dict[str, Any]] = []
        for header in self.headers:
            if header.provenance is not None:
                said.append(parsed_json(header.provenance))
                if not isinstance(said[-1], dict):
                    again = "copy or write the store again"
                    raise UserError(f"{header.path}: root attribute provenance is no JSON object; {again}.")
        common: dict[str, Any] = {}
        for key in dict.fromkeys(key for one in said for key in one):
            values = [one.get(key) for one in said]
            distinct = [value for number, value in enumerate(values) if value not in values[:number]]
            common[key] = distinct[0] if len(distinct) == 1 else distinct
        return common

    @property
    def headers(self) -> tuple[ShardHeader, ...]:
        """What each file says about itself, in order."""
        return tuple(shard.header for shard in self.sources)

    @property
    def num_regions(self) -> np.ndarray:
        """(N,) int64, regions of each image"""
        return np.concatenate([np.diff(shard.offsets) for shard in self.sources])

    @property
    def encoded_ids(self) -> np.ndarray:
        """(N,) UTF-8 bytes of fixed width: a quarter of `image_ids`; a view where there is one file, else made."""
        arrays = [shard.image_ids for shard in self.sources]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(N,) array of str. Made on first use, at four bytes a character; `at(index).image_id` needs none of it."""
        try:
            return np.char.decode(self.encoded_ids, "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self._name}: image_ids hold bytes that are not UTF-8; write the store again.") from None

    @cached_property
    def _lookup(self) -> IdLookup:
        return IdLookup(self.encoded_ids)

    def _find(self, image_id: str | int) -> int:
        """The index of an image, or -1."""
        if is_number(image_id):
            image_id = str(image_id)
        if not isinstance(image_id, str):
            raise UserError(f"{self._name}: image ids are text or whole numbers, not {type(image_id).__name__}.")
        return self._lookup.find(image_id)

    def __contains__(self, image_id: str | int) -> bool:
        return self._find(image_id) >= 0

    def __getitem__(self, image_id: str | int) -> Regions:
        """The regions of an image. Raises UserError if the store does not hold it."""
        return self.at(self.index_of(image_id))

    def index_of(self, image_id: str | int) -> int:
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
        shard = bisect.bisect_right(self._starts, position) - 1 if len(self.sources) > 1 else 0
        return self.sources[shard], position - self._starts[shard]

    def require_feature_dim(self, dim: int) -> None:
        """Raise UserError if the features are not of dimension `dim`, which a model wants."""
        if self.feature_dim != dim:
            raise UserError(
                f"{self._name} holds features of dimension {self.feature_dim}, the model wants {dim}; "
                f"use features of that dimension or a model made for {self.feature_dim}."
            )

    def require_sound(self, contents: bool = False) -> None:
        """Raise UserError for the first thing that is wrong; whoever is about to use a store calls this.

        Looked at are repeated and empty ids, and some bytes a region (see `problems`), or with `contents` all.
        """
        ids = () if contents else (f"{self._name}: {problem}" for problem in self._lookup.problems())
        for problem in chain(ids, *(problems(shard, values=contents) for shard in self.sources)):
            raise UserError(f"{problem} `python -m vinvl.regions verify FILE` says all that is wrong with a store.")

    def verify(self) -> list[str]:
        """Read all files through and return what is wrong with them, a sentence each; [] if the store is sound."""
        return [problem for shard in self.sources for problem in problems(shard, values=True)]


def _check_alike(first: ShardHeader, other: ShardHeader) -> None:
    own, theirs = vars(first.attributes), vars(other.attributes)
    facts = {"feature_dim": "features of dimension", "feature_dtype": "features of type", "detector": "detector"}
    facts["num_attributes"] = "attributes a region"
    differing = [f"{what} {own[name]} and {theirs[name]}" for name, what in facts.items() if own[name] != theirs[name]]
    if first.attributes != other.attributes:
        what = differing[0] if differing else "their label maps differ"
        if not differing or own["num_attributes"] != theirs["num_attributes"]:
            what += "; converted ones can be with features.labels=FILE, or features.classes=false"
        raise UserError(f"{first.path} and {other.path} cannot be one store: {what}.")


# Are the features that a model is given those that it was trained on? It cannot tell, and answers worse if not: those
# of other settings have the right shape and look fine (docs/features.md). What can be known, its checkpoint carries.

# What may differ without a difference to speak of in the features, or is no setting of the detector's at all. How
# batches were padded is left out because nobody who asks about one picture can do anything about it.
HARMLESS = (
    "weights",
    "image_id",
    "batches",
    "precision",
    "feature_dtype",
    "transparency",
    "given_boxes",
    "predictions",
)
NAMES_SHOWN = 3  # of the settings in which two differ


class OtherFeatures(UserWarning):
    """The features are not those that the model was trained on."""


class FeatureRecord(msgspec.Struct, frozen=True):
    """How the features were made that a model was trained on, as far as their store said; empty where it did not."""

    detector: str = ""
    feature_dtype: Annotated[str, msgspec.Meta(pattern=r"^(float16|float32)?\Z")] = ""
    provenance: dict[str, Any] = {}  # the settings that they were made with, in plain types

    @classmethod
    def of_store(cls, store: RegionStore) -> FeatureRecord:
        try:
            provenance = store.provenance
        except UserError:  # damaged: `vinvl.regions verify` says so, and it is no reason to stop a training
            provenance = {}
        return cls(store.detector, store.feature_dtype.name, provenance)

    @classmethod
    def of_plain(cls, value: object) -> FeatureRecord:
        """From what `plain` has given and a file may have changed: empty if it is not as it should be."""
        try:
            return msgspec.json.decode(json.dumps(value or {}), type=cls)
        except (TypeError, ValueError, RecursionError):
            return cls()

    def plain(self) -> dict[str, Any]:
        """In dicts, lists and single values."""
        return msgspec.structs.asdict(self)

    def unlike(self, store: RegionStore) -> str | None:
        """One sentence where a store has other features than these, as far as is known; else None."""
        own = FeatureRecord.of_store(store)
        if "weights_sha256" in self.provenance and "weights_sha256" in own.provenance:
            return unlike_settings(settings_of(self.provenance), settings_of(own.provenance), f"{store!r} has")
        if not self.detector or self.detector == own.detector:
            return None
        return (
            f"The model was trained on features of {self.detector!r}, and {store!r} has those of {own.detector!r}: "
            "unless these are two names of one thing, answers will be worse: use features of the former."
        )


BESIDE_SETTINGS = ("weights_from", "versions", "made")  # of what a store says of its features


def settings_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in what a store says of its features (`vinvl.extraction.provenance`)."""
    return {name: value for name, value in provenance.items() if name not in BESIDE_SETTINGS}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, for a sentence."""

    def shown(value: object) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "…"

    keys = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    return [f"{key} was {shown(before.get(key))} and is {shown(now.get(key))}" for key in keys]


def unlike_settings(before: Mapping[str, Any], now: Mapping[str, Any], which: str) -> str | None:
    """A sentence on what differs between the settings of the training's features and those that `which` names."""
    then, today = ({name: one[name] for name in one if name not in HARMLESS} for one in (before, now))
    found = differences(then, today)
    if not found:
        return None
    more = f"; and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    return (
        f"{which} other features than those that the model was trained on ({'; '.join(found[:NAMES_SHOWN])}{more}): "
        "they look fine and give worse answers; use the detector and the settings of the training's features."
    )

"""Features of any format that is known → one region store, whole or not at all."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vinvl.regions.formats.rows import OSCAR_DIM, FeatureOptions, Found, Journal, options_of
from vinvl.regions.formats.source import FoundFiles, Source, find_features
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import differences
from vinvl.regions.writer import RegionStoreWriter, Unfinished, shard_files
from vinvl.run.errors import UserError
from vinvl.run.files import reading, refuse_existing, remove_leftovers, work_folder
from vinvl.run.progress import Show, progress

LEADING = 8  # images with regions that are looked at before the shape of the store is settled
SCORE_TOLERANCE = 1e-3
LONGEST_FEATURE = 2**20  # numbers a region


@dataclass(frozen=True)
class Conversion:
    """What was written, how many bytes of features there were, and what could not be used."""

    format: str
    images: int
    regions: int
    read_bytes: int
    before: int  # images that an earlier run had done
    journal: Journal
    left_out_list: Path | None  # the file beside the store that names all that was left out, where it is much


def convert_features(source: str | Path, target: str | Path, options: FeatureOptions) -> Conversion:
    """Writes a store of features of a known format, in memory that does not grow with them but for the image ids.

    Work that was killed goes on after its last finished shard (`Unfinished`), if source and options are what they were.
    Raises UserError, with nothing left of `target`, if it exists or cannot be written, if a file is missing or (unless
    skipped) a row of it wrong, which is named, if nothing can be used, or if work on `target` was begun otherwise.
    """
    target = Path(target)
    unfinished = Unfinished(target)
    begun = unfinished.settings()
    if begun is None and os.path.lexists(target) and shard_files(unfinished.folder):
        unfinished.discard()  # of a run that was killed when all was done
        remove_leftovers(target.parent, re.escape(target.name))
    refuse_existing(target)
    found = find_features(Path(source))
    facts = _facts(found, options)
    if begun is not None and begun != facts:
        raise UserError(
            f"{unfinished.folder} holds work that was begun otherwise ({'; '.join(differences(begun, facts))}): give "
            "the same command, or another to=…, or delete that folder to begin anew."
        )
    unfinished.begin(facts)
    with unfinished.locked(0):
        try:
            return _convert(found, unfinished, options)
        except BaseException:
            if not shard_files(unfinished.folder):
                unfinished.discard()
            raise


def _convert(found: FoundFiles, unfinished: Unfinished, options: FeatureOptions) -> Conversion:
    target, shards = unfinished.target, [shard.header for shard in unfinished.first_shards()]
    labels = None if options.labels is None else LabelMap.from_file(options.labels).with_background()
    with work_folder(target) as scratch:
        journal = Journal(options.on_damaged, scratch, shards)
        source = Source(found, options, labels, scratch, journal)
        found_images, label_map = source.open()
        label_map = label_map if options.classes else LabelMap((), ())
        if shards:
            leading, dim = [], shards[0].attributes.feature_dim
            num_attributes = shards[0].attributes.num_attributes
        else:
            leading = _until_regions(found_images, journal.skips)
            dim, num_attributes = _shape_of(leading, options.dim)
        provenance = journal.provenance if journal.provenance is not None else {}
        provenance["converted_from"] = _mark(found, options)
        writer = RegionStoreWriter(
            target,
            feature_dim=dim,
            detector=options.detector or f"not named; converted from {found.format.value}",
            label_map=label_map,
            num_attributes=num_attributes,
            feature_dtype=options.dtype,
            max_images_per_shard=options.images_per_shard,
            provenance=provenance,
            unfinished=unfinished,
            note=journal.note,
        )
        with writer:
            with progress("MB", source.total_bytes / 1e6, journal.done.position / 1e6) as show:
                images, regions = _write(chain(leading, found_images), writer, dim, num_attributes, journal, show)
            before = sum(shard.num_images for shard in shards)
            if not images + before:
                first = f": {journal.first[0]}" if journal.first else "."
                raise UserError(f"{found.path} holds no image that can be used{first}")
            refuse_existing(target)
        regions += sum(shard.num_regions for shard in shards)
        listed, images = journal.keep_list(target), images + before
        return Conversion(found.format.value, images, regions, source.total_bytes, before, journal, listed)


def _facts(found: FoundFiles, options: FeatureOptions) -> dict[str, Any]:
    """What a store follows from, which must be the same for work on it to go on; of files size and time of change."""
    facts: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(options, enc_hook=str))
    del facts["workers"]
    for name in ("predictions", "sizes", "labels"):
        if (path := getattr(options, name)) is not None:
            facts[name] = _identity([path])
    return {**facts, "format": found.format.value, "from": _identity(found.read_with(options.predictions))}


MARKED = 2**16  # bytes at either end of a file
MOST_MARKED = 64  # files


def mark_of_source(source: Path, settings: Mapping[str, Any]) -> str:
    """What a store says that it was made of: file name, size, and a digest that other features have otherwise.

    It does not change with folder or time, as `_identity` does: stores outlive these. Of many files only sizes count.
    Raises UserError as `find_features` does.
    """
    return _mark(find_features(source), options_of(settings))


def _mark(found: FoundFiles, options: FeatureOptions) -> str:
    return mark_of_files(found.path.name, found.read_with(options.predictions))


def mark_of_files(name: str, paths: Sequence[Path]) -> str:
    """See `mark_of_source`; `name` stands first. Files that do not exist do not count."""
    paths = [path for path in paths if path.is_file()]
    digest, total = sha256(), 0
    for path in paths:
        total += (size := path.stat().st_size)
        digest.update(f"{path.name} {size}\n".encode("utf-8", "surrogateescape"))
        if len(paths) <= MOST_MARKED:
            with reading(path), path.open("rb") as file:
                digest.update(file.read(MARKED))
                file.seek(max(0, size - MARKED))
                digest.update(file.read(MARKED))
    return f"{name}, {total:,} bytes, {digest.hexdigest()[:12]}"


def _identity(paths: Sequence[Path]) -> str:
    """Of one file or of many: how large it is, and a digest of names, sizes and times of change."""
    digest, total = sha256(), 0
    for path in paths:
        status = path.stat() if path.exists() else None
        total += status.st_size if status else 0
        facts = (status.st_size, status.st_mtime_ns) if status else None
        digest.update(f"{path.resolve()} {facts}\n".encode("utf-8", "surrogateescape"))
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}, {total:,} bytes, {digest.hexdigest()[:12]}"


def _until_regions(found: Iterable[Found], skips: bool) -> list[Found]:
    """The first images, until some have regions: base64 of no regions does not tell how long features are."""
    leading, with_regions = [], 0
    for one in found:
        leading.append(one)
        if isinstance(one.regions, Regions):
            with_regions += len(one.regions) > 0
        if with_regions == LEADING or not (skips or isinstance(one.regions, Regions)):
            break
    return leading


def _shape_of(leading: Sequence[Found], given_dim: int | None) -> tuple[int, int]:
    """(D, K) of most of the first images, so that a damaged one among them does not decide for all."""
    usable = [one.regions for one in leading if isinstance(one.regions, Regions)]
    images = [image for image in usable if len(image)] or usable
    dims = Counter(image.features.shape[1] for image in images).most_common(1)
    attributes = Counter(image.attributes.shape[1] for image in images).most_common(1)
    dim = given_dim or (dims[0][0] if dims else 0)
    return dim if 0 < dim <= LONGEST_FEATURE else OSCAR_DIM, attributes[0][0] if attributes else 0


def _write(
    found: Iterable[Found], writer: RegionStoreWriter, dim: int, num_attributes: int, journal: Journal, show: Show
) -> tuple[int, int]:
    """(images, regions) that were added to a store of D = `dim` and K = `num_attributes`."""
    added = regions = 0
    oddities = Oddities()
    for number, (place, image, position, note) in enumerate(found, start=1):
        if not journal.take(number, position) or image is None:
            continue
        if isinstance(image, UserError):
            journal.leave_out(image)
            continue
        try:
            if not len(image):
                features, none = np.zeros((0, dim)), np.zeros((0, num_attributes), dtype=np.int32)
                image = replace(image, features=features, attributes=none, attribute_scores=none)
            elif (own := image.features.shape[1]) != dim:
                raise UserError(
                    f"image {image.image_id!r} has features of dimension {own}, expected {dim} as features.dim or "
                    "others have; a store has one dimension."
                )
            writer.add(image)
        except UserError as error:
            if error.__cause__ is not None:  # the disk, not the image
                raise
            journal.leave_out(UserError(f"{place}: {str(error).removeprefix(f'{writer.path}: ')}"))
            continue
        journal.tell(note)
        added += 1
        regions += len(image)
        oddities.look(image)
        show(position / 1e6, f", {added:,} images")
    journal.notes += oddities.notes()
    return added, regions


ODD = {"none": "no {} where others have", "beyond": "{} that are not between 0 and 1"}


class Oddities:
    """What images have that may be damage, and may not be, for instance to the name of a field in one of them."""

    def __init__(self) -> None:
        self._usual: Counter[str] = Counter()
        self._odd: dict[tuple[str, str], tuple[str, int]] = {}  # the first image and how many
        self._plain = self._padded = ""  # the shortest number without zeros in front, the longest with

    def look(self, image: Regions) -> None:
        """Takes in an image."""
        given = {"classes": image.classes, "class scores": image.class_scores}
        if image.attributes.any():
            given["attribute scores"] = image.attribute_scores
        for what, array in given.items() if len(image) else ():
            beyond = what != "classes" and not -SCORE_TOLERANCE <= array.min() <= array.max() <= 1 + SCORE_TOLERANCE
            if beyond or not array.any():
                kind = "beyond" if beyond else "none", what
                first, count = self._odd.get(kind, (image.image_id, 0))
                self._odd[kind] = first, count + 1
            else:
                self._usual[what] += 1
        if image.image_id.isdecimal() and image.image_id[0] == "0":
            self._padded = max(self._padded, image.image_id, key=len)
        elif image.image_id.isdecimal() and not 0 < len(self._plain) <= len(image.image_id):
            self._plain = image.image_id

    def notes(self) -> list[str]:
        """A sentence for each kind."""
        told = [
            f"{count:,} images have {ODD[kind].format(what)}, such as {first!r}"
            for (kind, what), (first, count) in self._odd.items()
            if kind != "none" or self._usual[what]
        ]
        if 0 < len(self._plain) < len(self._padded):
            both = f"{self._padded!r} and {self._plain!r}"
            told.append(f"ids are numbers with zeros in front and without ({both}): a picture may be there twice")
        return told


def run_conversion(source: Path, target: Path, settings: Mapping[str, Any]) -> str:
    """Converts with the section `features` of conf/convert.yaml; a line with numbers of images and MB/s of input."""
    options = options_of(settings)
    begin = time.perf_counter()
    done = convert_features(source, target, options)
    journal, seconds = done.journal, time.perf_counter() - begin
    megabytes = (done.read_bytes - journal.done.position) / 1e6
    told = [
        f"{target}: {done.images:,} images with {done.regions:,} regions from {source} ({done.format}) "
        f"in {seconds:,.1f} s ({megabytes / seconds:,.1f} MB/s, {(done.images - done.before) / seconds:,.0f} images/s)"
    ]
    if done.before:
        told.append(f"{done.before:,} of them had been done before")
    if journal.count:
        told += [f"{journal.count:,} damaged or repeated left out", *journal.first]
    if done.left_out_list:
        told.append(f"… all of them in {done.left_out_list}")
    return "; ".join([*told, *journal.notes])

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

from vinvl.regions.formats.oscar import with_background
from vinvl.regions.formats.rows import LONGEST_REASON, OSCAR_DIM, Done, FeatureOptions, Found, LeftOut, options_of
from vinvl.regions.formats.source import FoundFiles, Source, files_read, find_features, open_source
from vinvl.regions.layout import ShardHeader
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import differences
from vinvl.regions.writer import RegionStoreWriter, Unfinished, shard_files
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, refuse_existing, remove_leftovers, work_folder
from vinvl.run.progress import Show, progress

LEADING = 8  # images with regions that are looked at before the shape of the store is settled
LONGEST_FEATURE = 2**20  # numbers a region


@dataclass(frozen=True)
class Conversion:
    """What was written, how many bytes of features were read for it, and what could not be used.

    Attributes:
        before: images that an earlier run had done, and the bytes that it had read.
        left_out: number of rows and files that were skipped, why of the first few, and the file beside the store that
            names all, where they are more.
        notes: what else is to be told.
    """

    format: str
    images: int
    regions: int
    read_bytes: int
    before: int
    before_bytes: int
    left_out: int
    left_out_first: tuple[str, ...]
    left_out_list: Path | None
    notes: tuple[str, ...]


def convert_features(source: str | Path, target: str | Path, options: FeatureOptions) -> Conversion:
    """Writes a region store of other people's features, in memory that does not grow with them but for the image ids.

    Work that was killed goes on after its last finished shard (`Unfinished`), if source and options are what they were.

    Args:
        source: a file or folder of a known format (`formats.source.Format`).
        target: the file to make, or with `images_per_shard` the folder.
        options: what the files do not say.

    Raises:
        UserError: `target` exists or cannot be written; a file is missing, or (unless skipped) a row of it wrong: the
            sentence names file and row; nothing in it can be used; or work on `target` was begun otherwise. Nothing is
            left of `target` then.
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
    labels = None
    if options.labels is not None:
        text = read_bytes(options.labels).decode("utf-8", "replace")
        labels = with_background(LabelMap.from_json(text, str(options.labels)))
    with work_folder(target) as scratch:
        left_out = LeftOut(options.on_damaged, scratch)
        taken = _Taken(left_out, shards)
        opened = open_source(Source(found, options, labels, scratch, left_out, taken.done))
        leading = [] if shards else _until_regions(opened.images, left_out.skips)
        dim, num_attributes = _shape_of(leading, options.dim)
        if shards:
            dim, num_attributes = shards[0].attributes.feature_dim, shards[0].attributes.num_attributes
        writer = RegionStoreWriter(
            target,
            feature_dim=dim,
            detector=options.detector or f"not named; converted from {found.format.value}",
            label_map=opened.label_map,
            num_attributes=num_attributes,
            feature_dtype=options.dtype,
            max_images_per_shard=options.images_per_shard,
            provenance=left_out.provenance,
            unfinished=unfinished,
            note=taken.note,
        )
        with writer:
            with progress("MB", opened.total_bytes / 1e6, taken.done.position / 1e6) as show:
                images, regions = _write(chain(leading, opened.images), writer, dim, num_attributes, taken, show)
            before = sum(shard.num_images for shard in shards)
            if not images + before:
                first = f": {left_out.first[0]}" if left_out.first else "."
                raise UserError(f"{found.path} holds no image that can be used{first}")
            refuse_existing(target)
        return Conversion(
            found.format.value,
            images + before,
            regions + sum(shard.num_regions for shard in shards),
            opened.total_bytes,
            before,
            taken.done.position,
            left_out.count,
            tuple(left_out.first),
            left_out.keep_list(target),
            tuple(left_out.notes),
        )


def _facts(found: FoundFiles, options: FeatureOptions) -> dict[str, Any]:
    """What a store follows from, which must be the same for work on it to go on; of files size and time of change."""
    read = {name: _identity(files) for name, files in files_read(found, options.predictions).items()}
    read |= {name: _identity([path]) for name in ("sizes", "labels") if (path := getattr(options, name)) is not None}
    given: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(options, enc_hook=str))
    del given["workers"]
    return {**given, "format": found.format.value, **read}


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


class _Note(msgspec.Struct):
    """What a shard says of the source: how much of it is done, and what was left out since the shard before."""

    images: int
    position: int
    left_out: list[tuple[int, int, str]]  # number of what is `Found`, from 1; position; reason


class _Taken:
    """What has been taken from a source: by an earlier run, and so far by this one.

    Attributes:
        done: by an earlier run, as its shards say.
    """

    def __init__(self, left_out: LeftOut, shards: Sequence[ShardHeader]) -> None:
        self._left_out = left_out
        self._now = _Note(0, 0, [])
        notes = [self._now]
        for shard in shards:
            try:
                notes.append(msgspec.json.decode(shard.provenance or "", type=_Note))
            except msgspec.DecodeError:
                raise UserError(f"{shard.path} is no shard of a conversion: delete {shard.path.parent}.") from None
        before = [one for note in notes for one in note.left_out]
        self._reasons = {number: reason for number, _, reason in before}
        self.done = Done(notes[-1].images, notes[-1].position, frozenset(position for _, position, _ in before))
        self._now.images, self._now.position = self.done.images, self.done.position
        if self.done.images != sum(shard.num_images for shard in shards) + len(before):
            raise UserError(f"{shards[-1].path} says another number of images than the shards hold: delete its folder.")

    def take(self, number: int, position: int) -> bool:
        """Whether the image of this number is to be written; what an earlier run has left out is told again."""
        if number > self.done.images:
            self._now.images, self._now.position = number, position
        elif number in self._reasons:
            self._left_out.add(UserError(self._reasons[number]))
        return number > self.done.images

    def leave_out(self, reason: UserError) -> None:
        """Leaves out what was taken last. Raises the reason unless what is damaged is skipped."""
        self._left_out.add(reason)
        self._now.left_out.append((self._now.images, self._now.position, str(reason)[:LONGEST_REASON]))

    def note(self) -> dict[str, Any]:
        """For the shard that is finished now."""
        told: dict[str, Any] = msgspec.to_builtins(self._now)
        self._now.left_out = []
        return told


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
    found: Iterable[Found], writer: RegionStoreWriter, dim: int, num_attributes: int, taken: _Taken, show: Show
) -> tuple[int, int]:
    """(images, regions) that were added to a store of D = `dim` and K = `num_attributes`."""
    added = regions = 0
    for number, (place, image, position) in enumerate(found, start=1):
        if not taken.take(number, position) or image is None:
            continue
        if isinstance(image, UserError):
            taken.leave_out(image)
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
            taken.leave_out(UserError(f"{place}: {str(error).removeprefix(f'{writer.path}: ')}"))
            continue
        added += 1
        regions += len(image)
        show(position / 1e6, f", {added:,} images")
    return added, regions


def run_conversion(source: Path, target: Path, settings: Mapping[str, Any]) -> str:
    """Converts with the section `features` of conf/convert.yaml; a line with numbers of images and MB/s of input.

    Raises UserError for a setting that is not usable, and as `convert_features` does.
    """
    options = options_of(settings)
    begin = time.perf_counter()
    done = convert_features(source, target, options)
    seconds, megabytes = time.perf_counter() - begin, (done.read_bytes - done.before_bytes) / 1e6
    told = [
        f"{target}: {done.images:,} images with {done.regions:,} regions from {source} ({done.format}) "
        f"in {seconds:,.1f} s ({megabytes / seconds:,.1f} MB/s, {(done.images - done.before) / seconds:,.0f} images/s)"
    ]
    if done.before:
        told.append(f"{done.before:,} of them had been done before")
    if done.left_out:
        told += [f"{done.left_out:,} damaged or repeated left out", *done.left_out_first]
    if done.left_out_list:
        told.append(f"… all of them in {done.left_out_list}")
    return "; ".join([*told, *done.notes])

"""Features of any format that is known → one region store, whole or not at all."""

from __future__ import annotations

import difflib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from vinvl.regions.feature_record import differences
from vinvl.regions.formats.lines import Done, Found
from vinvl.regions.formats.oscar import with_background
from vinvl.regions.formats.rows import LONGEST_REASON, ON_DAMAGED, OSCAR_DIM, REFUSE, LeftOut, ReadOptions
from vinvl.regions.formats.source import FoundFiles, SourceFiles, files_read, find_features, open_source
from vinvl.regions.layout import FEATURE_DTYPES, ShardHeader
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.writer import RegionStoreWriter, Unfinished, shard_files
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, refuse_existing, work_folder
from vinvl.run.progress import Show, progress
from vinvl.run.values import shown

LEADING = 8  # images with regions that are looked at before the shape of the store is settled
LONGEST_FEATURE = 2**20  # numbers a region


@dataclass(frozen=True)
class ConversionOptions:
    """How features are converted.

    Attributes:
        read: what the files do not say about themselves.
        predictions: file of boxes, classes and attributes; None for the `predictions.tsv` beside a `features.tsv`.
        sizes: file of image widths and heights.
        labels: label map of the detector; None takes the names of the predictions in alphabetical order.
        detector: which detector made the features, with its settings, as the store will say.
        images_per_shard: makes a folder of shards; None makes one file.
        workers: processes that decode; None for one a core.
        on_damaged: "refuse" the first damaged or repeated row or file, or "skip" them and name them at the end.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    predictions: Path | None = None
    sizes: Path | None = None
    labels: Path | None = None
    detector: str | None = None
    images_per_shard: int | None = None
    workers: int | None = None
    on_damaged: str = REFUSE

    def __post_init__(self) -> None:
        """Raises UserError for an `on_damaged` that is not known."""
        if self.on_damaged not in ON_DAMAGED:
            raise UserError(f"features.on_damaged is {self.on_damaged!r}; choose one of {', '.join(ON_DAMAGED)}.")


@dataclass(frozen=True)
class Conversion:
    """What was written, how many bytes of features were read for it, and what could not be used.

    Attributes:
        before: images that an earlier run had done, or left out, and the bytes that it had read for them.
        left_out: number of rows and files that were skipped.
        left_out_first: why, of the first few.
        left_out_list: file beside the store that names all, where they are more.
        notes: what else is to be told.
    """

    format: str
    images: int
    regions: int
    read_bytes: int
    before: int = 0
    before_bytes: int = 0
    left_out: int = 0
    left_out_first: tuple[str, ...] = ()
    left_out_list: Path | None = None
    notes: tuple[str, ...] = ()


def convert_features(source: str | Path, target: str | Path, options: ConversionOptions) -> Conversion:
    """Writes a region store of other people's features, in memory that does not grow with them but for the image ids.

    Work that was killed goes on after its last finished shard (`Unfinished`), if source and options are what they were.

    Args:
        source: a TSV of Oscar, VinVL, bottom-up-attention or LXMERT, a `.pt` of tensors, or a folder of any of these,
            of MMF's npy files or of npz files; an LMDB.
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


def _convert(found: FoundFiles, unfinished: Unfinished, options: ConversionOptions) -> Conversion:
    target, shards = unfinished.target, [shard.header for shard in unfinished.first_shards()]
    labels = None
    if options.labels is not None:
        text = read_bytes(options.labels).decode("utf-8", "replace")
        labels = with_background(LabelMap.from_json(text, str(options.labels)))
    workers = options.workers if options.workers is not None else os.cpu_count() or 1
    with work_folder(target) as scratch:
        left_out = LeftOut(options.on_damaged, scratch)
        taken = _Taken(left_out, shards)
        files = SourceFiles(options.predictions, options.sizes, labels)
        opened = open_source(found, files, options.read, scratch, workers, left_out, taken.done)
        usable = taken.usable(opened.images)
        leading = [] if shards else _until_regions(usable)
        shape = _Shape(shards[0].feature_dim, shards[0].num_attributes) if shards else None
        shape = shape or _shape_of(leading, options.read.feature_dim)
        writer = RegionStoreWriter(
            target,
            feature_dim=shape.feature_dim,
            detector=options.detector or f"not named; converted from {found.format.value}",
            label_map=opened.label_map,
            num_attributes=shape.num_attributes,
            feature_dtype=options.read.feature_dtype,
            max_images_per_shard=options.images_per_shard,
            provenance=left_out.provenance,
            unfinished=unfinished,
            note=taken.note,
        )
        with writer:
            with progress("MB", opened.total_bytes / 1e6, taken.done.position / 1e6) as show:
                images, regions = _write(chain(leading, usable), writer, shape, taken, show)
            images += sum(shard.num_images for shard in shards)
            if not images:
                first = f": {left_out.first[0]}" if left_out.first else "."
                raise UserError(f"{found.path} holds no image that can be used{first}")
            refuse_existing(target)
        kept = left_out.keep_list(target)
    return Conversion(
        found.format.value,
        images,
        regions + sum(shard.num_regions for shard in shards),
        opened.total_bytes,
        taken.done.images,
        taken.done.position,
        left_out.count,
        tuple(left_out.first),
        kept,
        tuple(left_out.notes),
    )


def _facts(found: FoundFiles, options: ConversionOptions) -> dict[str, Any]:
    """What a store follows from, which must be the same for work on it to go on; of files size and time of change."""
    read = {name: _identity(files) for name, files in files_read(found, options.predictions).items()}
    read |= {name: _identity([path]) for name in ("sizes", "labels") if (path := getattr(options, name)) is not None}
    given = {**asdict(options.read), "detector": options.detector, "images_per_shard": options.images_per_shard}
    facts = {"format": found.format.value, **read, **given, "on_damaged": options.on_damaged}
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


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


class _Placed(NamedTuple):
    """An image that could be read, where it is from, its number, and how many bytes of input are read by now."""

    place: str
    regions: Regions
    number: int
    position: int


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

    def usable(self, found: Iterable[Found]) -> Iterator[_Placed]:
        """The images that are to be written; of what an earlier run has left out the reasons are told again."""
        for number, (place, regions, position) in enumerate(found, start=1):
            if number <= self.done.images:
                if number in self._reasons:
                    self._left_out.add(UserError(self._reasons[number]))
            elif isinstance(regions, UserError):
                self.leave_out(number, position, regions)
            elif regions is not None:
                yield _Placed(place, regions, number, position)

    def leave_out(self, number: int, position: int, reason: UserError) -> None:
        """Raises the reason unless what is damaged is skipped."""
        self._left_out.add(reason)
        self._now.left_out.append((number, position, str(reason)[:LONGEST_REASON]))

    def take(self, image: _Placed) -> None:
        """The image is written next."""
        self._now.images, self._now.position = image.number, image.position

    def note(self) -> dict[str, Any]:
        """For the shard that is finished now; what lies behind its last image is for the next."""
        images, behind = self._now.images, [one for one in self._now.left_out if one[0] > self._now.images]
        told = [one for one in self._now.left_out if one[0] <= images]
        self._now.left_out = behind
        return {"images": images, "position": self._now.position, "left_out": told}


class _Shape(NamedTuple):
    """What all images of a store have in common."""

    feature_dim: int
    num_attributes: int


def _until_regions(images: Iterator[_Placed]) -> list[_Placed]:
    """The first images, until some have regions: base64 of no regions does not tell how long features are."""
    leading, with_regions = [], 0
    for image in images:
        leading.append(image)
        with_regions += len(image.regions) > 0
        if with_regions == LEADING:
            break
    return leading


def _shape_of(leading: Sequence[_Placed], given_dim: int | None) -> _Shape:
    """The shape of most of the first images, so that a damaged one among them does not decide for all."""
    images = [image.regions for image in leading if len(image.regions)] or [image.regions for image in leading]
    dims = Counter(image.features.shape[1] for image in images).most_common(1)
    attributes = Counter(image.attributes.shape[1] for image in images).most_common(1)
    dim = given_dim or (dims[0][0] if dims else 0)
    return _Shape(dim if 0 < dim <= LONGEST_FEATURE else OSCAR_DIM, attributes[0][0] if attributes else 0)


def _write(
    images: Iterable[_Placed], writer: RegionStoreWriter, shape: _Shape, taken: _Taken, show: Show
) -> tuple[int, int]:
    """(images, regions) that were added."""
    added = regions = 0
    for image in images:
        taken.take(image)
        try:
            writer.add(_shaped(image.regions, shape))
        except UserError as error:
            if error.__cause__ is not None:  # the disk, not the image
                raise
            reason = UserError(f"{image.place}: {str(error).removeprefix(f'{writer.path}: ')}")
            taken.leave_out(image.number, image.position, reason)
            continue
        added += 1
        regions += len(image.regions)
        show(image.position / 1e6, f", {added:,} images")
    return added, regions


def _shaped(image: Regions, shape: _Shape) -> Regions:
    """An image with the shape of the store. Raises UserError if it has regions of another dimension."""
    if not len(image):
        none = np.zeros((0, shape.num_attributes))
        features = np.zeros((0, shape.feature_dim))
        return replace(image, features=features, attributes=none.astype(np.int32), attribute_scores=none)
    if image.features.shape[1] != shape.feature_dim:
        raise UserError(
            f"image {image.image_id!r} has features of dimension {image.features.shape[1]}, expected "
            f"{shape.feature_dim} as features.dim or others have; a store has one dimension."
        )
    return image


# The settings of `python -m vinvl.convert from=…` → a conversion, and the line that tells how it went.


DEFAULTS: dict[str, Any] = dict.fromkeys(
    ("predictions", "sizes", "assume_size", "labels", "detector", "dim", "class_offset", "id_pattern"), None
) | {"dtype": "float16", "clip_boxes": False, "images_per_shard": None, "workers": None, "on_damaged": REFUSE}


def run_conversion(source: Path, target: Path, settings: Mapping[str, Any]) -> str:
    """Converts; returns a line with the number of images, the seconds and the MB/s of input.

    Args:
        source: features in anybody's format.
        target: the store to make.
        settings: the section `features` of conf/convert.yaml.

    Raises:
        UserError: a setting is not usable, or as `convert_features` does.
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


def options_of(settings: Mapping[str, Any]) -> ConversionOptions:
    """Checked options; what is not given is as in conf/convert.yaml.

    Raises:
        UserError: a setting is not known or not usable; the sentence names it.
    """
    for name in settings:
        if name not in DEFAULTS:
            close = difflib.get_close_matches(str(name), DEFAULTS, n=1)
            hint = f"did you mean features.{close[0]}?" if close else f"there are {', '.join(DEFAULTS)}."
            raise UserError(f"There is no setting features.{name}: {hint}")
    given = {**DEFAULTS, **settings}
    if given["dtype"] not in FEATURE_DTYPES:
        raise UserError(f"features.dtype is {shown(given['dtype'])}; choose one of {', '.join(FEATURE_DTYPES)}.")
    if type(given["clip_boxes"]) is not bool:
        raise UserError(f"features.clip_boxes is {shown(given['clip_boxes'])}, expected true or false.")
    read = ReadOptions(
        feature_dim=_whole(given, "dim", 1),
        feature_dtype=given["dtype"],
        class_offset=_whole(given, "class_offset", 0),
        id_pattern=_text(given, "id_pattern"),
        assume_size=_size(given["assume_size"]),
        clip_boxes=given["clip_boxes"],
    )
    return ConversionOptions(
        read=read,
        predictions=_path(given, "predictions"),
        sizes=_path(given, "sizes"),
        labels=_path(given, "labels"),
        detector=_text(given, "detector"),
        images_per_shard=_whole(given, "images_per_shard", 1),
        workers=_whole(given, "workers", 1),
        on_damaged=given["on_damaged"],
    )


def _path(settings: Mapping[str, Any], name: str) -> Path | None:
    value = settings[name]
    if isinstance(value, int) and not isinstance(value, bool):  # a file whose name is a number
        value = str(value)
    if value is not None and not isinstance(value, str | Path):
        raise UserError(f"features.{name} is {shown(value)}, expected a file.")
    return None if value is None else Path(value).expanduser()


def _text(settings: Mapping[str, Any], name: str) -> str | None:
    value = settings[name]
    if value is not None and not isinstance(value, str | int | float):
        raise UserError(f"features.{name} is {shown(value)}, expected a text.")
    return None if value is None else str(value)


def _whole(settings: Mapping[str, Any], name: str, least: int) -> int | None:
    value: int | None = settings[name]
    if value is not None and (type(value) is not int or value < least):
        raise UserError(f"features.{name} is {shown(value)}, expected a whole number from {least}.")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise UserError(f"features.assume_size is {value!r}, expected [WIDTH,HEIGHT].")
    return value[0], value[1]

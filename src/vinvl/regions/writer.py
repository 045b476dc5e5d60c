"""Writing a store: image by image, in constant memory, and either finished or not there at all."""

from __future__ import annotations

import json
import operator
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vinvl.regions.layout import FEATURE_DTYPES, ShardEntry, read_header, refuse_shares, write_manifest
from vinvl.regions.merging import Waiting, write_store_file
from vinvl.regions.regions import NO_NAMES, ROW_ARRAYS, LabelMap, Regions, StoreAttributes, encoded_id, finite
from vinvl.regions.shard import IdLookup, Shard, problems
from vinvl.run.errors import UserError
from vinvl.run.files import (
    PARTIAL_SUFFIX,
    failure_told,
    json_object,
    lock,
    put_in_place,
    reserve_folder,
    write_text_atomically,
)

SHARD_BYTES = 64 * 2**20  # of features and all else, which wait in memory for so long
SHARD_SECONDS = 60.0  # what a kill may cost
_MAX_INT32 = 2**31 - 1

Checked = tuple[bytes, dict[str, np.ndarray]]
"""The id of an image as it is stored, its six row arrays in the data types of the layout, and `sizes` (1, 2)."""


def checked_image(regions: Regions, attributes: StoreAttributes) -> Checked:
    """An image as it is stored. Raises UserError, naming the image, for what the store does not hold.

    Boxes must be finite but may leave the image: detectors do not clip them.
    """
    key = encoded_id(regions.image_id)
    try:
        count = np.shape(regions.features)[0] if np.ndim(regions.features) else 0
        arrays = {}
        for name in ROW_ARRAYS:
            shape, dtype = (count, *attributes.row_shape(name)), attributes.row_dtype(name)
            array = np.asarray(getattr(regions, name))
            if array.shape != shape:
                raise UserError(f"{name} have shape {array.shape}, {shape} was expected.")
            if dtype.kind == "f":
                arrays[name] = finite(array, name, dtype)
            else:
                arrays[name] = _indices(array, name, len(getattr(attributes.label_map, name)))
        for name in ("width", "height"):
            value = getattr(regions, name)
            try:
                fits = 0 < operator.index(value) <= _MAX_INT32
            except TypeError:
                fits = False
            if not fits:
                raise UserError(f"{name} is {value!r}, a positive number of pixels was expected.")
        refuse_shares(arrays["boxes"], regions.width, regions.height)
        return key, arrays | {"sizes": np.array([(regions.width, regions.height)], dtype="<i4")}
    except UserError as error:
        raise UserError(f"image {regions.image_id!r}: {error}") from None


def _indices(array: np.ndarray, name: str, names: int) -> np.ndarray:
    """Indices into a list of `names` names; 0 names means that the list is not known."""
    if array.size:
        if array.dtype.kind not in "iu":
            raise UserError(f"{name} are of type {array.dtype}, whole numbers were expected.")
        low, high = int(array.min()), int(array.max())
        limit = names - 1 if names else _MAX_INT32
        if low < 0 or high > limit:
            raise UserError(f"{name} run from {low} to {high}, the label map allows 0 to {limit}.")
    return np.ascontiguousarray(array, dtype="<i4")


class ShardWriter:
    """Makes shards of the images that one process adds: files PROCESS-NUMBER.h5 in a folder, each whole or not there.

    Those of this process that are there stay, and further numbers follow.

    Args:
        note: what a shard is to say besides, of types that JSON has, asked for when it is finished.
        seconds: a shard is finished at the latest when its first image has waited for so long.
        durable: whether to wait until a shard is on the disk. One that is lost with the power is told by its checksums.
    """

    def __init__(
        self,
        folder: Path,
        process: int,
        attributes: StoreAttributes,
        note: Callable[[], Mapping[str, Any]] = dict,
        seconds: float = SHARD_SECONDS,
        durable: bool = True,
    ) -> None:
        self.attributes = attributes
        self._folder, self._process = folder, process
        self._note, self._seconds, self._durable = note, seconds, durable
        self._number = 1 + max((int(path.stem[6:]) for path in shard_files(folder, process)), default=-1)
        self._images: list[Checked] = []
        self._bytes = 0
        self._begun = time.monotonic()
        # Whoever adds images goes on with the next while a shard is written: HDF5, zlib and the disk let them.
        self._thread = ThreadPoolExecutor(1, "shards")
        self._writing: Future[None] | None = None

    def add(self, image: Checked) -> None:
        """Takes a `checked_image` in. Raises OSError where the disk is full."""
        key, arrays = image
        if not self._images:
            self._begun = time.monotonic()
        self._images.append((key, {name: array.copy() for name, array in arrays.items()}))
        self._bytes += sum(array.nbytes for array in arrays.values())
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._begun >= self._seconds:
            self._begin_shard()

    def waiting(self) -> Waiting:
        """The images that are in no shard yet."""
        return Waiting(self._images)

    def flush(self) -> None:
        """Finishes a shard of the images that wait, and the one that is being written."""
        self._begin_shard()
        self.finish()

    def finish(self) -> None:
        """Waits for the shard that is being written. Raises OSError where the disk is full."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def let_go(self) -> None:
        """Waits for the shard that is being written, whatever became of it."""
        with suppress(OSError, UserError):
            self.finish()

    def _begin_shard(self) -> None:
        if not self._images:
            return
        self.finish()
        attributes = replace(self.attributes, provenance=self._note())
        name = self._folder / f"{self._process:05d}-{self._number:05d}.h5"
        self._writing = self._thread.submit(self._write, self.waiting(), attributes, name)
        self._images, self._bytes, self._number = [], 0, self._number + 1

    def _write(self, images: Waiting, attributes: StoreAttributes, name: Path) -> None:
        made = self._folder / f"{self._process:05d}{PARTIAL_SUFFIX}"
        try:
            write_store_file(made, attributes, [images])
            put_in_place(made, name, durable=self._durable)
        finally:
            made.unlink(missing_ok=True)


def shard_files(folder: Path, process: int | None = None) -> list[Path]:
    """The shards in a folder, of all processes or of one, in the order of their making by each."""
    number = "[0-9]" * 5
    return sorted(folder.glob(f"{number if process is None else f'{process:05d}'}-{number}.h5"))


def _opened(paths: Iterable[Path], of: StoreAttributes | None = None) -> Iterator[tuple[Path, Shard | None]]:
    """Each file, as a shard if it can be opened and has the offsets, sizes and ids that it was written with.

    Raises UserError for a shard of another store than `of`, which somebody has put among those of this one.
    """
    attributes = of
    for path in paths:
        try:
            header = read_header(path)
            if header.attributes != attributes:
                if of is not None:
                    break
                attributes = header.attributes
            shard = Shard(replace(header, attributes=attributes))  # one label map for all: the largest part of them
            sound = header.checksums is not None and not any(problems(shard))
            shard.close()
        except UserError:
            sound = False
        yield path, shard if sound else None
    else:
        return
    raise UserError(f"{path} is of another store: delete it and give the same command again.")


def _write_store(
    work: Path,
    target: Path,
    attributes: StoreAttributes,
    sources: Sequence[Shard | Waiting],
    wanted: np.ndarray,
    most: int | None = None,
) -> None:
    """The store of the `wanted` images, a file or a folder of shards of at most `most`, made in the folder `work`."""
    store = work / "store"
    shutil.rmtree(store, ignore_errors=True)  # of a process that was killed here
    store.mkdir()
    try:
        entries, size = [], most or max(1, len(wanted))
        for number, start in enumerate(range(0, max(1, len(wanted)), size)):
            name, images = f"shard-{number:05d}.h5", wanted[start : start + size]
            checksums = write_store_file(store / name, attributes, sources, images)
            entries.append(ShardEntry.of(name, len(images), checksums))
        if most is None:
            put_in_place(store / entries[0].file, target)
        else:
            write_manifest(store, entries)
            put_in_place(store, target)
    finally:
        shutil.rmtree(store, ignore_errors=True)


class Unfinished:
    """A store that is being made: finished shards in a folder beside it, which outlive the process however it ends.

    features.h5.partial/settings.json     what the features follow from, which must be the same to go on
    features.h5.partial/00000-00003.h5    a shard: number of the process, and its own
    features.h5.partial/00000.lock        held by process 0 while it works
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(target.name + PARTIAL_SUFFIX)
        self._settings = self.folder / "settings.json"

    def settings(self) -> dict[str, Any] | None:
        """What the work was begun with; None if there is none. Raises UserError if nobody can go on with it."""
        lost = f"delete {self.folder}, what it holds is lost."
        if not self._settings.exists():
            return None
        try:
            content = json_object(self._settings)
        except UserError as error:
            raise UserError(f"{error} Else {lost}") from None
        if earlier := sorted(self.folder.glob("part-*")):
            raise UserError(f"{earlier[0]} was written by an earlier version of vinvl: finish it with that, or {lost}")
        return content

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder, or leaves the one that is there but for what is of no use in it."""
        with failure_told(self.target, "check folder, permissions and room"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._settings.exists():
                write_text_atomically(self._settings, json.dumps(settings, indent=1))
            for path, shard in _opened(shard_files(self.folder)):
                if shard is None:
                    path.unlink()

    def discard(self) -> None:
        """Removes the work, what it was begun with first: without that nobody takes it for work."""
        with suppress(OSError):
            self._settings.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self, process: int) -> Iterator[None]:
        """Keeps others from working as the same process. Raises UserError if one does."""
        with failure_told(self.target, "check folder, permissions and room"):
            descriptor = os.open(self.folder / f"{process:05d}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if lock(descriptor) is False:
                other = "wait for it, or stop it first, or give another output"
                raise UserError(f"Another process is working on {self.target}: {other}.")
            yield
        finally:
            os.close(descriptor)

    def shards(self, of: StoreAttributes | None = None) -> list[Shard]:
        """The finished shards without those that are plainly damaged, whose images are to be made again."""
        return [shard for _, shard in _opened(shard_files(self.folder), of) if shard is not None]

    def first_shards(self) -> list[Shard]:
        """The shards of process 0 up to the first that is missing or damaged; they are read through for that."""
        found: list[Shard] = []
        for number, (path, shard) in enumerate(_opened(shard_files(self.folder, process=0))):
            if path.stem != f"00000-{number:05d}" or shard is None or any(problems(shard, written=True)):
                break
            shard.close()
            found.append(shard)
        for path in shard_files(self.folder)[len(found) :]:
            path.unlink()
        return found

    def finish(self, attributes: StoreAttributes, order: Iterable[str], earlier: Sequence[Shard]) -> int:
        """Makes the store in place of whatever is at `target`, and removes the work. Returns the number of images.

        Images come in the order of the ids in `order`, then others; those of the files in `earlier` too, unless this
        work has them. Raises UserError where a shard is damaged or the disk is full; nothing is changed then.
        """
        shards = self.shards(attributes)
        for shard in shards:
            for problem in problems(shard, written=True):
                raise UserError(f"{problem} Delete it and give the same command again, which does its images anew.")
            shard.close()
        sources: list[Shard | Waiting] = [*shards, *earlier, Waiting()]
        ids = np.concatenate([source.image_ids for source in sources])
        lookup = IdLookup(ids)
        found = np.array([lookup.find(image_id) for image_id in order], dtype=np.int64)
        named, firsts = found[found >= 0], np.unique(ids, return_index=True)[1]
        wanted = np.concatenate([named, np.setdiff1d(firsts, named)])
        remedy = f"make room and give the same command again; all {len(wanted):,} images are safe in {self.folder}"
        with failure_told(self.target, remedy):
            _write_store(self.folder, self.target, attributes, sources, wanted)
        self.discard()
        return len(wanted)


HOW_TO_GO_ON = "check folder and permissions, or make room for the store twice, then write it again"


class RegionStoreWriter:
    """Writes images' regions to one store file, or to a folder of shards.

        with RegionStoreWriter("coco.h5", feature_dim=2048) as writer:
            writer.add(Regions("391895", features, boxes, width=640, height=360))

    Work goes on in a folder beside `path`: shards of some megabytes, of which the store is made at the end. Leaving the
    block normally moves the finished store to `path`; an exception, `abort`, or losing the writer removes the folder,
    and `path` is as it was. The image ids and a shard are all that is kept in memory; the disk must have room for the
    store twice.

    path                  the file, replaced if it exists; with `max_images_per_shard` a folder, new or empty
    feature_dim           D
    detector              which detector, with which settings, made the features; free text
    label_map             names of classes and attributes; without them images have no tags
    num_attributes        K, attributes a region
    feature_dtype         "float16" or "float32"
    max_images_per_shard  None writes one file
    provenance            what else is known of how the features were made, of types that JSON has; as it is at the end
    unfinished            work on `path` that is begun, locked and outlives this process unless an error ends it; the
                          images of its `first_shards` are those that were added first
    note                  see `ShardWriter`

    Raises UserError for bad arguments, for a path that cannot be written, and from `add` for a bad image.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        feature_dim: int,
        detector: str = "",
        label_map: LabelMap = NO_NAMES,
        num_attributes: int = 0,
        feature_dtype: str = "float16",
        max_images_per_shard: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        unfinished: Unfinished | None = None,
        note: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.path = Path(path)
        numbers = (feature_dim, 1), (num_attributes, 0), (max_images_per_shard, 1)
        for name, (value, least) in zip(
            ("feature_dim", "num_attributes", "max_images_per_shard"), numbers, strict=True
        ):
            if value is not None and value < least:
                raise UserError(f"{path}: {name} is {value}, it must be at least {least}.")
        if feature_dtype not in FEATURE_DTYPES:
            raise UserError(f"{path}: feature_dtype is {feature_dtype!r}, choose one of {', '.join(FEATURE_DTYPES)}.")
        _check_target(self.path, is_folder=max_images_per_shard is not None)
        dtype = np.dtype(feature_dtype).newbyteorder("<")
        attributes = StoreAttributes(feature_dim, dtype, num_attributes, detector, label_map)
        self._provenance, self._most = provenance, max_images_per_shard
        self._failed = self._closed = False
        self._goes_on = unfinished is not None
        if unfinished is None:
            with failure_told(self.path, HOW_TO_GO_ON):
                self._folder, descriptor = reserve_folder(self.path)
        else:
            self._folder = unfinished.folder
        self._shards = ShardWriter(self._folder, 0, attributes, note, durable=False)
        self._remove: Callable[[], object]
        if unfinished is None:
            # Also runs when the writer is dropped without being closed, and when the interpreter exits.
            given = self._folder, descriptor, os.getpid(), self._shards
            self._remove = weakref.finalize(self, _remove, *given)
        else:
            self._remove = unfinished.discard
        self._seen = {key for rows in self._finished() for key in rows.image_ids.tolist()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._leave(error)

    def add(self, regions: Regions) -> None:
        """Write one image. A refused image (UserError) leaves the writer as it was.

        Refused are: duplicate and malformed ids, a wrong feature dimension, arrays of unlike numbers of rows, values
        that are not finite (in the store's data type), indices outside of the label map, sizes that are not positive.
        """
        if self._closed or self._failed:
            raise UserError(f"{self.path}: the writer is closed or has failed; start a new one.")
        try:
            image = checked_image(regions, self._shards.attributes)
            if image[0] in self._seen:
                raise UserError(f"image {regions.image_id!r} was added before; every image id may be added once.")
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        # Whatever interrupts the writing below leaves images in doubt: nothing may be finished then.
        self._failed = True
        with failure_told(self.path, HOW_TO_GO_ON):
            self._shards.add(image)
        self._seen.add(image[0])
        self._failed = False

    def close(self) -> None:
        """Finish the store and move it to its path. Does nothing if it is finished or aborted already."""
        if self._closed:
            return
        try:
            if self._failed:
                raise UserError(f"{self.path}: an earlier write failed, so the store cannot be finished.")
            with failure_told(self.path, HOW_TO_GO_ON):
                self._shards.finish()
                # What waits goes into the store straight from memory.
                sources: list[Shard | Waiting] = [*self._finished(), self._shards.waiting()]
                total = sum(len(source.sizes) for source in sources)
                attributes = replace(self._shards.attributes, provenance=self._provenance)
                _write_store(self._folder, self.path, attributes, sources, np.arange(total), self._most)
        except BaseException as error:
            self._leave(error)
            raise
        self.abort()

    def abort(self) -> None:
        """Drop all that was not finished; `path` is as it was before."""
        self._closed = True
        self._shards.let_go()
        self._remove()

    def _leave(self, error: BaseException | None) -> None:
        """Drops the work, but for work that goes on and that a person or the system has stopped."""
        self._closed = True
        self._shards.let_go()
        if isinstance(error, Exception) or not self._goes_on:
            self._remove()

    def _finished(self) -> list[Shard]:
        shards = []
        for path, shard in _opened(shard_files(self._folder), self._shards.attributes):
            if shard is None:
                raise UserError(f"{path} was damaged while it was in work: write the store again.")
            shards.append(shard)
        return shards


def _remove(folder: Path, descriptor: int, owner: int, shards: ShardWriter) -> None:
    """Removes a folder, in the process that made it, and lets go of its lock."""
    if os.getpid() == owner:
        shards.let_go()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _check_target(path: Path, is_folder: bool) -> None:
    if path.name.endswith(PARTIAL_SUFFIX):
        raise UserError(f"{path}: names ending in {PARTIAL_SUFFIX} are for unfinished stores; choose another name.")
    if not is_folder and path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write, or ask for shards.")
    if is_folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; delete it or choose another folder for the shards.")

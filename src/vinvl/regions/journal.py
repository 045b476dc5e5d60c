"""Images on their way into a store over hours and days: what is committed outlives the process, however it ends.

    features.h5.partial/settings.json     what the features depend on, and whatever else must be the same to go on
    features.h5.partial/part-00000/       side files of one process, and commits.bin: their length at each commit
    features.h5.partial/part-00001/       …

A commit waits until the rows are on the disk, and only then adds its line to commits.bin. So the newest line is always
true, and what was written after it is cut off when the work goes on. It holds checksums of the side files as well,
which must agree before a store is made of them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.regions.checks import RegionChecker, encoded_id
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.shard import IdLookup
from vinvl.regions.spool import SIDE_FILES, RowShapes, Spool, SpoolLength, SpoolRows, WorkFolder
from vinvl.regions.writer import RowSource, Selection, StoreAttributes, write_store_file
from vinvl.run.errors import UserError
from vinvl.run.files import PARTIAL_SUFFIX, atomic_write, lock, put_in_place, reason_of

_SETTINGS, _COMMITS, _LOCK = "settings.json", "commits.bin", "lock"
_EARLIER_COMMITS = "commits.raw"  # without checksums
_COMMIT_DTYPE = np.dtype("<i8")
_RECORD_NUMBERS = 3 + len(SIDE_FILES)  # the fields of SpoolLength
_RECORD_BYTES = _RECORD_NUMBERS * _COMMIT_DTYPE.itemsize


def journal_folder(target: Path) -> Path:
    """Where the work on a store lies until it is finished."""
    return target.with_name(target.name + PARTIAL_SUFFIX)


def read_journal_settings(target: Path) -> dict[str, Any] | None:
    """The settings that unfinished work on a store was begun with; None if there is no such work.

    Raises:
        UserError: they cannot be read.
    """
    path = journal_folder(target) / _SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete {path.parent}, what it holds is lost.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object: delete {path.parent}, what it holds is lost.")
    return content


def begin_journal(target: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder for the work on a store, or leaves the one that is there.

    Raises:
        UserError: it cannot be written.
    """
    folder = journal_folder(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _SETTINGS).exists():
            with atomic_write(folder / _SETTINGS) as file:
                json.dump(settings, file, indent=1)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from None


def discard_journal(target: Path) -> None:
    """Removes unfinished work on a store."""
    shutil.rmtree(journal_folder(target), ignore_errors=True)


class JournalPart:
    """The part of a journal that one process adds to.

    Args:
        target: the store; `begin_journal` was called for it.
        number: of the process.
        shapes, label_map: of the store.
        commit_seconds: how long work is gathered before it is committed: what a kill may cost, against waiting for the
            disk.

    Raises:
        UserError: another process works on it, or it cannot be written.
    """

    def __init__(
        self, target: Path, number: int, shapes: RowShapes, label_map: LabelMap, commit_seconds: float = 5.0
    ) -> None:
        self._target = target
        self._commit_seconds = commit_seconds
        self._checker = RegionChecker(shapes.feature_dim, shapes.feature_dtype, shapes.num_attributes, label_map)
        folder = _part_folder(target, number)
        try:
            folder.mkdir(exist_ok=True)
            self._lock = _locked(folder / _LOCK, target)
            commits = _true_commits(folder, shapes)
            length = commits[-1]
            self._spool = Spool(WorkFolder(folder), shapes, length)
            self._commits = io.FileIO(folder / _COMMITS, "a+")
            self._commits.truncate((len(commits) - 1) * _RECORD_BYTES)
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}.") from None
        self._committed = length
        self._committed_at = time.monotonic()

    def add(self, images: Sequence[Regions]) -> None:
        """Write images; those of one call are committed together.

        Raises:
            UserError: an image is not what the store holds (none is written then), or the disk is full.
        """
        checked = [(encoded_id(image.image_id), self._checker.checked_arrays(image)) for image in images]
        try:
            for key, arrays in checked:
                self._spool.append(key, arrays)
            if time.monotonic() - self._committed_at >= self._commit_seconds:
                self.commit()
        except OSError as error:
            raise self._failure(error) from error

    def commit(self) -> None:
        """Wait until what was added is on the disk, so that it outlives the process and the machine.

        Raises:
            UserError: it cannot be written.
        """
        length = self._spool.length
        if length != self._committed:
            try:
                self._spool.sync()
                numbers = (length.images, length.regions, length.id_bytes, *length.checksums)
                self._commits.write(np.array(numbers, dtype=_COMMIT_DTYPE).tobytes())
                os.fsync(self._commits.fileno())
            except OSError as error:
                raise self._failure(error) from error
            self._committed = length
        self._committed_at = time.monotonic()

    def close(self) -> None:
        """Let go of the files; what was not committed is lost."""
        self._spool.folder.close_files()
        self._commits.close()
        os.close(self._lock)

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"{journal_folder(self._target)} could not be written ({reason_of(error)}): make room and give the same "
            f"command again; {self._committed.images:,} images of this process are safe in it."
        )


def read_journal(target: Path, shapes: RowShapes) -> list[SpoolRows]:
    """What is committed in the parts of a journal, for reading; processes may go on adding to them."""
    folders = sorted(journal_folder(target).glob("part-*"))
    lengths = {folder: _true_commits(folder, shapes)[-1] for folder in folders if folder.is_dir()}
    return [SpoolRows(folder, shapes, length) for folder, length in lengths.items() if length.images]


def committed_images(target: Path, besides: int) -> int:
    """How many images the parts of a journal hold, all but one part's."""
    folders = set(journal_folder(target).glob("part-*")) - {_part_folder(target, besides)}
    return sum(_commits(folder)[-1].images for folder in folders)


def finish_journal(
    target: Path, attributes: StoreAttributes, order: Iterable[str], earlier: Sequence[RowSource]
) -> int:
    """Makes the store of a journal, and of the files of an earlier store, in place of whatever is at `target`.

    Images come in the order of the ids in `order`, then those that it does not name. The journal is removed.

    Args:
        earlier: files whose images go into the store as well; a journal's image counts before theirs.

    Returns:
        the number of images.

    Raises:
        UserError: the journal is damaged, or the disk is full; journal and target are as they were then.
    """
    parts = read_journal(target, attributes.shapes)
    for part in parts:
        part.require_sound()
    sources: list[RowSource] = [*parts, *earlier]
    made = journal_folder(target) / "store.h5"
    wanted = _in_order(sources, order)
    try:
        write_store_file(made, attributes, sources, wanted)
        put_in_place(made, target)
    except OSError as error:
        with suppress(OSError):
            made.unlink()
        raise UserError(
            f"{target} could not be written ({reason_of(error)}): make room and give the same command again; "
            f"all {len(wanted):,} images are safe in {made.parent}."
        ) from error
    discard_journal(target)
    return len(wanted)


def _in_order(sources: Sequence[RowSource], order: Iterable[str]) -> Selection:
    """Each image once, as `finish_journal` orders them."""
    everything = Selection.whole(*sources)
    if len(everything) == 0:
        return everything
    ids = np.concatenate([source.image_ids for source in sources])
    lookup = IdLookup(ids)
    found = np.array([lookup.find(image_id) for image_id in order], dtype=np.int64)
    named = found[found >= 0]
    _, firsts = np.unique(ids, return_index=True)
    rest = np.setdiff1d(firsts, named)
    chosen = np.concatenate([named, rest])
    return Selection(everything.sources[chosen], everything.images[chosen])


def _part_folder(target: Path, number: int) -> Path:
    return journal_folder(target) / f"part-{number:05d}"


def _true_commits(folder: Path, shapes: RowShapes) -> list[SpoolLength]:
    """The lengths at each commit, nothing first, up to the newest whose rows are there: a disk may have lost some."""
    commits = _commits(folder)
    while not all(0 <= size <= _size(folder / f"{name}.raw") for name, size in commits[-1].file_bytes(shapes).items()):
        if len(commits) == 1:
            break
        commits.pop()
    return commits


def _commits(folder: Path) -> list[SpoolLength]:
    """The lengths at each commit, nothing first."""
    if (folder / _EARLIER_COMMITS).exists():
        raise UserError(
            f"{folder} was written by an earlier version of vinvl: finish it with that one, or delete {folder.parent}."
        )
    try:
        content = (folder / _COMMITS).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        content = b""
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): delete {folder} and give the same command again, "
            "which does its images anew."
        ) from None
    whole = len(content) // _RECORD_BYTES * _RECORD_BYTES
    records = np.frombuffer(content[:whole], dtype=_COMMIT_DTYPE).reshape(-1, _RECORD_NUMBERS).tolist()
    written = (SpoolLength(images, regions, size, tuple(sums)) for images, regions, size, *sums in records)
    return [SpoolLength(), *written]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _locked(path: Path, target: Path) -> int:
    """A descriptor that holds the lock until it is closed or the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if lock(descriptor) is False:
        os.close(descriptor)
        raise UserError(
            f"Another process is working on {target}: wait for it, or stop it first, or give another output."
        )
    return descriptor

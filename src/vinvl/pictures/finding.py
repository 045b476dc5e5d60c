"""Which pictures there are in a folder, a list or a container, and the image id of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from vinvl.data.table import Column
from vinvl.pictures.containers import HEAD, SUFFIXES, Entry, container_of, is_picture, name_of, opened
from vinvl.regions.formats.rows import check_pattern, id_by_pattern
from vinvl.regions.regions import encoded_id
from vinvl.run.errors import UserError
from vinvl.run.values import check_fields, shown

READERS = 8  # threads that look into files: it is waiting for the disk, not work
BLOCK = 1 << 12  # files that are looked at together


@dataclass(frozen=True)
class PictureNames:
    """How the image id follows from a picture's place. Raises UserError for another rule, or a pattern that is none.

    Args:
        rule: "stem": the file's name without its suffix; "path": its path below the folder (or the list file's folder)
            without its suffix, with "/" between folders; "file": that path with its suffix. Keys of a TSV or an LMDB
            are taken as they are.
        pattern: a regular expression whose first group, found in what `rule` gives, is the id: `0*(\\d+)$` makes
            COCO_val2014_000000262148 262148. None takes it as it is.
        prefix: in front of all ids.
    """

    rule: Literal["stem", "path", "file"] = "stem"
    pattern: str | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "id.")
        if self.pattern is not None:
            check_pattern(self.pattern, "id.pattern")

    def image_id(self, entry: Entry) -> str:
        """The id of a picture. Raises UserError if the pattern does not fit."""
        if entry.kind == "id":
            return entry.name
        name = entry.name
        if entry.kind == "path" and self.rule != "file":
            name = PurePosixPath(name).stem if self.rule == "stem" else os.path.splitext(name)[0]
        return self.prefix + id_by_pattern(name, self.pattern, "id.pattern")


@dataclass(frozen=True)
class Unusable:
    """A picture that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Pictures:
    """N pictures, in the order in which they were found, in arrays that worker processes share.

    ids, paths: N texts; of a picture in a container its place there (`vinvl.pictures.containers`). unusable: those that
    have no id, or cannot be read. passed_over: how many files of each kind are no pictures.
    """

    ids: Column
    paths: Column
    unusable: tuple[Unusable, ...] = ()
    passed_over: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, keep: np.ndarray) -> Pictures:
        """Those where `keep` (N,) bool is True."""
        kept = np.flatnonzero(keep)
        return replace(self, ids=self.ids.take(kept), paths=self.paths.take(kept))

    def part(self, index: int, count: int) -> Pictures:
        """Part `index`, from 0, of `count` parts of like size: pictures that follow each other."""
        start, stop = len(self) * index // count, len(self) * (index + 1) // count
        ids, paths = (Column.of(column[start:stop]) for column in (self.ids, self.paths))  # whose part alone is sent
        return Pictures(ids, paths, *((self.unusable, self.passed_over) if index == 0 else ()))


def find_pictures(source: str | Path, names: PictureNames) -> Pictures:
    """The pictures of a source (`look_for`), with their ids.

    Raises UserError if nothing is there, or two pictures have one id.
    """
    entries, passed_over = look_for(source)
    ids, paths, unusable = [], [], []
    for entry in entries:
        told, problem = name_of(entry.place), entry.problem
        try:
            told.encode("utf-8")
            image_id = names.image_id(entry)
            encoded_id(image_id)
        except UnicodeEncodeError:
            told, problem = ascii(told), problem or "its path is not valid Unicode text: rename it"
        except UserError as error:
            problem = problem or str(error)
        if problem:
            unusable.append(Unusable(told if told.isprintable() else ascii(told), problem))
        else:
            ids.append(image_id)
            paths.append(entry.place)
    _refuse_twins(ids, paths, names)
    return Pictures(Column.of(ids), Column.of(paths), tuple(unusable), passed_over)


def look_for(source: str | Path) -> tuple[list[Entry], Counter[str]]:
    """The pictures of a source, and how many files of each kind in it are none.

    Files with a picture's suffix are taken unseen, others if they begin as a picture does; hidden ones are passed over.

    Raises UserError if there is no picture.

    Args:
        source: a folder, with all folders in it; a picture; a TSV of keys and pictures in base64, or a yaml of VinVL's
            that names one and the rows of its linelist; a zip or tar archive; an LMDB; or a text file with a path a
            line, from the list's folder unless it is absolute, and behind a tab, where no rule shall say it, the id.
    """
    source, passed_over = Path(source).expanduser(), Counter[str]()
    alone = Entry(str(source), source.name)
    if not source.is_dir() and not source.is_file():
        raise UserError(
            f"{source} does not exist: give a folder, a picture, a list, or a TSV, zip, tar or LMDB of pictures."
        )
    if source.is_file() and (_suffix(alone) in SUFFIXES or _begins_as_picture(alone)):
        return [alone], passed_over
    if (inside := container_of(source)) is not None:
        entries = list(_pictures_among(inside, passed_over))
    elif source.is_dir():
        entries = list(_pictures_among(_walk(source), passed_over))
    else:
        entries = list(_listed(source))
    if not entries:
        told = f" ({told_of(passed_over)})" if passed_over else ""
        remedy = " A TSV, zip, tar or LMDB of pictures is given by its own name." if source.is_dir() else ""
        raise UserError(f"{source} holds no pictures{told}.{remedy}")
    return entries, passed_over


def told_of(passed_over: Counter[str]) -> str:
    """12 files passed over: 10 .txt, 2 .json."""
    ordered = sorted(passed_over.items(), key=lambda one: (-one[1], one[0]))
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in ordered)
    return f"{passed_over.total():,} files passed over: {kinds}"


def _pictures_among(entries: Iterable[Entry], passed_over: Counter[str]) -> Iterator[Entry]:
    """Those of files or members that are pictures; what stands under a key is taken for one."""
    entries = iter(entries)
    with ThreadPoolExecutor(READERS) as readers:
        while block := list(islice(entries, BLOCK)):
            unseen = [one for one in block if one.kind == "path" and (_hidden(one) or _suffix(one) not in SUFFIXES)]
            shares = (unseen[start::READERS] for start in range(READERS))
            known = {one: begins for share in readers.map(_looked_into, shares) for one, begins in share}
            for one in block:
                if known.get(one, True):
                    yield one
                else:
                    passed_over["hidden" if _hidden(one) else _suffix(one) or "without a suffix"] += 1


def _suffix(entry: Entry) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _hidden(entry: Entry) -> bool:
    return any(one == "__MACOSX" or (one.startswith(".") and one.strip(".")) for one in entry.name.split("/"))


def _looked_into(entries: Sequence[Entry]) -> list[tuple[Entry, bool]]:
    return [(one, _begins_as_picture(one)) for one in entries]


def _begins_as_picture(entry: Entry) -> bool:
    """Whether a file or member of any name is a picture; one that cannot be read is taken for it, and fails later."""
    inside = "\0" in entry.place
    if _hidden(entry) or entry.problem or not (inside or os.path.isfile(entry.place)):
        return False
    try:
        with opened(entry.place, HEAD) as file:
            return is_picture(file.read(HEAD), _suffix(entry))
    except (OSError, UserError):
        return not inside


def _walk(folder: Path) -> Iterator[Entry]:
    """Files in the order of their paths. Links to folders are followed, once each."""
    seen: set[tuple[int, int]] = set()
    start = len(os.path.join(folder, ""))
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(place)
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [] if known else sorted(name for name in folders if not name.startswith("."))
        for name in [] if known else sorted(files):
            path = os.path.join(place, name)
            yield Entry(path, path[start:])


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.")


def _listed(path: Path) -> Iterator[Entry]:
    """Each line of a list file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                name, tab, image_id = line.rstrip("\r\n").partition("\t")
                if "\0" in name:
                    raise UserError(f"{path} line {number} is not a path: give a text file with one path a line.")
                if name.strip():
                    place = path.parent / name.strip()
                    below = place.relative_to(path.parent) if place.is_relative_to(path.parent) else place
                    given = (image_id.strip(), "id") if tab else (below.as_posix(), "path")
                    yield Entry(str(place), *given)
    except UnicodeDecodeError:
        raise UserError(f"{path} is neither a picture nor a list of paths in UTF-8 text.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _refuse_twins(ids: Sequence[str], paths: Sequence[str], names: PictureNames) -> None:
    first = {ids[index]: index for index in reversed(range(len(ids)))}
    twin = next((index for index, image_id in enumerate(ids) if first[image_id] != index), None)
    if twin is None:
        return
    one, other = name_of(paths[first[ids[twin]]]), name_of(paths[twin])
    rules = ("stem", "path", "file")
    rule = "file" if os.path.splitext(one)[0] == os.path.splitext(other)[0] else "path"
    finer = names.pattern is None and rules.index(rule) > rules.index(names.rule)
    way = f"id.rule={rule}" if finer else "another id.pattern" if names.pattern else "one line a file"
    raise UserError(
        f"{one} and {other} both have the image id {shown(ids[twin])} ({len(ids) - len(first):,} pictures in all share "
        f"theirs with another): tell them apart with {way}, or with ids of your own in a list file (PATH<tab>ID)."
    )

"""Which pictures there are, and the image id of each."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vinvl.data.columns import TextColumn
from vinvl.data.image_ids import check_pattern, id_by_pattern
from vinvl.data.record_fields import shown
from vinvl.data.store.checks import encoded_id
from vinvl.errors import UserError

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
STEM, PATH, FILE = "stem", "path", "file"
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # of pictures


@dataclass(frozen=True)
class PictureNames:
    """How the image id follows from a picture's place.

    Args:
        rule: "stem": the file's name without its suffix; "path": its path below the folder (or the list file's folder)
            without its suffix, with "/" between folders; "file": that path with its suffix.
        pattern: a regular expression whose first group, found in what `rule` gives, is the id: `0*(\\d+)$` makes
            COCO_val2014_000000262148 262148. None takes it as it is.

    Raises:
        UserError: another rule, or a pattern that is none or has no group.
    """

    rule: str = STEM
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.rule not in (STEM, PATH, FILE):
            raise UserError(f"id.rule={self.rule!r} is unknown: give {STEM}, {PATH} or {FILE}.")
        if self.pattern is not None:
            check_pattern(self.pattern, "id.pattern")

    def image_id(self, path: Path, folder: Path) -> str:
        """The id of a file.

        Raises:
            UserError: the pattern does not fit, or the id is none that a store can hold.
        """
        place = path.relative_to(folder) if path.is_relative_to(folder) else path
        name = path.stem if self.rule == STEM else place.as_posix() if self.rule == FILE else os.path.splitext(place)[0]
        name = id_by_pattern(name, self.pattern, "id.pattern")
        encoded_id(name)
        return name


@dataclass(frozen=True)
class Unusable:
    """A picture that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Pictures:
    """N picture files, in the order in which they were found, in arrays that worker processes share.

    ids, paths: N texts. unusable: files whose place gives no id.
    """

    ids: TextColumn
    paths: TextColumn
    unusable: tuple[Unusable, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, index: int, count: int) -> Pictures:
        """Part `index`, from 0, of `count` parts of like size: pictures that follow each other."""
        start, stop = len(self) * index // count, len(self) * (index + 1) // count
        wanted = range(start, stop)
        return Pictures(
            TextColumn.from_texts(self.ids[i] for i in wanted),
            TextColumn.from_texts(self.paths[i] for i in wanted),
            self.unusable if index == 0 else (),
        )


def find_pictures(source: str | Path, names: PictureNames) -> Pictures:
    """The pictures of a folder and all folders in it, of a list file, or one picture.

    Args:
        source: a folder; a picture; or a text file with a path a line, from the list's folder unless it is absolute,
            and behind a tab, where `names` shall not say it, the id. Hidden files and folders are passed over.
        names: how ids follow from places.

    Raises:
        UserError: nothing is there, or two files have one id.
    """
    source = Path(source).expanduser()
    found: list[tuple[Path, str | None]]
    if source.is_dir():
        found = [(path, None) for path in _walk(source)]
        folder = source
    elif not source.is_file():
        raise UserError(f"images={source} does not exist: give a folder, a list file or a picture.")
    elif source.suffix.lower() in SUFFIXES:
        found, folder = [(source, None)], source.parent
    elif _holds_pictures(source):
        reason = (
            f"{source} holds pictures in base64: a TSV of pictures is not read; write each into a file of its own, and "
            "give their folder"
        )
        return Pictures(TextColumn.from_texts([]), TextColumn.from_texts([]), (Unusable(str(source), reason),))
    else:
        found, folder = list(_listed(source)), source.parent
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"images={source} holds no pictures: looked for are files ending in {kinds}.")
    return _named(found, folder, names)


def _walk(folder: Path) -> Iterator[Path]:
    """Picture files in the order of their paths. Links to folders are followed, once each."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(place)
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [] if known else sorted(name for name in folders if not name.startswith("."))
        if known:
            continue
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield Path(place) / name


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.")


def _holds_pictures(path: Path) -> bool:
    """Whether the first line of a file ends in a picture in base64, behind a tab."""
    try:
        with path.open("rb") as file:
            _, tab, last = file.readline(2**20).rpartition(b"\t")
    except OSError:
        return False  # the reader that follows says why
    try:
        head = base64.b64decode(last[:16], validate=True)
    except ValueError:
        return False
    of_bmp = head.startswith(b"BM") and head[6:10] == bytes(4)
    return bool(tab) and len(last) > 32 and (of_bmp or head.startswith(BEGINNINGS))


def _listed(path: Path) -> Iterator[tuple[Path, str | None]]:
    """(file, id or None) of each line of a list file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                name, tab, image_id = line.rstrip("\r\n").partition("\t")
                if "\0" in name:
                    raise UserError(f"{path} line {number} is no path: give a text file with one path a line.")
                if name.strip():
                    yield path.parent / name.strip(), image_id.strip() if tab else None
    except UnicodeDecodeError:
        raise UserError(f"{path} is neither a picture nor a list of paths in UTF-8 text.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _named(found: Sequence[tuple[Path, str | None]], folder: Path, names: PictureNames) -> Pictures:
    ids, paths, unusable = [], [], []
    for path, given in found:
        try:
            if given is not None:
                encoded_id(given)
            ids.append(names.image_id(path, folder) if given is None else given)
            str(path).encode("utf-8")
            paths.append(str(path))
        except UnicodeEncodeError:
            ids.pop()
            unusable.append(Unusable(ascii(str(path)), "its path is no valid Unicode text: rename it"))
        except UserError as error:
            unusable.append(Unusable(ascii(str(path)) if not str(path).isprintable() else str(path), str(error)))
    _refuse_twins(ids, paths, names)
    return Pictures(TextColumn.from_texts(ids), TextColumn.from_texts(paths), tuple(unusable))


def _refuse_twins(ids: Sequence[str], paths: Sequence[str], names: PictureNames) -> None:
    distinct, firsts = np.unique(np.array(ids, dtype=object), return_index=True)
    if len(distinct) == len(ids):
        return
    first = {image_id: int(index) for image_id, index in zip(distinct, firsts, strict=True)}
    twin = next(index for index, image_id in enumerate(ids) if first[image_id] != index)
    one, other = Path(paths[first[ids[twin]]]), Path(paths[twin])
    rule = FILE if os.path.splitext(one)[0] == os.path.splitext(other)[0] else PATH
    rules = (STEM, PATH, FILE)
    finer = names.pattern is None and rules.index(rule) > rules.index(names.rule)
    way = f"id.rule={rule}" if finer else "another id.pattern" if names.pattern else "one line a file"
    raise UserError(
        f"{one} and {other} both have the image id {shown(ids[twin])} ({len(ids) - len(distinct):,} files in all share "
        f"theirs with another): tell them apart with {way}, or with ids of your own in a list file (PATH<tab>ID)."
    )

"""A detection set of the published scene-graph code: a yaml that names TSV files → annotated pictures."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import yaml
from msgspec import Meta, Struct
from msgspec.json import Decoder

from vinvl.detector.annotations import AnnotatedPicture
from vinvl.detector.box_checks import BoxChecks
from vinvl.detector.instances import Pixels, Side
from vinvl.pictures import ReadingOptions, look_for, picture_size
from vinvl.regions.formats.rows import MOST_BYTES
from vinvl.regions.formats.tsv import line_parts, listed_starts
from vinvl.regions.regions import LabelMap, first_indices
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, reading
from vinvl.run.progress import progress
from vinvl.run.values import FilledText, decoded, shown

LONGEST_KEY = 1 << 12  # bytes
FAR = np.array([0, 0, 1, 1])  # what is added to boxes that count their last pixel in
PLAIN_SIZE = re.compile(rb"\s*(\d{1,9})\s+(\d{1,9})\s*")


class TsvSettings(Struct):
    """What is read of the yaml; its other keys are nothing that training needs."""

    img: FilledText
    label: FilledText
    hw: FilledText | None = None
    linelist: FilledText | None = None
    labelmap: FilledText | None = None
    jsondict: FilledText | None = None  # what older files call it
    composite: bool = False  # it is made of several sets


class TsvObject(Struct, gc=False):
    rect: tuple[Side, Side, Side, Side]
    name: str = msgspec.field(name="class")
    attributes: list[str] = []


class TsvLabel(Struct, gc=False):
    objects: list[TsvObject]


class Size(Struct, gc=False):
    height: Pixels
    width: Pixels


LABEL = Decoder(TsvLabel | list[TsvObject])  # the guide to small TSV files shows the bare list
SIZE = Decoder(Annotated[list[Size], Meta(min_length=1, max_length=1)] | Size)


class TsvSet(NamedTuple):
    """What a yaml stands for.

    pictures: those that its linelist names, each once, in the order in which they first come.
    rows: (E,) int32, which of them each line of the linelist is; None where that is no other list.
    container: where the pictures are, under the keys that are their file names.
    """

    labels: LabelMap
    pictures: Iterator[AnnotatedPicture]
    rows: np.ndarray | None
    container: Path


def read_tsv_set(path: Path, reading_options: ReadingOptions, labels: LabelMap | None = None) -> TsvSet:
    """A set as the published RelationTSV, VGTSV and ODTSV data sets read it.

    The yaml names `img` (key and picture in base64), `label` (key and JSON with `objects` of `rect`, `class` and
    `attributes`), and perhaps `hw` (key and size), `linelist` (a row number from 0 a line) and `labelmap`. Names are
    relative to its folder, or as they are. A `.lineidx` beside a TSV saves reading it once. `rect` counts its last
    pixel in; it is clipped to [0, width − 1] and [0, height − 1] and kept even where nothing is left of it, which is a
    box of one pixel here, from which nothing is learnt. What an object lists twice in `attributes` stays there twice.

    Args:
        reading_options: how pictures are read whose size no `hw` tells.
        labels: what classes and attributes stand for; None: as the `labelmap` (older: `jsondict`) says.

    Raises:
        UserError: names file, row (from 0) and key: a row beyond the file, rows of other keys, a class or an attribute
            that the label map does not have; of what is found on the way, as the pictures are read.
    """
    settings = _settings(path)
    files = {kind: _beside(path, name) for kind, name in settings.items() if kind != "labelmap"}
    if labels is None:
        if "labelmap" not in settings:
            raise UserError(f"{path} names no labelmap: add it, or pass the label map.")
        labels = LabelMap.from_file(_beside(path, settings["labelmap"]))
    tables: dict[str, _Table] = {kind: _Table(files[kind]) for kind in ("label", "img", "hw") if kind in files}
    if "linelist" in files:
        shortest = min(tables.values(), key=len)
        listed = read_linelist(files["linelist"], len(shortest), str(shortest.path))
    else:
        listed = _all_rows(tables)
    unique, places = np.unique(listed, return_index=True)
    order = np.argsort(places)
    selected = unique[order]
    rank = np.empty(len(unique), dtype=np.int32)
    rank[order] = np.arange(len(unique), dtype=np.int32)
    rows = None if len(selected) == len(listed) else rank[np.searchsorted(unique, listed)]
    return TsvSet(labels, _pictures(tables, selected, labels, reading_options), rows, files["img"])


def _pictures(
    tables: Mapping[str, _Table], rows: np.ndarray, labels: LabelMap, reading_options: ReadingOptions
) -> Iterator[AnnotatedPicture]:
    table, sizes = tables["label"], tables.get("hw")
    places = {} if sizes else {one.name: one.place for one in look_for(tables["img"].path)[0]}
    checks = BoxChecks(str(table.path), "keep")
    classes, attributes = first_indices(labels.classes), first_indices(labels.attributes)
    seen: dict[bytes, int] = {}
    with progress("pictures", len(rows)) as show:
        for number, row in enumerate(rows.tolist(), start=1):
            columns = table.columns(row)
            key = columns[0].decode("utf-8", "backslashreplace").strip()
            place = f"{table.path} row {row} ({shown(key)})"
            for other in tables.values():
                if (theirs := other.key(row)) != columns[0]:
                    told = shown(theirs.decode("utf-8", "replace"))
                    raise UserError(f"{place}: that row of {other.path} is of {told}: the files are of different sets.")
            if (first := seen.setdefault(columns[0], row)) != row:
                raise UserError(f"{place} has the key of row {first}: give every picture one of its own.")
            width, height = _size(sizes, row) if sizes else picture_size(places.get(key, key), reading_options)
            objects = _objects(columns, place)
            rects = np.array([one.rect for one in objects], dtype=np.float64).reshape(-1, 4)
            if (rects[:, :2] > rects[:, 2:] + 1).any():
                raise UserError(f"{place} has a rect that ends before it begins: x1, y1, x2, y2 are expected.")
            boxes, _ = checks.within(rects + FAR, (width, height), place)
            numbers = [_index(classes, "class", one.name, place) for one in objects]
            named = [[_index(attributes, "attribute", name, place) for name in one.attributes] for one in objects]
            of_objects = np.array(numbers, dtype=np.int32), np.zeros(len(objects), dtype=bool), named
            yield AnnotatedPicture(key, key, width, height, boxes.astype(np.float32), *of_objects)
            show(number)
    checks.finish()


def _index(indices: Mapping[str, int], kind: str, name: str, place: str) -> int:
    """Raises UserError for a name that is not there, or stands for the background or none."""
    if not (index := indices.get(name, 0)):
        raise UserError(f"{place} has the {kind} {shown(name)}, which the label map does not have: give its own one.")
    return index


def _objects(columns: list[bytes], place: str) -> list[TsvObject]:
    if len(columns) < 2:
        raise UserError(f"{place} has no column of labels: get the file again.")
    found = decoded(columns[1], LABEL, place)
    return found if isinstance(found, list) else found.objects


def _size(table: _Table, row: int) -> tuple[int, int]:
    """(width, height) of a row that says [{"height": h, "width": w}], the object alone, or h w."""
    text, place = b" ".join(table.columns(row)[1:]), f"{table.path} row {row}"
    if plain := PLAIN_SIZE.fullmatch(text):
        height, width = map(int, plain.groups())
        if not (height and width):
            raise UserError(f"{place} says {height} × {width} pixels: get the file again.")
        return width, height
    found = decoded(text, SIZE, place)
    size = found[0] if isinstance(found, list) else found
    return size.width, size.height


def is_tsv_set(path: Path) -> bool:
    """Whether a file is a yaml with TSV files of pictures and labels, told by its keys."""
    try:
        content = yaml.safe_load(read_bytes(path)) if path.suffix in (".yaml", ".yml") else None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(content, dict) and {"img", "label"} <= content.keys()


def _settings(path: Path) -> dict[str, str]:
    """File names by what they are."""
    try:
        found = msgspec.convert(yaml.safe_load(read_bytes(path)), TsvSettings)
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        what = " ".join(str(error).split())[:200].replace("`", "")
        raise UserError(f"{path} is no yaml of a TSV set ({what}): it must name img and label.") from None
    if found.composite:
        raise UserError(f"{path} is composed of several sets: give the yaml of each.")
    names = {"img": found.img, "label": found.label, "hw": found.hw, "linelist": found.linelist}
    return {kind: name for kind, name in (*names.items(), ("labelmap", found.labelmap or found.jsondict)) if name}


def _beside(path: Path, name: str) -> Path:
    """A file as it is named, or else from the folder of the yaml."""
    given, below = Path(name), path.parent / name
    if given.is_file() and below.is_file() and not given.samefile(below):
        raise UserError(f"{path}: {name} is both here and in {path.parent}: name the file with its whole path.")
    found = given if given.is_file() else below
    if not found.is_file():
        raise UserError(f"{path} names {shown(name)}, and there is no {below}: check the path.")
    return found


def _all_rows(tables: dict[str, _Table]) -> np.ndarray:
    if len({len(table) for table in tables.values()}) > 1:
        counts = " and ".join(f"{table.path} has {len(table):,} rows" for table in tables.values())
        raise UserError(f"{counts}: they are of different sets, or one is cut off.")
    return np.arange(len(tables["label"]))


def read_linelist(path: Path, total: int, source: str) -> np.ndarray:
    """(E,) int64 row numbers, from 0, of `source`, which has `total` rows. Raises UserError, naming file and line."""
    rows = array("q")
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if not (text.isdigit() and len(text) < 19):
                raise UserError(f"{path} line {number} is {shown(text.decode('utf-8', 'replace'))}, and no row number.")
            if int(text) >= total:
                raise UserError(
                    f"{path} line {number} asks for row {int(text):,} (from 0), and {source} has {total:,}: "
                    "the linelist is of another file."
                )
            rows.append(int(text))
    if not rows:
        raise UserError(f"{path} lists no rows: get the file again.")
    return np.array(rows)


class _Table:
    """The rows of a TSV, found by their number from 0."""

    def __init__(self, path: Path) -> None:
        self.path, self._index = path, path.with_suffix(".lineidx")
        listed = listed_starts(self._index) if self._index.is_file() else None
        self._starts = _found_starts(path) if listed is None else np.append(listed, path.stat().st_size)
        if len(self._starts) < 2 or self._starts[0] or (np.diff(self._starts) < 1).any():
            self._refuse_index("it has no rows")
        with reading(path), path.open("rb") as file:
            file.seek(self._starts[-2])
            if len(file.readline(MOST_BYTES)) != self._starts[-1] - self._starts[-2]:
                self._refuse_index(f"its last row is not number {len(self) - 1}")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def columns(self, row: int) -> list[bytes]:
        """A row, as it is between tabs."""
        start, stop = self._starts[row : row + 2].tolist()
        return self._read(row, start, stop).rstrip(b"\r\n").split(b"\t")

    def key(self, row: int) -> bytes:
        """The first column alone, of a row of any length."""
        start, stop = self._starts[row : row + 2].tolist()
        return self._read(row, start, min(stop, start + LONGEST_KEY)).partition(b"\t")[0].rstrip(b"\r\n")

    def _read(self, row: int, start: int, stop: int) -> bytes:
        """The bytes start to stop; refused where the row does not begin, or end, where the index says."""
        with reading(self.path), self.path.open("rb") as file:
            file.seek(max(start - 1, 0))
            content = file.read(stop - max(start - 1, 0))
        before, content = (content[:1], content[1:]) if start else (b"\n", content)
        if before != b"\n" or b"\n" in content[:-1] or len(content) != stop - start:
            self._refuse_index(f"row {row} is not where it says")
        return content

    def _refuse_index(self, what: str) -> None:
        if self._index.is_file():
            raise UserError(f"{self._index} is not of {self.path} ({what}): delete it, it is not needed.")
        raise UserError(f"{self.path} is no TSV of a detection set ({what}): get the file again.")


def _found_starts(path: Path) -> np.ndarray:
    """(N + 1,) int64, where each row begins and the last one ends, by reading; blank lines at the end are no rows."""
    starts, rows = array("q", [0]), 0
    for part in line_parts(path):
        for _, columns, _, stop in part.rows():
            starts.append(stop)
            rows = len(starts) - 1 if columns else rows
    return np.array(starts[: rows + 1], dtype=np.int64)

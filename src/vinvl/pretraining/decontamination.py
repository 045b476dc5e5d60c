"""Corpora without the images of test sets: found by id, by file name, by address, and by how they look."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np

from vinvl.pretraining.held_out import EVERYBODYS, NUMBERS, HeldOut, Hit, has_picture, keys_of, keys_of_address
from vinvl.run.errors import UserError
from vinvl.run.files import json_lines, new_folder
from vinvl.run.values import Id, decoded

LEFT_OUT = "left_out.csv"
COLUMNS = ("corpus", "line", "image_id", "set", "found_by", "image_of_the_set")


class NamedRow(msgspec.Struct, gc=False):
    """What of a corpus row names its image."""

    image_id: Id
    source: str | None = None
    file_name: str | None = None
    url: str | None = None

    def keys(self) -> list[str]:
        keys = keys_of(str(self.image_id), NUMBERS.get(self.source or ""))
        if self.file_name:
            keys += keys_of(self.file_name, NUMBERS.get(self.source or ""))
        return keys + keys_of_address(self.url) if self.url else keys


_ROW = msgspec.json.Decoder(NamedRow)


class Counts(NamedTuple):
    """What was found: rows of each corpus, those left out of it, and those of each set by how they were found."""

    rows: Counter[str]
    left_out: Counter[str]
    found: Counter[tuple[str, str]]
    with_picture: int
    of_visual_genome: int  # rows whose image has a number of Visual Genome's


def corpora_of(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Corpus files by the name that they get in an output folder: a file's own, or its path in the folder given.

    Raises UserError where there are none, or two would have one name.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} is a folder without .jsonl files; give corpora.")
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            if name in found:
                raise UserError(f"{found[name]} and {file} would both become {name}; give the folder they are in.")
            found[name] = file
    return found


def decontaminate(
    corpora: dict[str, Path], held: HeldOut, output: str | Path | None, pictures: np.ndarray | None = None
) -> Counts:
    """Writes corpora without the rows whose image is held out, and a list of these rows; one row is held at a time.

    Args:
        corpora: as `corpora_of` has them; they stay as they are.
        output: folder to make, with LEFT_OUT beside the corpora; None only counts.
        pictures: what `take_alike` returns; None if pictures are not compared.

    Raises:
        UserError: a line is no corpus row, nothing is left of a corpus, or no row's image is among the pictures.
            Nothing is left of the output then.
    """
    counts = Counts(Counter(), Counter(), Counter(), 0, 0)
    with ExitStack() as stack:
        folder = None if output is None else stack.enter_context(new_folder(output))
        report = None if folder is None else _report(folder, stack)
        for name, path in corpora.items():
            kept = None if folder is None else _opened(folder / name, stack)
            counts = _scan(path, held, kept, report, pictures, counts)
            if kept is not None and counts.left_out[str(path)] == counts.rows[str(path)]:
                raise UserError(f"Every row of {path} is of a held-out image; give the corpora without it.")
        if pictures is not None and not counts.with_picture:
            raise UserError(
                "No row's image is among the pictures: pass --pictures PREFIX=FOLDER, with what is in front of their "
                "names in image ids."
            )
    return counts


def _opened(path: Path, stack: ExitStack) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(path.open("wb"))


def _report(folder: Path, stack: ExitStack) -> Any:
    file = stack.enter_context((folder / LEFT_OUT).open("w", encoding="utf-8", newline=""))
    report = csv.writer(file)
    report.writerow(COLUMNS)
    return report


def _lines(path: Path) -> Iterator[tuple[int, tuple[bytes, NamedRow]]]:
    return json_lines(path, lambda line, place: (line, decoded(line, _ROW, place)))


def _scan(
    path: Path, held: HeldOut, kept: IO[bytes] | None, report: Any, pictures: np.ndarray | None, counts: Counts
) -> Counts:
    with_picture, of_visual_genome = counts.with_picture, counts.of_visual_genome
    last, hits, seen, genome = None, dict[str, Hit](), False, False
    for number, (line, row) in _lines(path):
        named = (row.image_id, row.source, row.file_name, row.url)
        if named != last:  # rows of one image often stand together
            last, keys = named, row.keys()
            hits, genome = held.find(keys), {"vg"} == {key.partition(":")[0] for key in keys} & set(EVERYBODYS)
            seen = pictures is not None and has_picture(keys, pictures)
        counts.rows[str(path)] += 1
        with_picture += seen
        of_visual_genome += genome
        if hits:
            counts.left_out[str(path)] += 1
            for hit in hits.values():
                counts.found[hit.held_out, hit.found_by] += 1
                if report is not None:
                    report.writerow((path, number, row.image_id, hit.held_out, hit.found_by, hit.image))
        elif kept is not None:
            kept.write(line + b"\n")
    return counts._replace(with_picture=with_picture, of_visual_genome=of_visual_genome)

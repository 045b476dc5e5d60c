"""CSV files of Open Images as they are downloaded: names of classes, and columns some megabytes at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from vinvl.run.errors import UserError
from vinvl.run.files import reading
from vinvl.run.values import shown

BLOCK_BYTES = 1 << 23


def class_descriptions(path: Path, *, alike: bool = False) -> dict[str, str]:
    """The names of classes by their MIDs, in the order of the file, whose first line may say what its columns are.

    `alike`: several classes may have one name. Raises UserError, naming file and line.
    """
    classes: dict[str, str] = {}
    names = set[str]()
    for number, row in csv_lines(path):
        if number == 1 and row == ["LabelName", "DisplayName"]:
            continue
        if len(row) != 2 or not all(one.strip() for one in row):
            raise UserError(f"{path} line {number} is {shown(','.join(row))}: expected /m/…,name.")
        if row[0] in classes or (row[1] in names and not alike):
            raise UserError(f"{path} line {number}: {shown(','.join(row))} is there twice; get the file again.")
        classes[row[0]] = row[1]
        names.add(row[1])
    if not classes:
        raise UserError(f"{path} names no classes: get the file again.")
    return classes


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, columns) of a CSV; of a file that is none a sentence."""
    try:
        with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            for row in rows:
                if row:
                    yield rows.line_num, row
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: get the file again.") from None
    except csv.Error as error:
        raise UserError(
            f"{path} line {rows.line_num} is no line of a CSV file ({error}): get the file again."
        ) from None


def csv_batches(path: Path, columns: dict[str, pa.DataType], newlines: bool = False) -> Iterator[tuple[int, pa.Table]]:
    """(bytes read by now, rows) of some megabytes of a CSV at a time, of these columns."""
    names = next(csv_lines(path), (1, []))[1]
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path} line 1 has no column {missing[0]}: expected {', '.join(columns)}, among others.")
    try:
        # Closed at once, or its threads may be at work when the interpreter ends.
        with (
            reading(path),
            path.open("rb") as file,
            arrow_csv.open_csv(
                file,
                arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
                arrow_csv.ParseOptions(newlines_in_values=newlines),
                arrow_csv.ConvertOptions(include_columns=list(columns), column_types=columns),
            ) as batches,
        ):
            for batch in batches:
                yield file.tell(), pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise _bad_line(path, names, columns, error) from None


def _bad_line(path: Path, names: list[str], columns: dict[str, pa.DataType], error: pa.ArrowInvalid) -> UserError:
    """The sentence about the first line that is not as the others, which Arrow does not name."""
    for number, row in csv_lines(path):
        if len(row) != len(names):
            return UserError(
                f"{path} line {number} has {len(row)} columns, not {len(names)}: it is cut off or damaged."
            )
        for name, kind in columns.items():
            value = row[names.index(name)]
            if number > 1 and kind == pa.float64() and not _is_number(value):
                return UserError(f"{path} line {number}: {name} is {shown(value)}, expected a number from 0 to 1.")
    return UserError(f"{path} is no CSV of Open Images ({' '.join(str(error).split())[:200]}): get the file again.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

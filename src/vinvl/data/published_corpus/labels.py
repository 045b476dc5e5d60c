"""Files of labels (TSV of id and JSON) with their JSON file of {id: line number}, read by id in little memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.json_files import parse_json
from vinvl.data.json_members import json_members
from vinvl.data.record_fields import checked_id, shown
from vinvl.errors import UserError

BLOCK_BYTES = 2**24
BLOCK_IDS = 100_000
LONGEST_LINE = 2**26


@dataclass(frozen=True)
class LabelFile:
    """A label file whose ids, line numbers and line offsets lie in a folder as arrays; small to send to workers."""

    path: Path
    id_file: Path
    arrays: Path

    @classmethod
    def prepare(cls, path: Path, id_file: Path, arrays: Path) -> LabelFile:
        """Makes the arrays: `ids` sorted UTF-8 of fixed width, `lines` and `offsets` int64.

        Raises:
            UserError: a file is missing, or `id_file` names lines that `path` does not have.
        """
        offsets = line_offsets(path)
        blocks = list(_blocks(id_file, path, len(offsets)))
        if not blocks:
            raise UserError(f"{id_file} names no label; it should map ids to the lines of {path}.")
        ids = np.concatenate([block for block, _ in blocks])
        order = np.argsort(ids, kind="stable")
        arrays.mkdir(parents=True)
        np.save(arrays / "ids.npy", ids[order])
        np.save(arrays / "offsets.npy", offsets[np.concatenate([lines for _, lines in blocks])[order]])
        return cls(path, id_file, arrays)


class LabelReader:
    """Labels by id; holds an open file, so that each process has its own."""

    def __init__(self, file: LabelFile) -> None:
        self._file = file
        self._ids = np.load(file.arrays / "ids.npy", mmap_mode="r")
        self._offsets = np.load(file.arrays / "offsets.npy", mmap_mode="r")
        self._tsv = file.path.open("rb")

    def close(self) -> None:
        self._tsv.close()

    def label(self, label_id: str, place: str) -> dict[str, Any]:
        """The JSON object of a label. `place` names the row that asks for it.

        Raises:
            UserError: there is no such label, or its line is another's or no JSON object.
        """
        key = label_id.encode()
        # At the width of the ids, or NumPy would copy them all to the key's; a longer key is then unlike what is found.
        position = int(self._ids.searchsorted(np.array(key, dtype=self._ids.dtype)))
        if position == len(self._ids) or self._ids[position] != key:
            raise UserError(
                f"{place}: {self._file.id_file} has no label {label_id[:40]!r}, so the row has no second text."
            )
        self._tsv.seek(int(self._offsets[position]))
        line = self._tsv.readline(LONGEST_LINE)
        name, _, content = line.partition(b"\t")
        if name.strip() != key:
            found = name[:40].decode("utf-8", "replace").strip()
            raise UserError(
                f"{place}: {self._file.id_file} sends label {label_id[:40]!r} to a line of {self._file.path} that is "
                f"of {found!r}; the two files do not belong together."
            )
        what = f"{self._file.path}, label {label_id!r}"
        value = parse_json(content.split(b"\t")[0].strip(), what)
        if not isinstance(value, dict):
            raise UserError(f"{what} is {shown(value)}, expected a JSON object.")
        return value


def line_offsets(path: Path) -> np.ndarray:
    """(lines,) int64: the byte where each line of a TSV begins, from the `.lineidx` beside it if that fits.

    Raises:
        UserError: the TSV is missing or unreadable.
    """
    try:
        size = path.stat().st_size
        listed = _listed_offsets(path.with_suffix(".lineidx"), path, size)
        if listed is not None:
            return listed
        begins = [np.zeros(1, dtype=np.int64)]
        position = 0
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                begins.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + position + 1)
                position += len(block)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check image_label_path in the yaml.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    offsets = np.concatenate(begins)
    return offsets[offsets < size]


def _listed_offsets(path: Path, tsv: Path, size: int) -> np.ndarray | None:
    """What a `.lineidx` lists, or None if there is none or it is not of this TSV."""
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns where it stops before the end
            offsets = np.fromfile(path, dtype=np.int64, sep="\n")
    except (ValueError, Warning):
        return None
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] >= size or (np.diff(offsets) <= 0).any():
        return None
    with tsv.open("rb") as file:
        file.seek(int(offsets[-1]))
        last = file.readline(LONGEST_LINE)
    return offsets if int(offsets[-1]) + len(last) == size else None


def _blocks(id_file: Path, path: Path, lines: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, lines) of a hundred thousand labels at a time: as Python objects they would take ten times as much."""
    listed = json_members(id_file, "label ids with their line numbers")
    while members := list(islice(listed, BLOCK_IDS)):
        for name, line in members:
            checked_id(name, f"{id_file}: id")
            if type(line) is not int or not 0 <= line < lines:
                raise UserError(
                    f"{id_file} sends label {name[:40]!r} to line {shown(line)}; "
                    f"{path} has the lines 0 to {lines - 1:,}."
                )
        ids = np.array([name.encode() for name, _ in members], dtype=np.bytes_)
        yield ids, np.array([line for _, line in members], dtype=np.int64)

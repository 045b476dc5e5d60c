"""The records of one split as an Arrow table, and Arrow files that are read through a memory map.

Forked data workers share its memory, for reading an entry touches no reference counts; to spawned ones it goes as a few
blocks of bytes.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, reading
from vinvl.run.values import MAX_ID_LENGTH

ID, TEXT, IDS, TEXTS = pa.int64(), pa.string(), pa.list_(pa.int64()), pa.list_(pa.string())
AS_TEXT = {ID: TEXT, TEXT: TEXT, IDS: TEXTS}
BLOCK = 1 << 13  # records that are Python objects at a time


class Column:
    """N entries of one Arrow type, read as Python's values."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        self.values = values

    @classmethod
    def of(cls, values: Iterable[Any], kind: pa.DataType = TEXT) -> Self:
        """Raises UnicodeEncodeError for a text with a lone surrogate."""
        return cls(pa.chunked_array([pa.array(list(values), kind)], kind))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | slice) -> Any:
        """An entry, or a list of some that follow each other."""
        return self.values[index].to_pylist() if isinstance(index, slice) else self.values[int(index)].as_py()

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def numpy(self) -> np.ndarray:
        """(N,) numbers, or texts of fixed width."""
        return self.values.to_numpy() if self.values.type != TEXT else np.array(list(self), dtype=np.str_)

    def take(self, places: np.ndarray) -> "Column":
        """The entries at `places` (M,) int64."""
        return Column(self.values.take(pa.array(places)))

    def flat(self) -> "Column":
        """Of N lists, all their entries."""
        return Column(pc.list_flatten(self.values))

    def starts(self) -> np.ndarray:
        """Of N lists, (N + 1,) int64: where each begins in `flat`, and the last one ends."""
        return np.insert(np.cumsum(pc.list_value_length(self.values).fill_null(0).to_numpy(), dtype=np.int64), 0, 0)

    def categories(self) -> tuple[list[str], np.ndarray]:
        """The different texts in the order in which they first come, and (N,) int32: which of them each entry is."""
        encoded = self.values.combine_chunks().dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


@dataclass(frozen=True)
class Form:
    """What the records of a task hold.

    Attributes:
        noun: what they are called, "questions".
        called: what one is called in messages, before its id: "question_id".
        columns: name → type, in the order in which readers give them. The first is the record's own id. Ids of type ID
            and lists of type IDS hold integers where every one is an integer of 64 bits, and text otherwise.
        images: columns of the ids of its images.
        annotation: the column that all records have, or none, in a split without annotations.
        filled: column → what stands there in records that do not say, where others do; where none does there is no such
            column.
        remedy: what to do about an id that occurs twice.
    """

    noun: str
    called: str
    columns: Mapping[str, pa.DataType]
    images: tuple[str, ...] = ("image_id",)
    annotation: str = ""
    filled: Mapping[str, str] = field(default_factory=dict)
    remedy: str = "give every record an id of its own"

    @property
    def own_id(self) -> str:
        return next(iter(self.columns))


@dataclass(frozen=True, eq=False)
class RecordTable:
    """N records of one split in the order of its files.

    `table` has the columns of its form, those without entries left out, and "file" and "number": where each record was
    read, "train.jsonl line" and 17.
    """

    table: pa.Table
    form: Form

    @classmethod
    def of(cls, form: Form, rows: Iterable[tuple[Any, ...]], path: Any) -> Self:
        """Packs the rows of a reader: file, number and the columns of the form, None for what a record does not say.

        Raises UserError as `join` does, and if there are none; `path` is where they were looked for.
        """
        left = iter(rows)
        blocks = [cls._block(form, block) for block in iter(lambda: list(islice(left, BLOCK)), [])]
        if not blocks:
            raise UserError(f"{path} holds no {form.noun}; an empty split cannot be used.")
        return cls._joined(blocks, form)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The records of all parts, as train and val are joined; order is kept.

        Raises UserError if an id occurs twice or only some records are annotated; ValueError if there are no parts.
        """
        if not parts:
            raise ValueError("There are no records to join.")
        return cls._joined([part.table for part in parts if len(part)] or [parts[0].table], parts[0].form)

    @classmethod
    def _block(cls, form: Form, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
        names, (files, numbers, *columns) = ["file", "number", *form.columns], zip(*rows, strict=True)
        arrays = [pa.array(files, TEXT).dictionary_encode(), pa.array(numbers, pa.int64())]
        for (name, kind), values in zip(form.columns.items(), columns, strict=True):
            holds_ids = kind == IDS or name in (form.own_id, *form.images)
            arrays.append(_ids(values, kind, name, rows) if holds_ids else pa.array(values, kind))
        return pa.table(arrays, names=names)

    @classmethod
    def _joined(cls, tables: Sequence[pa.Table], form: Form) -> Self:
        for name, kind in form.columns.items():
            if len({table[name].type for table in tables if name in table.column_names}) > 1:  # integers and texts
                tables = [_as_text(table, name, AS_TEXT[kind]) for table in tables]
        table = pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()
        for name in form.columns:
            missing = table[name].null_count if name in table.column_names else 0
            if missing and missing == len(table):
                table = table.drop_columns(name)
            elif missing and name in form.filled:
                table = replaced(table, name, table[name].fill_null(form.filled[name]))
        records = cls(table, form)
        records._refuse_half_annotated()
        records._refuse_repeated()
        return records

    def _refuse_half_annotated(self) -> None:
        name = self.form.annotation
        if name in self and self.table[name].null_count:
            bare = self.table[name].is_null().to_numpy()
            raise UserError(
                f"{self.place(int(bare.argmax()))} has no {name} and {self.place(int(bare.argmin()))} has "
                f"({np.count_nonzero(bare):,} of {len(self):,} records have none); give {name} in every record, or in "
                "none to predict only."
            )

    def _refuse_repeated(self) -> None:
        own = self.table[self.form.own_id]
        if (repeat := first_repeat(own)) is not None:
            first, second, count = repeat
            raise UserError(
                f"{self.place(second)} has the {self.form.own_id} {own[second]} of {self.place(first)} ({count:,} such "
                f"repeats); {self.form.remedy}."
            )

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def __getitem__(self, name: str) -> Column:
        """A column; KeyError if there is none."""
        return Column(self.table[name])

    def get(self, name: str) -> Column | None:
        """A column; None if there is none."""
        return Column(self.table[name]) if name in self else None

    @property
    def annotated(self) -> bool:
        """Whether the split has what is trained on and scored with."""
        return self.form.annotation in self

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(N,) text: the image of each record; (N, K) where a record has K of them."""
        columns = [self[name].numpy() for name in self.form.images]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)

    def row(self, index: int) -> dict[str, Any]:
        """All that a record says, by column."""
        return {name: self[name][index] for name in self.form.columns if name in self}

    def place(self, index: int) -> str:
        """File and number: "train.jsonl line 17"."""
        return f"{self['file'][index]} {self['number'][index]}"

    def describe(self, index: int) -> str:
        """Names a record for a message: "train.jsonl line 17 (question_id 4)"."""
        return f"{self.place(index)} ({self.form.called} {self[self.form.own_id][index]})"

    def select(self, keep: np.ndarray) -> Self:
        """The records where `keep` (N,) bool is True, in their order."""
        return replace(self, table=self.table.filter(pa.array(keep)))


def replaced(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with other values in a column."""
    return table.set_column(table.column_names.index(name), name, values)


def as_lists(values: Column, lengths: np.ndarray) -> pa.ListArray:
    """N lists of these lengths (N,), whose entries are the values, in order."""
    offsets = np.insert(np.cumsum(lengths), 0, 0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.values.combine_chunks())


def first_repeat(values: pa.ChunkedArray) -> tuple[int, int, int] | None:
    """(place of an entry, place of its first repeat, repeats in all); None if all are different."""
    repeats = len(values) - pc.count_distinct(values).as_py()
    first: dict[int | str, int] = {}
    for index, value in enumerate(Column(values) if repeats else ()):
        if first.setdefault(value, index) != index:
            return first[value], index, repeats
    return None


def _as_text(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    return replaced(table, name, table[name].cast(kind)) if name in table.column_names else table


def _ids(values: Sequence[Any], kind: pa.DataType, name: str, rows: Sequence[tuple[Any, ...]]) -> pa.Array:
    """Of ids, or lists of them: integers where the column may hold such and all are of 64 bits, otherwise text."""
    with suppress(pa.ArrowException, OverflowError):
        return pa.array(values, kind)
    texts: list[Any] = []
    for row, value in zip(rows, values, strict=True):
        several = isinstance(value, list | tuple)
        written = [(one, str(one)) for one in (value if several else (value,))] if value is not None else []
        if any(isinstance(one, int) and len(text) > MAX_ID_LENGTH for one, text in written):
            raise UserError(
                f"{row[0]} {row[1]}: {name} is an integer of more than {MAX_ID_LENGTH} digits; use a shorter id."
            )
        texts.append(None if value is None else [text for _, text in written] if several else written[0][1])
    return pa.array(texts, AS_TEXT[kind])


# Files of one record batch: whole and of the expected kind, or refused.


ABOUT, DIGEST = b"vinvl", b"digest"  # keys of the schema's metadata


def write_batch(file: IO[bytes], columns: Mapping[str, pa.Array], about: bytes = b"") -> None:
    """Writes columns, what is to be said about them, and the digest of both. Raises OSError."""
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    metadata = {ABOUT: about, DIGEST: batch_digest(batch, about).encode()}
    with ipc.new_file(file, batch.schema.with_metadata(metadata)) as writer:
        writer.write_batch(batch)


def about_of(schema: pa.Schema) -> bytes:
    """What is said about a file's columns; nothing in a foreign file."""
    return bytes((schema.metadata or {}).get(ABOUT, b""))


def is_as_written(batch: pa.RecordBatch) -> bool:
    """Whether every byte of the columns, and of what is said about them, is the one that was written."""
    metadata = batch.schema.metadata or {}
    return bool(metadata.get(DIGEST) == batch_digest(batch, about_of(batch.schema)).encode())


def batch_digest(batch: pa.RecordBatch, about: bytes) -> str:
    """Hexadecimal digest (BLAKE2b) of all buffers of a batch, and of `about`."""
    digest = hashlib.blake2b(about, digest_size=16)
    arrays = [*batch.columns, *(column.dictionary for column in batch.columns if hasattr(column, "dictionary"))]
    for array in arrays:
        for buffer in array.buffers():
            digest.update(b"|" if buffer is None else buffer)
    return digest.hexdigest()


def map_batch(path: Path) -> pa.RecordBatch:
    """The one batch of a file, whose buffers are pages of the file; every length and index in it is looked at.

    A file that is cut short afterwards, while it is mapped, ends the process; files are therefore only ever replaced.

    Raises:
        OSError: the file is missing or unreadable.
        ValueError: it is cut short, is no Arrow file, or one that does not fit together.
    """
    try:
        with pa.memory_map(str(path)) as source, ipc.open_file(source) as reader:
            if reader.num_record_batches != 1:
                raise ValueError(f"it has {reader.num_record_batches} batches, and one was written")
            batch = reader.get_batch(0)
        batch.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    return batch


# Records of large files, which take seconds to read, are kept as such a file.

LEAST_BYTES = 1 << 25  # files of fewer are read faster than a person notices


def kept_records(
    form: Form, files: Sequence[str | Path], folder: str | Path | None, read: Callable[[], RecordTable]
) -> RecordTable:
    """What `read` makes of files, from `folder` where this very code has read these very bytes before.

    A file there that is damaged, or of other bytes or code, is replaced. One that cannot be written is not.
    """
    if folder is None or sum(os.path.getsize(file) for file in files if os.path.isfile(file)) < LEAST_BYTES:
        return read()
    made_of = _digest_of(files)
    names = hashlib.sha256("\0".join(map(str, files)).encode(errors="surrogateescape")).hexdigest()
    path = Path(folder) / f"records_{names[:24]}.arrow"
    with suppress(OSError, ValueError):
        batch = map_batch(path)
        known = {"file", "number", *form.columns}.issuperset(batch.schema.names)
        if known and about_of(batch.schema) == made_of and is_as_written(batch):
            return RecordTable(pa.Table.from_batches([batch]).replace_schema_metadata(None), form)
    records = read()
    with suppress(UserError, OSError, ValueError):
        columns = _as_stored(records.table)
        with atomic_write(path, "wb") as file:
            write_batch(file, columns, made_of)
    return records


def _digest_of(files: Sequence[str | Path]) -> bytes:
    """A word that changes with the names and bytes of files, and with this program."""
    digest = hashlib.sha256()
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    for file in (*files, *sources):
        with reading(file), open(file, "rb") as opened:
            digest.update(f"{file}\0".encode(errors="surrogateescape"))
            digest.update(hashlib.file_digest(opened, hashlib.sha256).digest())
    return digest.hexdigest().encode()


def _as_stored(table: pa.Table) -> dict[str, pa.Array]:
    """The columns with the very bytes that they have in a file, which leaves out what says nothing.

    Raises ValueError where they are too long for one batch.
    """
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    with ipc.open_stream(sink.getvalue()) as reader:
        (batch,) = reader
    return dict(zip(table.column_names, batch.columns, strict=True))


def plain_numbers(array: pa.Array) -> np.ndarray:
    """The numbers of an array, which has no nulls, without a copy; raises ValueError if it has some."""
    if array.null_count:
        raise ValueError("it has empty places")
    return array.to_numpy(zero_copy_only=True)

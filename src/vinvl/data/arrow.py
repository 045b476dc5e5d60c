"""Arrow files of one record batch, read through a memory map: whole and of the expected kind, or refused."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from pyarrow import ipc

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


def plain_numbers(array: pa.Array) -> np.ndarray:
    """The numbers of an array, which has no nulls, without a copy; raises ValueError if it has some."""
    if array.null_count:
        raise ValueError("it has empty places")
    return array.to_numpy(zero_copy_only=True)

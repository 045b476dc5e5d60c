"""A corpus file in pieces that workers tokenize, each on its own."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.data.corpus.rows import CorpusRow, RowKind, corpus_row
from vinvl.data.json_files import parse_json
from vinvl.data.text import encode_texts
from vinvl.errors import UserError

CHUNK_BYTES = 16 * 2**20
MAX_TEXT_TOKENS = 512
"""Kept of one text. No model of this kind sees more of a pair, so cutting here changes no truncation."""


class Chunk(NamedTuple):
    """Whole lines of a file: bytes start to stop, the first of them being line `first_line`, counted from 1."""

    path: str
    start: int
    stop: int
    first_line: int


@dataclass(frozen=True)
class Part:
    """The n rows of a chunk, tokenized."""

    tokens: np.ndarray  # (Σ,) uint16 or int32: text and second text of row 0, of row 1, …
    lengths: np.ndarray  # (n, 2) uint16: how many of them each text has
    kinds: np.ndarray  # (n,) uint8, `RowKind`
    lines: np.ndarray  # (n,) uint32, where the row stands in the file
    image_ids: np.ndarray  # (i,) UTF-8 bytes of fixed width: the different images, sorted
    images: np.ndarray  # (n,) int64: which of them belongs to a row
    sources: Counter[str]
    tags: Counter[str]


def split_file(path: Path, chunk_bytes: int = CHUNK_BYTES) -> tuple[list[Chunk], str]:
    """The chunks of a file, and the hexadecimal digest of its content; one pass over it.

    Raises:
        UserError: the file is missing, unreadable or empty.
    """
    digest = hashlib.blake2b(digest_size=16)
    chunks: list[Chunk] = []
    position, line = 0, 1
    try:
        with path.open("rb") as file:
            while block := file.read(chunk_bytes):
                block += file.readline()  # up to the end of the line that the block ends in
                digest.update(block)
                chunks.append(Chunk(str(path), position, position + len(block), line))
                position += len(block)
                line += block.count(b"\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    return chunks, digest.hexdigest()


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest data type that token ids fit into: two bytes halve the corpus."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<i4")


def tokenize_chunk(chunk: Chunk, tokenizer: PreTrainedTokenizerBase) -> Part:
    """Parses, checks and tokenizes the rows of a chunk.

    Raises:
        UserError: a line is no corpus row, or a text of it has no token; the sentence names file and line.
    """
    with open(chunk.path, "rb") as file:
        file.seek(chunk.start)
        content = file.read(chunk.stop - chunk.start)
    rows: list[CorpusRow] = []
    lines: list[int] = []
    for number, line in enumerate(content.split(b"\n"), start=chunk.first_line):
        if line.strip():
            place = f"{chunk.path} line {number}"
            rows.append(corpus_row(parse_json(line.rstrip(), place), place))
            lines.append(number)
    # Text and second text in turn, which is the order of the token array.
    encoded = encode_texts(tokenizer, [text for row in rows for text in (row.text, row.second_text)])
    full = encoded.lengths()
    lengths = np.minimum(full, MAX_TEXT_TOKENS)
    silent = np.flatnonzero(lengths[0::2] == 0)
    if len(silent):
        raise UserError(
            f"{chunk.path} line {lines[silent[0]]}: the tokenizer finds no token in the text; leave the row out."
        )
    within = np.arange(len(encoded.values)) - np.repeat(encoded.offsets[:-1], full)
    image_ids, images = np.unique(
        np.array([row.image_id.encode() for row in rows], dtype=np.bytes_), return_inverse=True
    )
    return Part(
        tokens=encoded.values[within < MAX_TEXT_TOKENS].astype(token_dtype(len(tokenizer))),
        lengths=lengths.reshape(-1, 2).astype("<u2"),
        kinds=np.array([row.kind for row in rows], dtype=np.uint8),
        lines=np.array(lines, dtype="<u4"),
        image_ids=image_ids,
        images=images.reshape(-1),
        sources=Counter(row.source for row in rows),
        tags=Counter(tag for row in rows for tag in row.tags if row.kind == RowKind.GIVEN_TAGS),
    )

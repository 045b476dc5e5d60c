"""A piece of a corpus file, tokenized on its own."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.data.text import encode_texts
from vinvl.pretraining.corpus.rows import CorpusRow, RowKind, corpus_row
from vinvl.run.errors import UserError
from vinvl.run.files import parse_json
from vinvl.run.lines import Chunk

MAX_TEXT_TOKENS = 512
"""Kept of one text. No model of this kind sees more of a pair, so cutting here changes no truncation."""


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


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest data type that token ids fit into: two bytes halve the corpus."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<i4")


def tokenize_chunk(chunk: Chunk, tokenizer: PreTrainedTokenizerBase) -> Part:
    """Parses, checks and tokenizes the rows of a chunk.

    Raises:
        UserError: a line is no corpus row, or a text of it has no token; the sentence names file and line.
    """
    rows: list[CorpusRow] = []
    lines: list[int] = []
    for number, line in enumerate(chunk.content().split(b"\n"), start=chunk.first_line):
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

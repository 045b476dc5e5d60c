"""A corpus file, JSONL, and its index: its rows tokenized once into an Arrow file beside it, read through a memory map.

| column | what it holds |
|---|---|
| tokens | list of uint16 or int32: a row's text, then its second text |
| lengths | two uint16: how many of the tokens each text has |
| kind | uint8, `RowKind` |
| image | the row's image id: UTF-8 of fixed width, filled up with zeros, of a sorted dictionary |
| line | uint32: where the row stands in the corpus file |

`IndexFacts`, as JSON in the schema's metadata, say what the index was made of.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from vinvl.data.table import about_of, is_as_written, map_batch, plain_numbers, write_batch
from vinvl.data.text import RaggedTokens, encode_texts, flat_ranges, tokenizer_fingerprint
from vinvl.run.errors import UserError, say
from vinvl.run.files import atomic_write, reading
from vinvl.run.lines import Chunk, pool_map, split_file
from vinvl.run.values import checked_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = "vinvl corpus index 2"
REMEDY = "build it again with python -m vinvl.pretraining.corpus build"
MAX_TEXT_TOKENS = 512
"""Kept of one text. No model of this kind sees more of a pair, so cutting here changes no truncation."""
MAX_TAG_NAMES = 50_000  # kept in the facts; more are no tags of a label set
ID_BYTES = 1024  # of an image id at most

Count = Annotated[int, msgspec.Meta(ge=0)]


class RowKind(IntEnum):
    """What the second text of a row is; the numbers are stored in index files."""

    STORE_TAGS = 0  # a caption, with the classes of the image's regions
    GIVEN_TAGS = 1  # a caption, with tags that the row gives
    ANSWER = 2  # a question, with its answer
    TAGS_ALONE = 3  # tags of an image without a text


class CorpusRow(msgspec.Struct, frozen=True):
    """One line of a corpus file: a text with the image it belongs to, and the tags of the image or the answer to it.

    With neither tags nor an answer, the tags are the classes of the store. Without a text there are tags alone, which
    data.variant=vivo learns from. Other keys, such as "id", are not read.
    """

    image_id: int | str
    text: str | None = None
    tags: list[str] | None = None
    answer: str | None = None
    source: str | None = None

    @property
    def kind(self) -> RowKind:
        if self.answer is not None:
            return RowKind.ANSWER
        if self.text is None:
            return RowKind.TAGS_ALONE
        return RowKind.STORE_TAGS if self.tags is None else RowKind.GIVEN_TAGS

    def tag_names(self) -> list[str]:
        """The tags that the row gives, without blank ones."""
        return [name for tag in self.tags or () if (name := tag.strip())]

    def second_text(self) -> str:
        """What follows the text; tags are joined by blanks, as published Oscar joins them."""
        return " ".join(self.tag_names()) if self.answer is None else self.answer.strip()


def corpus_row(line: bytes, place: str) -> CorpusRow:
    """Parses and checks a line. `place` names it ("corpus.jsonl line 3").

    Raises:
        UserError: the line is no corpus row.
    """
    try:
        row = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"), type=CorpusRow)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UserError(f"{place} is no row of image_id, text, and tags or an answer ({error}).") from error
    checked_id(row.image_id, f"{place}: image_id")
    if row.tags is not None and row.answer is not None:
        raise UserError(f"{place} has both tags and an answer; keep one of the two.")
    if row.text is None and not row.tag_names():
        raise UserError(f"{place} has no text, and no tags that could stand alone; give one or leave the row out.")
    if row.text is None and row.answer is not None:
        raise UserError(f"{place} has an answer and no text; write the question or leave the row out.")
    for name, text in (("text", row.text), ("answer", row.answer)):
        if text is not None and not text.strip():
            raise UserError(f"{place} has an empty {name}; write one or leave the row out.")
    return row


class IndexFacts(msgspec.Struct, frozen=True):
    """What an index was made of: the corpus file and the tokenizer, and what is counted in its rows."""

    format: str
    file: str
    file_bytes: Count
    file_modified_ns: int
    file_digest: str
    tokenizer: str
    vocab_size: Count
    id_bytes: Annotated[int, msgspec.Meta(ge=1, le=ID_BYTES)] = 1
    kinds: dict[str, Count] = {}
    sources: dict[str, Count] = {}
    tags: dict[str, Count] = {}


def _schema(facts: IndexFacts) -> pa.Schema:
    return pa.schema(
        {
            "tokens": pa.large_list(pa.from_numpy_dtype(token_dtype(facts.vocab_size))),
            "lengths": pa.list_(pa.uint16(), 2),
            "kind": pa.uint8(),
            "image": pa.dictionary(pa.int32(), pa.binary(facts.id_bytes)),
            "line": pa.uint32(),
        }
    )


class Corpus:
    """The rows of one corpus file by number, 0 <= row < N; opening looks at all of its index once.

    Pickling keeps the path alone; forked and spawned data workers share the pages of the map.

    Attributes:
        facts: what the index was made of.
        lengths: (N, 2) uint16, tokens of the text and of the second text that the row itself gives.
        kinds: (N,) uint8, `RowKind`.
        images: (N,) int32, places in `image_ids`.
        image_ids: (I,) bytes, sorted.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Raises:
            UserError: there is no index, or it is damaged or of another version.
        """
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f"{path} is a folder, as indices of earlier versions are; {REMEDY}.")
        try:
            self._open()
            self._check()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}); {REMEDY}.") from error
        except (ValueError, msgspec.MsgspecError) as error:
            raise UserError(f"{path} is damaged or no index of this version ({error}); {REMEDY}.") from error

    def _open(self) -> None:
        self._batch = batch = map_batch(self.path)
        self.facts = msgspec.json.decode(about_of(batch.schema), type=IndexFacts)
        if self.facts.format != FORMAT or not batch.schema.equals(_schema(self.facts)):
            raise ValueError(f"it is not of the format '{FORMAT}'")
        tokens, lengths, kinds, images, lines = batch.columns
        self._tokens, self._starts = plain_numbers(tokens.values), plain_numbers(tokens.offsets)
        self.lengths = plain_numbers(lengths.values).reshape(-1, 2)
        self.kinds, self.images, self._lines = map(plain_numbers, (kinds, images.indices, lines))
        if images.dictionary.null_count:
            raise ValueError("images are without ids")
        ids = images.dictionary.buffers()[1]  # `to_numpy` would make Python objects of them
        self.image_ids = np.frombuffer(ids, dtype=f"S{self.facts.id_bytes}")

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._open()  # which has been looked at

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def source(self) -> str:
        """The corpus file that the index was made of."""
        return self.facts.file

    def image_id(self, row: int) -> str:
        return bytes(self.image_ids[self.images[row]]).decode()

    def describe(self, row: int) -> str:
        """Names a row for a message: "coco.jsonl line 17 (image 391895)"."""
        return f"{self.source} line {self._lines[row]} (image {self.image_id(row)})"

    def texts(self, rows: np.ndarray, sides: np.ndarray) -> RaggedTokens:
        """Token ids of the text (side 0) or second text (side 1) of each of n rows; (n,) integers both."""
        lengths = self.lengths[rows, sides].astype(np.int64)
        starts = self._starts[rows] + np.where(sides == 1, self.lengths[rows, 0], 0)
        return RaggedTokens.of_lengths(self._tokens[flat_ranges(starts, lengths)], lengths)

    def _check(self) -> None:
        """Raises ValueError for what Arrow takes for sound and would be read as another row's, or as no text."""
        if not len(self) or not np.array_equal(np.diff(self._starts), self.lengths.sum(axis=1, dtype=np.int64)):
            raise ValueError("it has no rows, or texts of other lengths than their tokens")
        if self.kinds.max() > max(RowKind) or not 0 <= self._tokens.min() <= self._tokens.max() < self.facts.vocab_size:
            raise ValueError("rows are of no kind, or have no words")
        if (self.image_ids[1:] <= self.image_ids[:-1]).any():
            raise ValueError("its ids of images are not in order")
        ids = self._batch.column("image").dictionary
        for start in range(0, len(ids), 2**16):
            ids.slice(start, 2**16).cast(pa.string())  # refuses what is no UTF-8
        pa.default_memory_pool().release_unused()  # or every rank would keep what that took

    def problems(self) -> list[str]:
        """Reads everything; what is wrong, a sentence each; [] if the index is sound."""
        return [] if is_as_written(self._batch) else [f"{self.path} is not what was written; {REMEDY}."]


def index_path(file: str | Path, fingerprint: str) -> Path:
    """Where the index of a corpus file lies for a tokenizer: beside the file."""
    file = Path(file)
    return file.with_name(f"{file.name}.index-{fingerprint[:12]}")


def ensure_index(file: str | Path, tokenizer: PreTrainedTokenizerBase, workers: int = 1) -> Corpus:
    """The index of a corpus file: as it is if file and tokenizer are those it was made of, built otherwise.

    It gets its name when it is whole; of several processes that build at once the last one's stays.

    Args:
        file: JSONL, see `CorpusRow`.
        tokenizer: whose ids the index holds.
        workers: processes that tokenize; 1 does it in this process.

    Raises:
        UserError: the file is missing, empty or has a line that is no corpus row; or nothing can be written beside it.
    """
    path, fingerprint = Path(file), tokenizer_fingerprint(tokenizer)
    target = index_path(path, fingerprint)
    current = _current_index(path, target, fingerprint)
    if current is not None:
        return current
    say(f"Indexing {path}{' anew, for its index is of an earlier version' if target.is_dir() else ''} …", error=True)
    with reading(path):
        status = path.stat()
    chunks, digest = split_file(path)
    facts = IndexFacts(
        FORMAT, str(path), status.st_size, status.st_mtime_ns, digest, fingerprint, vocab_size=len(tokenizer)
    )
    with ExitStack() as stack:
        work = partial(tokenize_chunk, tokenizer=tokenizer)
        write_index(pool_map(work, chunks, workers, stack), target, facts)
    return Corpus(target)


def _current_index(file: Path, target: Path, fingerprint: str) -> Corpus | None:
    """The index if it is of this tokenizer and of `file` as it is: by size and time, or else by content."""
    try:
        status, corpus = file.stat(), Corpus(target)
        facts = corpus.facts
        if facts.tokenizer != fingerprint or facts.file_bytes != status.st_size:
            return None
        # A copy of the file has another time and the same content, and needs no new index.
        same = facts.file_modified_ns == status.st_mtime_ns or facts.file_digest == split_file(file)[1]
    except (OSError, UserError):
        return None
    return corpus if same else None


class Part(NamedTuple):
    """The n rows of a piece of a corpus file, tokenized on its own."""

    tokens: np.ndarray  # (Σ,) uint16 or int32: text and second text of row 0, of row 1, …
    lengths: np.ndarray  # (n, 2) uint16: how many of them each text has
    kinds: np.ndarray  # (n,) uint8, `RowKind`
    lines: np.ndarray  # (n,) uint32, where the row stands in the file
    image_ids: np.ndarray  # (i,) UTF-8 bytes of fixed width: the different images, sorted
    images: np.ndarray  # (n,) int32: which of them belongs to a row
    sources: Mapping[str, int]
    tags: Mapping[str, int]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest data type that token ids fit into: two bytes halve the corpus."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


def tokenize_chunk(chunk: Chunk, tokenizer: PreTrainedTokenizerBase) -> Part:
    """Parses, checks and tokenizes the rows of a chunk.

    Raises:
        UserError: a line is no corpus row, or a text of it has no token; the sentence names file and line.
    """
    numbered = enumerate(chunk.content().split(b"\n"), start=chunk.first_line)
    rows = {number: corpus_row(line, f"{chunk.path} line {number}") for number, line in numbered if line.strip()}
    # Text and second text in turn, which is the order of the tokens.
    texts = [text for row in rows.values() for text in ((row.text or "").strip(), row.second_text())]
    encoded, lines = encode_texts(tokenizer, texts), np.array([*rows], dtype=np.uint32)
    full = encoded.lengths()
    lengths = np.minimum(full, MAX_TEXT_TOKENS)
    kinds = np.array([row.kind for row in rows.values()], dtype=np.uint8)
    alone = kinds == RowKind.TAGS_ALONE
    silent = np.flatnonzero(np.where(alone, lengths[1::2], lengths[0::2]) == 0)
    if len(silent):
        found = f"{chunk.path} line {lines[silent[0]]}: the tokenizer finds no token in the"
        raise UserError(f"{found} {'tags' if alone[silent[0]] else 'text'}; leave the row out.")
    within = np.arange(len(encoded.values)) - np.repeat(encoded.offsets[:-1], full)
    ids = np.array([str(row.image_id).encode() for row in rows.values()], dtype=np.bytes_)
    image_ids, images = np.unique(ids, return_inverse=True)
    return Part(
        tokens=encoded.values[within < MAX_TEXT_TOKENS].astype(token_dtype(len(tokenizer))),
        lengths=lengths.reshape(-1, 2).astype(np.uint16),
        kinds=kinds,
        lines=lines,
        image_ids=image_ids,
        images=images.reshape(-1).astype(np.int32),
        sources=Counter(row.source or "" for row in rows.values()),
        tags=Counter(tag for row in rows.values() for tag in row.tag_names()),
    )


def write_index(parts: Iterable[Part], target: Path, facts: IndexFacts) -> None:
    """Writes tokenized parts of a corpus, in the order of the rows, as an index.

    Of the rows all but the tokens, 13 bytes each, are held until the end.

    Args:
        parts: at least one row in all.
        target: what lies there is replaced, an index of an earlier version as well.
        facts: of file and tokenizer; what is counted is added.

    Raises:
        UserError: there is no row, or something cannot be written.
    """
    with atomic_write(target, "wb") as file, tempfile.TemporaryFile(dir=target.parent) as tokens:
        written, sources, tags = [], Counter[str](), Counter[str]()
        for part in parts:
            tokens.write(part.tokens.tobytes())
            sources.update(part.sources)
            tags.update(part.tags)
            written += [part._replace(tokens=part.tokens[:0], sources={}, tags={})] if len(part.kinds) else []
        if not written:
            raise UserError(f"{facts.file} holds no rows; an empty corpus cannot be used.")
        tokens.flush()
        kinds = np.concatenate([part.kinds for part in written])
        ids = np.unique(np.concatenate([part.image_ids for part in written]))
        counts = np.bincount(kinds, minlength=len(RowKind)).tolist()
        facts = msgspec.structs.replace(
            facts,
            id_bytes=ids.dtype.itemsize,
            kinds={kind.name.lower(): counts[kind] for kind in RowKind if counts[kind]},
            sources=dict(sorted(sources.items())),
            tags=dict(tags.most_common(MAX_TAG_NAMES)),
        )
        write_batch(file, _columns(written, kinds, ids, tokens.fileno(), facts), msgspec.json.encode(facts))
        if target.is_dir():  # an index of an earlier version
            shutil.rmtree(target, ignore_errors=True)  # another builder may be at it


def _columns(
    parts: list[Part], kinds: np.ndarray, ids: np.ndarray, tokens: int, facts: IndexFacts
) -> dict[str, pa.Array]:
    """The columns of an index; `tokens` is the open file of the token ids."""
    lengths = np.concatenate([part.lengths for part in parts])
    starts = np.insert(np.cumsum(lengths.sum(axis=1, dtype=np.int64)), 0, 0)
    images = [np.searchsorted(ids, part.image_ids).astype(np.int32)[part.images] for part in parts]
    with open(tokens, "rb", closefd=False) as file:
        values = np.memmap(file, dtype=token_dtype(facts.vocab_size), mode="r", shape=(int(starts[-1]),))
    names = pa.Array.from_buffers(pa.binary(facts.id_bytes), len(ids), [None, pa.py_buffer(ids.tobytes())])
    return {
        "tokens": pa.LargeListArray.from_arrays(pa.array(starts), pa.array(np.asarray(values))),
        "lengths": pa.FixedSizeListArray.from_arrays(pa.array(lengths.reshape(-1)), 2),
        "kind": pa.array(kinds),
        "image": pa.DictionaryArray.from_arrays(pa.array(np.concatenate(images)), names),
        "line": pa.array(np.concatenate([part.lines for part in parts])),
    }


if __name__ == "__main__":
    from vinvl.pretraining.command import main

    sys.exit(main())

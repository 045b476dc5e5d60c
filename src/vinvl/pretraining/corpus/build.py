"""From a corpus file to its index: tokenized in parallel, written beside the file, whole or not at all."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.pretraining.corpus.chunks import Part, token_dtype, tokenize_chunk
from vinvl.pretraining.corpus.fingerprint import tokenizer_fingerprint
from vinvl.pretraining.corpus.index import FORMAT, MANIFEST, Corpus, file_digest
from vinvl.pretraining.corpus.rows import RowKind
from vinvl.run.errors import UserError, say
from vinvl.run.files import put_in_place, work_folder
from vinvl.run.lines import Chunk, SpawnedPool, split_file

MAX_TAG_NAMES = 50_000  # kept in the manifest; more are no tags of a label set


def index_folder(file: str | Path, fingerprint: str) -> Path:
    """Where the index of a corpus file lies for a tokenizer: beside the file."""
    file = Path(file)
    return file.with_name(f"{file.name}.index-{fingerprint[:12]}")


def ensure_index(file: str | Path, tokenizer: PreTrainedTokenizerBase, workers: int = 1) -> Corpus:
    """The index of a corpus file: as it is if file and tokenizer are those it was made of, built otherwise.

    It is made in a temporary folder and renamed, so that a killed build leaves no index, and of several processes that
    build at once one wins and the others use its index.

    Args:
        file: JSONL, see `corpus_row`.
        tokenizer: whose ids the index holds.
        workers: processes that tokenize; 1 does it in this process.

    Raises:
        UserError: the file is missing, empty or has a line that is no corpus row; or nothing can be written beside it.
    """
    path, fingerprint = Path(file), tokenizer_fingerprint(tokenizer)
    folder = index_folder(path, fingerprint)
    current = current_index(path, folder, fingerprint)
    if current is not None:
        return current
    say(f"Indexing {path} …", error=True)
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    with work_folder(folder) as work:
        fresh = work / "index"
        fresh.mkdir()
        _write_index(path, fresh, tokenizer, fingerprint, workers)
        current = current_index(path, folder, fingerprint)
        if current is not None:  # another process was faster; whoever reads its index keeps it
            return current
        try:
            put_in_place(fresh, folder, replaced=work / "replaced")
        except OSError:
            if current_index(path, folder, fingerprint) is None:  # another process was faster where it is not
                raise
    return Corpus(folder)


def current_index(file: Path, folder: Path, fingerprint: str) -> Corpus | None:
    """The index in `folder` if it is of this tokenizer and of `file` as it is: by size and time, or else by content."""
    try:
        status = file.stat()
        corpus = Corpus(folder)
    except (OSError, UserError):
        return None
    if corpus.manifest["tokenizer"] != fingerprint:
        return None
    size, modified = corpus.manifest["file_bytes"], corpus.manifest["file_modified_ns"]
    if status.st_size != size:
        return None
    if status.st_mtime_ns != modified and file_digest(file) != corpus.manifest["file_digest"]:
        return None  # a copy of the file has another time and the same content, and needs no new index
    return corpus


def _write_index(path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, fingerprint: str, workers: int) -> None:
    """Writes the arrays of an index into an empty folder, then its manifest."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    chunks, digest = split_file(path)
    facts = {
        "file": str(path),
        "file_bytes": status.st_size,
        "file_modified_ns": status.st_mtime_ns,
        "file_digest": digest,
        "tokenizer": fingerprint,
        "vocab_size": len(tokenizer),
    }
    with ExitStack() as stack:
        write_parts(_tokenized(chunks, tokenizer, workers, stack), folder, facts)


def write_parts(parts: Iterator[Part], folder: Path, facts: dict[str, Any]) -> None:
    """Writes tokenized parts of a corpus as the arrays of an index into an empty folder, then its manifest.

    Args:
        parts: in the order of the rows.
        folder: exists.
        facts: what the manifest says of file and tokenizer.

    Raises:
        UserError: there is no row.
        OSError: something cannot be written.
    """
    written = _write_arrays(parts, folder)
    if written.rows == 0:
        raise UserError(f"{facts['file']} holds no rows; an empty corpus cannot be used.")
    ids = written.write_images(folder)
    shapes: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        "tokens": (token_dtype(facts["vocab_size"]), (written.tokens,)),
        "lengths": (np.dtype("<u2"), (written.rows, 2)),
        "starts": (np.dtype("<i8"), (written.rows,)),
        "kinds": (np.dtype("u1"), (written.rows,)),
        "images": (np.dtype("<i4"), (written.rows,)),
        "lines": (np.dtype("<u4"), (written.rows,)),
        "image_ids": (ids.dtype, ids.shape),
    }
    arrays = {
        name: {"dtype": dtype.str, "shape": list(shape), "digest": file_digest(folder / f"{name}.bin")}
        for name, (dtype, shape) in shapes.items()
    }
    manifest = {
        "format": FORMAT,
        **facts,
        "rows": written.rows,
        "kinds": {RowKind(kind).name.lower(): count for kind, count in sorted(written.kinds.items())},
        "sources": dict(sorted(written.sources.items())),
        "tags": dict(written.tags.most_common(MAX_TAG_NAMES)),
        "arrays": arrays,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _tokenized(
    chunks: list[Chunk], tokenizer: PreTrainedTokenizerBase, workers: int, stack: ExitStack
) -> Iterator[Part]:
    work = partial(tokenize_chunk, tokenizer=tokenizer)
    if workers < 2 or len(chunks) < 2:
        return map(work, chunks)
    # Spawned, not forked: the caller may hold threads and locks of torch or HDF5.
    pool = stack.enter_context(SpawnedPool(workers))
    return pool.map(work, chunks)


class _WrittenParts:
    """What is known once the parts are on the disk; images are numbered at the end, when all are known."""

    def __init__(self) -> None:
        self.rows = 0
        self.tokens = 0
        self.kinds: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.part_ids: list[np.ndarray] = []
        self.part_images: list[np.ndarray] = []

    def add(self, part: Part) -> None:
        self.rows += len(part.kinds)
        self.tokens += len(part.tokens)
        self.kinds.update(part.kinds.tolist())
        self.sources.update(part.sources)
        self.tags.update(part.tags)
        self.part_ids.append(part.image_ids)
        self.part_images.append(part.images.astype("<i4"))

    def write_images(self, folder: Path) -> np.ndarray:
        """Writes images.bin and image_ids.bin; returns the ids."""
        ids = np.unique(np.concatenate(self.part_ids))
        with (folder / "images.bin").open("wb") as file:
            for part_ids, images in zip(self.part_ids, self.part_images, strict=True):
                numbers = np.searchsorted(ids, part_ids.astype(ids.dtype))
                file.write(numbers[images].astype("<i4").tobytes())
        (folder / "image_ids.bin").write_bytes(ids.tobytes())
        return ids


def _write_arrays(parts: Iterator[Part], folder: Path) -> _WrittenParts:
    """Appends the arrays of the parts, in order, to the files of the index."""
    written = _WrittenParts()
    with ExitStack() as stack:
        names = ("tokens", "lengths", "starts", "kinds", "lines")
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}
        for part in parts:
            ends = np.cumsum(part.lengths.sum(axis=1, dtype=np.int64))
            starts = written.tokens + np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
            if len(part.kinds) == 0:
                continue
            files["tokens"].write(part.tokens.tobytes())
            files["lengths"].write(part.lengths.tobytes())
            files["starts"].write(starts.astype("<i8").tobytes())
            files["kinds"].write(part.kinds.tobytes())
            files["lines"].write(part.lines.tobytes())
            written.add(part)
    return written

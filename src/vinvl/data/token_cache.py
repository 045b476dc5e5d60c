"""Token ids of many texts on the disk: a split is tokenized once, and from then on read."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from pytorch_lightning.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from vinvl.data.columns import TextColumn
from vinvl.data.text import RaggedTokens, Texts, encode_texts, plain_backend
from vinvl.errors import UserError
from vinvl.files import atomic_write, lock, system_error
from vinvl.progress import progress

LEAST_TEXTS = 50_000  # fewer are tokenized faster than a person notices
MAGIC = b"vinvltk1"
HEADER = len(MAGIC) + 24  # then numbers of texts and of ids, and the checksum of what follows
PARALLELISM = "TOKENIZERS_PARALLELISM"


def cached_tokens(tokenizer: PreTrainedTokenizerBase, texts: Texts, folder: Path | None) -> RaggedTokens:
    """`encode_texts`, from a file in `folder` where these very texts were tokenized by this very tokenizer before.

    The file is read whole, some 50 bytes a text: where a mapped file is cut short the process ends without a word. One
    process tokenizes, others wait for it. A file that is damaged is made anew. Where the folder cannot be written to,
    or there is none, texts are tokenized in memory.
    """
    if folder is None or len(texts) < LEAST_TEXTS:
        return encode_texts(tokenizer, texts)
    column = texts if isinstance(texts, TextColumn) else TextColumn.from_texts(texts[i] for i in range(len(texts)))
    path = folder / f"{cache_key(tokenizer, column)}.tokens"
    found = _read(path, len(column), len(tokenizer))
    if found is not None:
        return found
    tokens: RaggedTokens | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            found = _read(path, len(column), len(tokenizer))  # another rank may have made it while this one waited
            if found is not None:
                return found
            tokens = _encode(tokenizer, column)
            _write(path, tokens)
    except (OSError, UserError) as error:
        failed = system_error(error)
        rank_zero_warn(
            f"data.token_cache: {folder} cannot be written to ({failed and failed.strerror}), so texts are tokenized "
            "at every start: pass data.token_cache=DIR, or null."
        )
        return encode_texts(tokenizer, texts) if tokens is None else tokens
    return tokens


def cache_key(tokenizer: PreTrainedTokenizerBase, texts: TextColumn) -> str:
    """A word that other texts, another order of them, or another tokenizer have otherwise."""
    digest = hashlib.sha256(json.dumps(_identity(tokenizer), sort_keys=True).encode())
    first, last = (int(texts.offsets[0]), int(texts.offsets[-1])) if len(texts.offsets) else (0, 0)
    digest.update(np.ascontiguousarray(texts.offsets - first, dtype=np.int64).data)
    digest.update(np.ascontiguousarray(texts.data[first:last]).data)
    return digest.hexdigest()[:32]


def _identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """All that decides which ids a text gets."""
    backend = plain_backend(tokenizer)
    rules = [sorted(tokenizer.get_vocab().items()), repr(tokenizer)] if backend is None else backend.to_str()
    splits = bool(getattr(tokenizer, "split_special_tokens", False))
    return [tokenizers.__version__, type(tokenizer).__name__, tokenizer.special_tokens_map, splits, rules]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: TextColumn) -> RaggedTokens:
    """On all cores, with progress where a person looks on."""
    before = os.environ.get(PARALLELISM)
    if multiprocessing.parent_process() is None:  # threads that the parent had are gone in a forked process
        os.environ[PARALLELISM] = "true"
    try:
        with progress("texts", len(texts)) as tell:
            return encode_texts(tokenizer, texts, tell)
    finally:  # data workers are forked later, and the threads do not survive that
        os.environ[PARALLELISM] = "false" if before is None else before


def _read(path: Path, texts: int, words: int) -> RaggedTokens | None:
    """What the file holds; None if there is none, or none of so many texts with ids of so many words."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
        header = data[:HEADER].tobytes()
    except (OSError, MemoryError):
        return None
    count, total, checksum = np.frombuffer(header[len(MAGIC) :].ljust(24, b"\0"), dtype="<i8").tolist()
    middle = HEADER + 8 * (texts + 1)
    if header[: len(MAGIC)] != MAGIC or count != texts or total < 0 or len(data) != middle + 4 * total:
        return None
    offsets, values = data[HEADER:middle].view("<i8"), data[middle:].view("<i4")
    sound = zlib.crc32(data[HEADER:].data) == checksum and offsets[0] == 0 and offsets[-1] == total
    if not sound or not (np.diff(offsets) >= 0).all() or (total and not 0 <= values.min() <= values.max() < words):
        return None
    return RaggedTokens(values=values, offsets=offsets)


def _write(path: Path, tokens: RaggedTokens) -> None:
    """The whole file or none."""
    offsets, values = tokens.offsets.astype("<i8"), tokens.values.astype("<i4")
    checksum = zlib.crc32(values.data, zlib.crc32(offsets.data))
    with atomic_write(path, "wb") as file:
        file.write(MAGIC + np.array([len(tokens), len(values), checksum], dtype="<i8").tobytes())
        file.write(offsets.data)
        file.write(values.data)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of all at a time."""
    with (folder / ".lock").open("w") as file:
        lock(file.fileno(), wait=True)
        yield

"""Text as token ids: tokenizers, ragged token columns and their cache, pair truncation, segments.

`[CLS] question [SEP] tags [SEP]` with segment (token type) 0 for the question part and 1 for the tags.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from tokenizers import Tokenizer

from vinvl.data.table import Column, is_as_written, map_batch, plain_numbers, write_batch
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, json_object, lock, system_error
from vinvl.run.folders import process_rank
from vinvl.run.hub import fetch, tokenizer_files
from vinvl.run.progress import progress

if TYPE_CHECKING:  # doors without a tokenizer answer before seconds of imports
    from transformers import PreTrainedTokenizerBase

NEEDED_TOKENS = ("cls_token", "sep_token", "pad_token", "mask_token")
INSERTED = re.compile(r'"(?:content|prepend)": "((?:[^"\\]|\\.)*)"')  # by rules of a tokenizer.json
MOST_INSERTED = 8  # characters; published rules insert up to 5, and each may double a text
LARGEST_ID = 2**24  # there are published vocabularies of 2^18
NO_NUMBERS = "its vocabulary has numbers that no model has"
# Names in a tokenizer_config.json; "AutoTokenizer" and what is no tokenizer would be asked to load the folder too.
TOKENIZER_CLASSES = re.compile(r"(?!Auto)\w*Tokenizer(Fast)?|TokenizersBackend|PythonBackend")
ENCODE_CHUNK = 10_000  # texts handed to the tokenizer at once: bounds the memory of its Python lists
LEAST_BY_WORDS = 1_000  # of fewer texts it is not worth looking at the tokenizer's rules


def load_tokenizer(name_or_folder: str | Path) -> PreTrainedTokenizerBase:
    """A transformers tokenizer from a folder or a hub name. Code that comes with it is never run, nor asked for.

    Raises:
        UserError: nothing loadable is there, it needs code of its own, or it lacks [CLS], [SEP], [PAD] or [MASK]; or,
            of a name on the hub, as `vinvl.run.hub.fetch`.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig

    folder, _ = find_tokenizer_folder(name_or_folder)

    def load() -> PreTrainedTokenizerBase:
        # Only what these two say of its kind is taken over: other values of a config.json may fill the memory.
        model, own = (_said_in(folder, file) for file in ("config.json", "tokenizer_config.json"))
        # The published folders have a vocabulary, and nothing that tells whose it is.
        kind = model.get("model_type", None if own or not (folder / "vocab.txt").is_file() else "bert")
        config = AutoConfig.for_model(kind) if isinstance(kind, str) and kind in CONFIG_MAPPING else PreTrainedConfig()
        for said in (model, own):
            class_name = said.get("tokenizer_class")
            if class_name is not None and not TOKENIZER_CLASSES.fullmatch(str(class_name)):
                raise ValueError(f"{class_name!r} is no tokenizer's class")
        config.tokenizer_class = model.get("tokenizer_class")
        if "fast_tokenizer_files" in own:
            raise ValueError("it names another file than tokenizer.json")
        # Rules could make a text grow until it fills the memory.
        ready = _said_in(folder, "tokenizer.json")
        _refuse_numbers(ready)
        rules = json.dumps(ready.get("normalizer"), ensure_ascii=False)
        if (inserted := len("".join(INSERTED.findall(rules)))) > MOST_INSERTED:
            raise ValueError(f"its rules insert {inserted:,} characters, {MOST_INSERTED} may be")
        # A vocabulary that does not say is lower-case; BERT's tokenizer of transformers 5.0 would take it for cased.
        unsaid = kind == "bert" and "do_lower_case" not in own and not (folder / "tokenizer.json").is_file()
        cased = {"do_lower_case": True} if unsaid else {}
        return AutoTokenizer.from_pretrained(str(folder), config=config, trust_remote_code=False, **cased)

    return opened_tokenizer(load, str(name_or_folder))


def _refuse_numbers(ready: Mapping[str, Any]) -> None:
    """ValueError for a vocabulary with numbers for which transformers 5.0 would fill the memory."""
    model = ready.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else ()
    if not all(isinstance(number, int) and 0 <= number < LARGEST_ID for number in numbers):
        raise ValueError(NO_NUMBERS)


def find_tokenizer_folder(given: str | Path) -> tuple[Path, str | None]:
    """The folder that a path or a name on the hub stands for; of the latter NAME@COMMIT. UserError as `fetch`."""
    folder = Path(given).expanduser()
    if os.path.isdir(folder):  # Path's own would raise for a name that is too long
        return folder, None
    found = fetch(given, "tokenizer folder", "tokenizer.json or vocab.txt", tokenizer_files)
    return found.folder, found.name


def _said_in(folder: Path, file: str) -> dict[str, Any]:
    """The content of a JSON file in a folder; {} if there is none."""
    return json_object(folder / file) if (folder / file).is_file() else {}


def opened_tokenizer(load: Callable[[], PreTrainedTokenizerBase], name: str) -> PreTrainedTokenizerBase:
    """What `load` loads, which any file may have decided, compared with what a BERT-style tokenizer has.

    Raises:
        UserError: it cannot be loaded, cannot encode a text, or has no [CLS], [SEP], [PAD] or [MASK].
    """
    # The tokenizer's own thread pool warns and may dead-lock once data workers are forked.
    os.environ.setdefault(PARALLELISM, "false")
    try:
        tokenizer = load()
        missing = [token for token in NEEDED_TOKENS if getattr(tokenizer, token) is None]
        vocabulary = tokenizer.get_vocab()
        special = [getattr(tokenizer, token) for token in (*NEEDED_TOKENS, "unk_token")]
        if not missing and not all(word is None or word in vocabulary for word in special):
            raise ValueError("its special tokens are not in its vocabulary")
        if not all(0 <= number < LARGEST_ID for number in vocabulary.values()):
            raise ValueError(NO_NUMBERS)
        _encoder(tokenizer)(["a \u16a0 token"])  # one of which is in no vocabulary
    except BaseException as error:  # transformers raises many unrelated types
        reason = _reason(error)
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, and no code from a model's folder is run"
        raise UserError(
            f"No tokenizer could be loaded from '{name}' ({reason}): "
            "give data.tokenizer a transformers tokenizer folder, or a hub name such as bert-base-uncased."
        ) from error
    if missing:
        raise UserError(f"The tokenizer '{name}' has no {', '.join(missing)}: a BERT-style tokenizer is needed.")
    return tokenizer


def _reason(error: BaseException) -> str:
    """What a tokenizer's error says; raises it again where a person or the system ends the process."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of the Rust part
        raise error
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of many texts in two arrays: row i is `values[offsets[i]:offsets[i + 1]]`.

    Two arrays instead of a list of lists: forked data workers share them without copying.
    """

    values: np.ndarray  # (ΣL,) int32
    offsets: np.ndarray  # (N + 1,) int64

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> RaggedTokens:
        """Texts whose tokens are given."""
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        values = np.fromiter(chain.from_iterable(texts), dtype=np.int32, count=int(lengths.sum()))
        return cls.of_lengths(values, lengths)

    @classmethod
    def of_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> RaggedTokens:
        """Texts of these lengths (N,), one after the other."""
        return cls(values, np.insert(np.cumsum(lengths, dtype=np.int64), 0, 0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens in each text."""
        return np.diff(self.offsets)

    def joined(self, rows: np.ndarray) -> np.ndarray:
        """The tokens of these texts, one text after the other: how tags, in region order, become one segment."""
        starts = self.offsets[rows]
        return np.asarray(self.values[flat_ranges(starts, self.offsets[rows + 1] - starts)])


def flat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(Σ lengths,) int64: starts[0], starts[0] + 1, … lengths[0] of them, then those of starts[1], …"""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


Texts = Sequence[str] | Column


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Texts, tell: Callable[[int], None] | None = None
) -> RaggedTokens:
    """Token ids of each text, without special tokens and without truncation; `tell` hears how many are done."""
    encode, by_words = _encoder(tokenizer), len(texts) >= LEAST_BY_WORDS and _stand_apart(tokenizer)
    parts, size = [RaggedTokens.of([])], ENCODE_CHUNK * (5 if by_words else 1)
    for start in range(0, len(texts), size):
        chunk = list(texts[start : start + size])
        try:
            parts.append(_encode_words(encode, chunk) if by_words else RaggedTokens.of(encode(chunk)))
        except BaseException as error:  # a word without a number and no [UNK], half of a character, an endless search
            raise UserError(f"The tokenizer cannot encode one of the texts ({_reason(error)}).") from error
        if tell is not None:
            tell(start + len(chunk))
    lengths = np.concatenate([part.lengths() for part in parts])
    return RaggedTokens.of_lengths(np.concatenate([part.values for part in parts]), lengths)


def _stand_apart(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of a text are those of its parts between blanks, one after the other, as BERT's are.

    Its normaliser and rules for words look at nothing across a blank, and models at one word; an added token could.
    """
    own = _plain_backend(tokenizer)
    rules = {} if own is None else json.loads(own.to_str())
    kinds = [(rules.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer")]
    return kinds == ["BertNormalizer", "BertPreTokenizer"] and not any(
        " " in one["content"] or one["normalized"] or one["lstrip"] or one["rstrip"] for one in rules["added_tokens"]
    )


def _encode_words(encode: Callable[[list[str]], list[list[int]]], texts: list[str]) -> RaggedTokens:
    """Token ids of texts whose parts between blanks stand apart: each different part is encoded once."""
    parts = Column(pc.split_pattern(Column.of(texts).values, " "))
    words, codes = parts.flat().categories()
    tokens = RaggedTokens.of(encode(words))
    ends = np.insert(np.cumsum(tokens.lengths()[codes]), 0, 0)
    return RaggedTokens(tokens.joined(codes), ends[parts.starts()])


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Texts → token ids. A fast tokenizer's Rust part is asked itself: transformers makes much else of its answers."""
    own = _plain_backend(tokenizer)
    if own is None:
        options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return lambda texts: tokenizer(texts, **options)["input_ids"]
    return lambda texts: [one.ids for one in own.encode_batch_fast(texts, add_special_tokens=False)]


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """The Rust part of a fast tokenizer, a copy that neither cuts nor pads; None if there is more to it than that."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    method = getattr(type(tokenizer), "_encode_plus", None)
    # A class of its own ways with texts has them in a method of its own.
    if backend is None or method is None or not method.__module__.startswith("transformers.tokenization_utils"):
        return None
    own: Tokenizer = Tokenizer.from_str(backend.to_str())
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    return own


# Pairs of texts.


def truncated_lengths(first: int, second: int, limit: int) -> tuple[int, int]:
    """Lengths of a pair after the published truncation to `limit` tokens in all.

    The published code removes one token at a time from the longer side; on a tie the second side loses one. This is
    its closed form: the longer side shrinks to the shorter one's length, then both shrink in turn, the second first.
    """
    excess = first + second - limit
    if excess <= 0:
        return first, second
    level = min(excess, abs(first - second))
    rest = excess - level
    if first > second:
        first -= level
    else:
        second -= level
    return max(first - rest // 2, 0), max(second - (rest + 1) // 2, 0)


def assemble_pair(
    first: np.ndarray, second: np.ndarray, *, max_tokens: int, cls_token_id: int, sep_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`, truncated to `max_tokens` in all.

    Args:
        first: (n,) token ids of the text.
        second: (m,) token ids of the tags; none for a text without tags.
        max_tokens: limit over both sides and the special tokens.

    Returns:
        input_ids (L,) int64 and token_type_ids (L,) int64, without padding.
    """
    keep_first, keep_second = max(max_tokens - 2, 0), 0
    if len(second):
        keep_first, keep_second = truncated_lengths(len(first), len(second), max_tokens - 3)
    parts: list[Any] = [[cls_token_id], first[:keep_first], [sep_token_id]]
    if len(second):
        parts += [second[:keep_second], [sep_token_id]]
    input_ids = np.concatenate(parts).astype(np.int64)
    token_type_ids = np.zeros(len(input_ids), dtype=np.int64)
    token_type_ids[len(parts[1]) + 2 :] = 1
    return input_ids, token_type_ids


# Token ids of many texts on the disk: a split is tokenized once, and from then on mapped.


LEAST_TEXTS = 50_000  # fewer are tokenized faster than a person notices
PARALLELISM = "TOKENIZERS_PARALLELISM"
TOKENS = pa.schema({"tokens": pa.large_list(pa.int32())})  # of each text


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """24 hexadecimal digits that change with all that decides which ids a text gets."""
    own = _plain_backend(tokenizer)
    if own is None:
        rules: Any = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "said": repr(tokenizer)}
    else:
        rules = {key: rule for key, rule in json.loads(own.to_str()).items() if key not in ("truncation", "padding")}
        rules |= {"split_special_tokens": True} if own.encode_special_tokens else {}
    return hashlib.blake2b(json.dumps(rules, sort_keys=True).encode(), digest_size=12).hexdigest()


def cached_tokens(tokenizer: PreTrainedTokenizerBase, texts: Texts, folder: Path | None) -> RaggedTokens:
    """`encode_texts`, from a file in `folder` where these very texts were tokenized by this very tokenizer before.

    One process tokenizes, others wait for it. A damaged file is made again. If the folder cannot be written
    to, or there is none, texts are tokenized in memory.
    """
    if folder is None or len(texts) < LEAST_TEXTS:
        return encode_texts(tokenizer, texts)
    column = texts if isinstance(texts, Column) else Column.of(texts)
    path = folder / f"{cache_key(tokenizer, column)}.arrow"
    tokens = _read(path, len(column), len(tokenizer))
    if tokens is not None:
        return tokens
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as alone:
            lock(alone.fileno(), wait=True)
            tokens = _read(path, len(column), len(tokenizer))  # another rank may have made it while this one waited
            if tokens is None:
                tokens = _encode(tokenizer, column)
                with atomic_write(path, "wb") as file:
                    lists = pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(tokens.values))
                    write_batch(file, {"tokens": lists})
    except (OSError, UserError) as error:
        failed = system_error(error)
        if process_rank() == 0:
            warnings.warn(
                f"data.token_cache: {folder} cannot be written to ({failed and failed.strerror}), so texts are "
                "tokenized at every start: pass data.token_cache=DIR, or null.",
                stacklevel=2,
            )
    return encode_texts(tokenizer, texts) if tokens is None else tokens


def cache_key(tokenizer: PreTrainedTokenizerBase, texts: Column) -> str:
    """A word that other texts, another order of them, another tokenizer or release of its library have otherwise."""
    digest = hashlib.sha256(f"{tokenizer_fingerprint(tokenizer)} {tokenizers.__version__} ".encode())
    digest.update(np.insert(np.cumsum(pc.binary_length(texts.values).to_numpy(), dtype=np.int64), 0, 0).data)
    for chunk in texts.values.chunks:
        _, offsets, letters = chunk.buffers()
        if len(chunk) and letters is not None:
            first, last = np.frombuffer(offsets, dtype=np.int32)[[chunk.offset, chunk.offset + len(chunk)]].tolist()
            digest.update(letters[first:last])
    return digest.hexdigest()[:32]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Column) -> RaggedTokens:
    """On all cores, with progress where a person looks on."""
    before = os.environ.get(PARALLELISM, "false")
    if multiprocessing.parent_process() is None:  # threads that the parent had are gone in a forked process
        os.environ[PARALLELISM] = "true"
    try:
        with progress("texts", len(texts)) as tell:
            return encode_texts(tokenizer, texts, tell)
    finally:  # data workers are forked later, and the threads do not survive that
        os.environ[PARALLELISM] = before


def _read(path: Path, texts: int, words: int) -> RaggedTokens | None:
    """What the file holds; None if there is none, or none of so many texts with ids of so many words."""
    try:
        batch = map_batch(path)
        if not batch.schema.equals(TOKENS) or len(batch) != texts or not is_as_written(batch):
            return None
        (column,) = batch.columns
        values, offsets = plain_numbers(column.values), plain_numbers(column.offsets)
    except (OSError, ValueError):
        return None
    sound = not len(values) or 0 <= values.min() <= values.max() < words
    return RaggedTokens(values, offsets) if sound else None

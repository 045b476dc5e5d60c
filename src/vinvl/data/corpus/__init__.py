"""The pre-training corpus: rows of JSONL, tokenized once into arrays that are read through memory maps."""

from vinvl.data.corpus.build import ensure_index, index_folder
from vinvl.data.corpus.fingerprint import tokenizer_fingerprint
from vinvl.data.corpus.index import Corpus, RowKind
from vinvl.data.corpus.mixture import CorpusShare, Mixture

__all__ = [
    "Corpus",
    "CorpusShare",
    "Mixture",
    "RowKind",
    "ensure_index",
    "index_folder",
    "tokenizer_fingerprint",
]

"""The pre-training corpus: rows of JSONL, tokenized once into arrays that are read through memory maps."""

from vinvl.pretraining.corpus.build import ensure_index, index_folder
from vinvl.pretraining.corpus.fingerprint import tokenizer_fingerprint
from vinvl.pretraining.corpus.index import Corpus
from vinvl.pretraining.corpus.mixture import CorpusShare, Mixture
from vinvl.pretraining.corpus.rows import RowKind

__all__ = [
    "Corpus",
    "CorpusShare",
    "Mixture",
    "RowKind",
    "ensure_index",
    "index_folder",
    "tokenizer_fingerprint",
]

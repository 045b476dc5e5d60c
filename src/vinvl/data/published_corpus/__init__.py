"""The corpus that Oscar+ was pre-trained on, as published (yaml and TSV files) → corpus files of this package."""

from vinvl.data.published_corpus.convert import Conversion, convert_published_corpus
from vinvl.data.published_corpus.settings import PublishedCorpus, read_settings

__all__ = ["Conversion", "PublishedCorpus", "convert_published_corpus", "read_settings"]

"""How many images' references hold an n-gram: the table behind CIDEr's weights, and its file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from vinvl.data.json_files import read_json
from vinvl.errors import UserError
from vinvl.files import write_text_atomically
from vinvl.metrics.captions.ngrams import MAX_N

FORMAT_NAME = "vinvl document frequencies"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DocumentFrequencies:
    """N-grams (words joined by single blanks) with the number of images that have one in any of their references.

    An n-gram weighs log(num_images) − log(max(1, frequency)), so those of one image need not be listed: they weigh what
    an n-gram never seen weighs. `num_images` need not be whole; published tables give a "reference length" instead.

    Raises UserError if the numbers make no sense (see `write` for the file).
    """

    num_images: float
    frequencies: Mapping[str, float]

    def __post_init__(self) -> None:
        problem = _problem(self.num_images, self.frequencies)
        if problem is not None:
            raise UserError(f"The document-frequency table {problem}")

    def write(self, path: str | Path) -> None:
        """Writes the table as JSON: {"format", "version", "num_images", "frequencies": {"a cat": 2, …}}."""
        content = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "num_images": self.num_images,
            "frequencies": dict(self.frequencies),
        }
        write_text_atomically(path, json.dumps(content, ensure_ascii=False, indent=0) + "\n")


def read_document_frequencies(path: str | Path) -> DocumentFrequencies:
    """Reads a table that `DocumentFrequencies.write` wrote.

    Published tables are Python pickles, which can run any code when opened and are therefore not read.

    Raises UserError if the file is missing, is no such table or has numbers that make no sense.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise UserError(f"{path} is no document-frequency table of vinvl; its format is not {FORMAT_NAME!r}.")
    if content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has version {str(content.get('version'))[:20]}, this vinvl reads version {FORMAT_VERSION}; "
            "update vinvl or write the table again."
        )
    frequencies = content.get("frequencies")
    if not isinstance(frequencies, dict):
        raise UserError(f"{path} has no object under 'frequencies'; write the table again.")
    num_images: Any = content.get("num_images")
    problem = _problem(num_images, frequencies)
    if problem is not None:
        raise UserError(f"{path} {problem}")
    return DocumentFrequencies(num_images, frequencies)


def _problem(num_images: object, frequencies: Mapping[str, object]) -> str | None:
    """What is wrong with a table, as the end of a sentence; None if it is sound."""
    if not _is_number(num_images) or not 1 <= num_images < float("inf"):
        return f"counts {num_images!r} images; it should be a number of 1 or more."
    for ngram, frequency in frequencies.items():
        words = ngram.split()
        if not 1 <= len(words) <= MAX_N or " ".join(words) != ngram:
            return f"lists {ngram!r}; expected 1 to {MAX_N} words joined by single blanks."
        if not _is_number(frequency) or not 0 <= frequency <= num_images:
            return f"gives {ngram!r} the frequency {frequency!r}; expected 0 to the number of images, {num_images:g}."
    return None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)

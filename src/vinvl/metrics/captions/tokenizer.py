"""Captions as lists of words, the way the caption metrics want them."""

import re
from collections.abc import Callable, Sequence

CaptionTokenizer = Callable[[Sequence[str]], list[list[str]]]
"""Texts to words, many at once because the Java tokenizer takes seconds to start."""

_WORD = re.compile(r"[a-z0-9]+('[a-z]+)?")


def regex_tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Lower-cases and keeps runs of ASCII letters and digits, with one apostrophe ending such as "'s" attached.

    Without Java this comes closest to the PTB tokenizer of the COCO evaluation (`vinvl.metrics.captions.java`): on
    COCO captions every score agrees to about 0.001. Splitting at blanks does not: punctuation glued to words costs
    0.09 of CIDEr. A text without such a character, for instance one in another script, has no words.
    """
    return [[match.group() for match in _WORD.finditer(text.lower())] for text in texts]


def split_at_blanks(texts: Sequence[str]) -> list[list[str]]:
    """For texts that are tokenised already: words separated by white space."""
    return [text.split() for text in texts]

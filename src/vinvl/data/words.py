"""Captions as lists of words, as the caption metrics expect them."""

import unicodedata
from collections.abc import Callable, Sequence

import regex

from vinvl.run.errors import UserError

CaptionTokenizer = Callable[[Sequence[str]], list[list[str]]]
"""Texts to words, many at once because the Java tokenizer takes seconds to start."""

# Han, kana and what Unicode breaks by dictionary (Thai, Lao, Khmer, Myanmar): scripts without blanks between words.
_UNSPACED = r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Line_Break=SA}]"
_LETTER, _MORE = rf"[\p{{L}}--{_UNSPACED}]", rf"[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]"
_WORD = regex.compile(rf"(?V1)(?=[\p{{L}}\p{{N}}])(?:{_UNSPACED}\p{{M}}*|{_MORE}+(?:'{_LETTER}[{_LETTER}\p{{M}}]*)?)")
# Marks of direction and joiners stand within words and are no part of them; a zero width space parts words.
_UNSEEN = regex.compile(r"(?V1)[\p{Cf}--\u200b]")


def regex_tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Lower-cases and keeps runs of letters, their marks and digits, with one apostrophe ending such as "'s" attached.

    Without Java this comes closest to the PTB tokenizer of the COCO evaluation (`vinvl.captioning.java`): on
    COCO captions every score agrees to about 0.001. Splitting at blanks does not: punctuation glued to words costs
    0.09 of CIDEr. Letters are those of every script; if a script puts no blanks between words (Chinese, Japanese,
    Thai, Khmer), each letter with its marks counts as a word. Two ways to encode a letter are one.
    """
    return [_WORD.findall(text.lower() if text.isascii() else _plain(text)) for text in texts]


def _plain(text: str) -> str:
    """Lower case, one encoding of each letter, nothing unseen, and one sign for the apostrophe."""
    lowered = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    return _UNSEEN.sub("", unicodedata.normalize("NFKC", lowered))


def split_at_blanks(texts: Sequence[str]) -> list[list[str]]:
    """For texts that are tokenised already: words separated by white space."""
    return [text.split() for text in texts]


def no_words(reference: str, domain: str | None = None) -> UserError:
    """Raised if no reference caption has a word, because everything compared with them would score 0."""
    where = "" if domain is None else f" of domain {domain!r}"
    return UserError(
        f"No reference caption{where} has a letter or a digit of any script (the first is {reference[:60]!a}), so "
        "every caption would score 0: check the file and its encoding."
    )

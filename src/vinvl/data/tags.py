"""Object tags as tokens: the class names of an image's regions, in the order of the regions."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.data.store import LabelMap
from vinvl.data.text import RaggedTokens, encode_texts, gather_tokens

BACKGROUND = 0


@dataclass(frozen=True)
class TagTokens:
    """Token ids of every class name, tokenized once; an image's tags are looked up, never tokenized again.

    Tags are joined by blanks in the published code, and a WordPiece tokenizer splits at blanks, so the tokens of the
    joined tags are the joined tokens of the tags.
    """

    names: tuple[str, ...]
    tokens: RaggedTokens

    @classmethod
    def of(cls, label_map: LabelMap, tokenizer: PreTrainedTokenizerBase) -> "TagTokens":
        return cls(names=label_map.classes, tokens=encode_texts(tokenizer, label_map.classes))

    def encode(self, classes: np.ndarray) -> np.ndarray:
        """(n,) int32 token ids of the tags of regions with these class ids; background regions have no tag."""
        return gather_tokens(self.tokens, classes[classes != BACKGROUND])

    def count(self, classes: np.ndarray) -> int:
        """How many tokens `encode` gives."""
        return int(self.tokens.lengths()[classes[classes != BACKGROUND]].sum())

    def text(self, classes: np.ndarray) -> str:
        """The tags as people read them."""
        return ", ".join(self.names[index] for index in classes[classes != BACKGROUND])

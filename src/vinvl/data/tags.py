"""Object tags as tokens: the class names of an image's regions, or tags that a file gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.data.table import Column
from vinvl.data.text import RaggedTokens, encode_texts, gather_tokens
from vinvl.regions.regions import LabelMap, RegionSource
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import read_json

BACKGROUND = 0


class TagSource(Protocol):
    """Where the tags of an image come from. Images are named by their position in the store of the regions."""

    def encode(self, image: int, max_regions: int) -> np.ndarray:
        """(n,) int32 token ids of an image's tags, of its `max_regions` most confident regions at most."""

    def counts(self, images: np.ndarray, max_regions: int) -> np.ndarray:
        """(N,) int64: how many tokens `encode` gives for each image."""

    def text(self, image: int, max_regions: int) -> str:
        """The tags as people read them."""


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


@dataclass(frozen=True)
class StoreTags:
    """The class names of the regions, in the order of the regions.

    Attributes:
        store: whose classes are the tags: what the regions are from, or another detector's store of the same images.
        positions: (N,) int64 position in `store` of each image, -1 for none; None if `store` is the regions' own.
    """

    store: RegionSource
    tag_tokens: TagTokens
    positions: np.ndarray | None = None

    def _classes(self, image: int, max_regions: int) -> np.ndarray:
        position = image if self.positions is None else int(self.positions[image])
        if position < 0:
            return np.zeros(0, dtype=np.int64)
        return self.store.classes_at(position)[:max_regions]

    def encode(self, image: int, max_regions: int) -> np.ndarray:
        return self.tag_tokens.encode(self._classes(image, max_regions))

    def counts(self, images: np.ndarray, max_regions: int) -> np.ndarray:
        return np.array([self.tag_tokens.count(self._classes(int(i), max_regions)) for i in images], dtype=np.int64)

    def text(self, image: int, max_regions: int) -> str:
        return self.tag_tokens.text(self._classes(image, max_regions))


@dataclass(frozen=True)
class FileTags:
    """Tags that a file gives for each image; they do not depend on the number of regions."""

    texts: Column
    tokens: RaggedTokens

    def encode(self, image: int, max_regions: int) -> np.ndarray:
        return self.tokens[image]

    def counts(self, images: np.ndarray, max_regions: int) -> np.ndarray:
        return self.tokens.lengths()[images]

    def text(self, image: int, max_regions: int) -> str:
        return self.texts[image]


def tag_source(source: str | None, store: RegionStore, tokenizer: PreTrainedTokenizerBase) -> TagSource:
    """The tags of the images of `store`.

    Args:
        source: None for the classes of the store itself; the path of another RegionStore for its classes; or a JSON
            file of {image id: tags}, where tags are a list of names or one text joined by ";".

    Raises:
        UserError: no such file, a file of another shape, or one without any image of the store.
    """
    if source is None:
        return StoreTags(store, TagTokens.of(store.label_map, tokenizer))
    if not source.endswith(".json"):
        other = RegionStore(source)
        other.require_sound()
        positions = np.array([other.index_of(i) if i in other else -1 for i in store.image_ids], dtype=np.int64)
        _refuse_strangers(int((positions >= 0).sum()), source, store)
        return StoreTags(other, TagTokens.of(other.label_map, tokenizer), positions)
    found = _tags_by_image(source)
    _refuse_strangers(sum(str(image_id) in found for image_id in store.image_ids), source, store)
    texts = [" ".join(found.get(str(image_id), ())) for image_id in store.image_ids]
    return FileTags(Column.of(texts), encode_texts(tokenizer, texts))


def _refuse_strangers(known: int, source: str, store: RegionStore) -> None:
    if known == 0:
        raise UserError(
            f"{source} has tags of none of the {len(store):,} images of {store!r} (ids like '{store.at(0).image_id}'): "
            "pass data.tags=FILE of the same images, or data.tags=null for the classes in the store."
        )


def _tags_by_image(path: str) -> dict[str, Sequence[str]]:
    content = read_json(Path(path))
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a tag file: expected one JSON object of image id → list of tags.")
    tags: dict[str, Sequence[str]] = {}
    for image_id, value in content.items():
        names = value.split(";") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}, image {image_id}: its tags are {value!r}; give a list of names.")
        tags[image_id] = [name.strip() for name in names if name.strip()]
    return tags

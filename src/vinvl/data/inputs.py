"""What every dataset shares: a text and an image of the store → the tokens, tags and regions that a model sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.data.batch import Example, ImageRegions
from vinvl.data.table import Column
from vinvl.data.text import RaggedTokens, assemble_pair, encode_texts
from vinvl.models.config import SpecialTokens
from vinvl.regions.regions import LabelMap, Regions, RegionSource
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import read_json

BACKGROUND = 0

# Object tags: the class names of an image's regions, or what a file gives. Images are named by their position in the
# store of the regions.


class TagSource(Protocol):
    """Where the tags of an image come from."""

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


@dataclass(frozen=True)
class StoreTags:
    """The class names of the regions, in the order of the regions; background regions have none.

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
        classes = self.store.classes_at(position)[:max_regions]
        return classes[classes != BACKGROUND]

    def encode(self, image: int, max_regions: int) -> np.ndarray:
        return self.tag_tokens.tokens.joined(self._classes(image, max_regions))

    def counts(self, images: np.ndarray, max_regions: int) -> np.ndarray:
        lengths = self.tag_tokens.tokens.lengths()
        return np.array([lengths[self._classes(one, max_regions)].sum() for one in images.tolist()], dtype=np.int64)

    def text(self, image: int, max_regions: int) -> str:
        return ", ".join(self.tag_tokens.names[index] for index in self._classes(image, max_regions))


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
        positions = positions_in(other, store.image_ids)
        _refuse_strangers(bool((positions >= 0).any()), source, store)
        return StoreTags(other, TagTokens.of(other.label_map, tokenizer), positions)
    tags, image_ids = _tags_by_image(source), [str(image_id) for image_id in store.image_ids]
    _refuse_strangers(not tags.keys().isdisjoint(image_ids), source, store)
    texts = [" ".join(tags.get(image_id, ())) for image_id in image_ids]
    return FileTags(Column.of(texts), encode_texts(tokenizer, texts))


def _refuse_strangers(known: bool, source: str, store: RegionStore) -> None:
    if not known:
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


def positions_in(store: RegionStore, image_ids: np.ndarray) -> np.ndarray:
    """Where images are in a store, int64 in the shape of their ids, which are text or numbers; -1 for none."""
    found = [store.index_of(one) if one in store else -1 for one in map(str, np.ravel(image_ids))]
    return np.array(found, dtype=np.int64).reshape(np.shape(image_ids))


# Text, tags and regions together.


@dataclass(frozen=True)
class InputLimits:
    """What of an example the model gets to see.

    Attributes:
        max_tokens: text and tags and special tokens together.
        max_regions: regions kept, from the most confident on.
        use_tags: False withholds the object tags.
        use_regions: False withholds the region features.
    """

    max_tokens: int
    max_regions: int
    use_tags: bool = True
    use_regions: bool = True


@dataclass(frozen=True)
class RegionText:
    """Puts texts and images together.

    Attributes:
        store: the regions: a RegionStore, or what a detector has just found.
        tags: the object tags of its images, by their position in the store.
        limits: what the model gets to see.
        special: ids of the tokenizer's special tokens.
        finite: images whose numbers this process has found to be finite: looking costs as much as copying them.
    """

    store: RegionSource
    tags: TagSource
    limits: InputLimits
    special: SpecialTokens
    finite: set[int] = field(default_factory=set, compare=False)

    def example(self, text: np.ndarray, image: int, max_tokens: int | None = None) -> Example:
        """`[CLS] text [SEP] tags [SEP]` with the image's regions; the caller adds labels and record.

        Args:
            text: (n,) token ids without special tokens.
            image: position in the store.
            max_tokens: where it is not the general limit.

        Raises:
            UserError: a feature of the image is not finite.
        """
        input_ids, token_type_ids = assemble_pair(
            text,
            self.tag_ids(image),
            max_tokens=self.limits.max_tokens if max_tokens is None else max_tokens,
            cls_token_id=self.special.cls_token_id,
            sep_token_id=self.special.sep_token_id,
        )
        return Example(input_ids, token_type_ids, self.image_regions(image))

    def tag_ids(self, image: int) -> np.ndarray:
        """(n,) int32 token ids of an image's tags; none where tags are withheld."""
        if not self.limits.use_tags:
            return np.zeros(0, dtype=np.int32)
        return self.tags.encode(image, self.limits.max_regions)

    def image_regions(self, image: int) -> ImageRegions:
        """The regions of an image, at most `max_regions`; none where regions are withheld.

        Raises:
            UserError: a feature or box is not finite.
        """
        regions: Regions = self.store.at(image)
        count = min(len(regions), self.limits.max_regions) if self.limits.use_regions else 0
        if count and image not in self.finite:
            regions.check_finite()
            self.finite.add(image)
        return ImageRegions(regions, count, image)

    def region_rows(self, image: int) -> np.ndarray:
        """(R, D) float32 region rows of `image_regions`."""
        return self.image_regions(image).rows()

    def image_lengths(self, images: np.ndarray) -> np.ndarray:
        """(N,) int64: tags and regions of each image, before truncation of the text."""
        distinct, inverse = np.unique(images, return_inverse=True)
        lengths = np.zeros(len(distinct), dtype=np.int64)
        if self.limits.use_regions:
            lengths += np.minimum(self.store.num_regions[distinct], self.limits.max_regions)
        if self.limits.use_tags:
            lengths += self.tags.counts(distinct, self.limits.max_regions)
        return lengths[inverse]

    def describe(self, example: Example, image: int, words: Sequence[str]) -> list[str]:
        """Lines that show a person what the model sees of an example; `words` are its tokens decoded."""
        tags = self.tags.text(image, self.limits.max_regions) or "(none)"
        return [
            f"  tokens    {' '.join(words)}",
            f"  tags      {tags if self.limits.use_tags else '(withheld: data.use_tags=false)'}",
            f"  regions   {len(example.regions)} rows of {example.regions.width} numbers",
        ]


@dataclass(frozen=True)
class PlacedImage:
    """An image, with what puts texts and it together.

    Attributes:
        region_text: of the store, or the detector's finds, that the image is in.
        image: its position there.
    """

    region_text: RegionText
    image: int

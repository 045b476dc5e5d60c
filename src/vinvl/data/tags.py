"""Object tags: the class names of an image's regions, or what a file or the records themselves give.

Images are named by their position in the store of the regions.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vinvl.data.table import Column, RecordTable
from vinvl.data.text import RaggedTokens, encode_texts
from vinvl.regions.regions import LabelMap, RegionSource
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, read_json
from vinvl.run.values import Id, decoded, wrong_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK_IMAGES = 1 << 14  # whose tags are counted at once
RECORDS = "records"  # data.tags: those that the records of a split carry
TagForm = Literal["class", "attribute+class"]

# The 80 classes of COCO's instances (Lin et al. 2014), in the order of their numbers.
COCO80 = tuple(
    """person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|
bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis|
snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|
knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|
dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|
vase|scissors|teddy bear|hair drier|toothbrush""".replace("\n", "").split("|")
)


class TagSource(Protocol):
    """Where the tags of an image come from.

    Tags `of_records` are named by the place of an image among all those of the records: with K images a record, image k
    of record i by i·K + k.
    """

    @property
    def of_records(self) -> bool: ...

    def encode(self, image: int, max_regions: int) -> np.ndarray:
        """(n,) int32 token ids of an image's tags, of its `max_regions` most confident regions at most."""

    def counts(self, images: np.ndarray, max_regions: int) -> np.ndarray:
        """(N,) int64: how many tokens `encode` gives for each image."""

    def text(self, image: int, max_regions: int) -> str:
        """The tags as people read them."""

    def named(self, image: int, max_regions: int) -> list[tuple[str, int]]:
        """Each tag with the number of its tokens, in the order of `encode`."""


@dataclass(frozen=True)
class TagChoice:
    """Which names become tags, and in what form.

    Attributes:
        vocabulary: only these names, in lower case; None for all.
        form: "class", or "attribute+class" for each region's surest attribute before its class (MMF's VinVL).
    """

    vocabulary: frozenset[str] | None = None
    form: TagForm = "class"

    @classmethod
    def of(cls, vocabulary: str | None, form: str) -> TagChoice:
        """From `data.tag_vocabulary`, "coco80" or a file of names, one a line or a JSON list, and `data.tag_form`.

        Raises UserError for another form, and a file that is missing or holds no names.
        """
        if form not in ("class", "attribute+class"):
            raise UserError(f"data.tag_form is {form!r}: choose class or attribute+class.")
        chosen: Any = form
        if vocabulary is None:
            return cls(None, chosen)
        names = COCO80 if vocabulary == "coco80" else _names_in(Path(vocabulary))
        return cls(frozenset(name.strip().lower() for name in names if name.strip()), chosen)

    def takes(self, name: str) -> bool:
        return self.vocabulary is None or name.strip().lower() in self.vocabulary


def _names_in(path: Path) -> list[str]:
    text = read_bytes(path).decode("utf-8-sig", "replace")
    try:
        names = msgspec.json.decode(text, type=list[str]) if text.lstrip().startswith("[") else text.splitlines()
    except msgspec.MsgspecError:
        names = []
    if not any(name.strip() for name in names):
        raise UserError(f"{path} holds no names of tags: data.tag_vocabulary takes one a line, or a JSON list of them.")
    return names


ALL_CLASSES = TagChoice()


@dataclass(frozen=True)
class TagTokens:
    """Token ids of every name, tokenized once; an image's tags are looked up, never tokenized again.

    Tags are joined by blanks in the published code, and a WordPiece tokenizer splits at blanks, so the tokens of the
    joined tags are the joined tokens of the tags.
    """

    names: tuple[str, ...]
    tokens: RaggedTokens
    kept: np.ndarray  # (names,) bool: which of them are tags
    first_attribute: int | None = None  # which name is the first attribute; None where attributes are no tags

    @classmethod
    def of(cls, names: Sequence[str], kept: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> TagTokens:
        return cls(tuple(names), encode_texts(tokenizer, names), np.array(kept, dtype=bool))

    @classmethod
    def of_labels(
        cls, labels: LabelMap, tokenizer: PreTrainedTokenizerBase, choice: TagChoice = ALL_CLASSES
    ) -> TagTokens:
        """Of the classes without the background, and where it is so chosen of the attributes behind them."""
        names = labels.classes or ("",)  # a store without names gives no tags
        kept = [number > 0 and choice.takes(name) for number, name in enumerate(names)]
        if choice.form == "class":
            return cls.of(names, kept, tokenizer)
        kept += [number > 0 for number in range(len(labels.attributes))]  # 0 is no attribute
        return replace(cls.of((*names, *labels.attributes), kept, tokenizer), first_attribute=len(names))


@dataclass(frozen=True)
class NumberedTags:
    """Tags that are numbers of names; which an image has says a class of this one."""

    tag_tokens: TagTokens

    def numbers(self, image: int, max_regions: int) -> np.ndarray:
        """(n,) the names that an image has, also those that are no tags."""
        raise NotImplementedError

    def kept(self, image: int, max_regions: int) -> np.ndarray:
        """(n,) the names of an image's tags."""
        numbers = self.numbers(image, max_regions)
        return numbers[self.tag_tokens.kept[numbers]]

    def encode(self, image: int, max_regions: int) -> np.ndarray:
        return self.tag_tokens.tokens.joined(self.kept(image, max_regions))

    def counts(self, images: np.ndarray, max_regions: int) -> np.ndarray:
        lengths = np.where(self.tag_tokens.kept, self.tag_tokens.tokens.lengths(), 0)
        totals = [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(images), BLOCK_IMAGES):
            names = [self.numbers(one, max_regions) for one in images[start : start + BLOCK_IMAGES].tolist()]
            sums = np.insert(np.cumsum(lengths[np.concatenate(names)]), 0, 0)
            totals.append(np.diff(sums[np.insert(np.cumsum([len(one) for one in names]), 0, 0)]))
        return np.concatenate(totals)

    def text(self, image: int, max_regions: int) -> str:
        return ", ".join(name for name, _ in self.named(image, max_regions))

    def named(self, image: int, max_regions: int) -> list[tuple[str, int]]:
        kept, lengths = self.kept(image, max_regions), self.tag_tokens.tokens.lengths()
        return [(self.tag_tokens.names[number], int(lengths[number])) for number in kept]


@dataclass(frozen=True)
class StoreTags(NumberedTags):
    """The class names of the regions, in the order of the regions; background regions have none.

    Attributes:
        store: whose classes are the tags: what the regions are from, or another detector's store of the same images.
        positions: (N,) int64 position in `store` of each image, -1 for none; None if `store` is the regions' own.
    """

    store: RegionSource
    positions: np.ndarray | None = None
    of_records: bool = False

    def numbers(self, image: int, max_regions: int) -> np.ndarray:
        position = image if self.positions is None else int(self.positions[image])
        if position < 0 or not self.store.label_map.classes:
            return np.zeros(0, dtype=np.int64)
        classes = self.store.classes_at(position)[:max_regions]
        if (first := self.tag_tokens.first_attribute) is None:
            return classes
        surest = self.store.at(position).attributes[:max_regions, :1] + first  # (R, 1), or (R, 0)
        return np.concatenate([surest, classes[:, None]], axis=1)[self.tag_tokens.kept[classes]].ravel()


@dataclass(frozen=True)
class GivenTags(NumberedTags):
    """Tags that somebody gives for each image; they do not depend on the number of regions.

    Attributes:
        given: (ΣT,) int32, the names of the tags of all lists.
        offsets: (lists + 1,) int64, where each list begins.
        list_of: (N,) int64, the list of each image; -1 for none.
        of_records: see `TagSource`.
    """

    given: np.ndarray
    offsets: np.ndarray
    list_of: np.ndarray
    of_records: bool = False

    def numbers(self, image: int, max_regions: int) -> np.ndarray:
        one = int(self.list_of[image])
        return self.given[self.offsets[one] : self.offsets[one + 1]] if one >= 0 else self.given[:0]

    def without(self, images: np.ndarray) -> int:
        """How many of these images, each counted once, nobody gives tags for; a list may be empty."""
        return int((self.list_of[np.unique(images)] < 0).sum())


@dataclass
class TagLists:
    """Lists of tags of N images, gathered one after the other in little memory."""

    list_of: np.ndarray  # (N,) int64, as in `GivenTags`
    numbers: dict[str, int] = field(default_factory=dict)  # of each name
    given: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("q", [0]))

    @classmethod
    def of_images(cls, images: int) -> TagLists:
        return cls(np.full(images, -1, dtype=np.int64))

    def add(self, image: int, names: Iterable[str]) -> bool:
        """The tags of an image; False if it has some already."""
        if self.list_of[image] >= 0:
            return False
        self.list_of[image] = len(self.ends) - 1
        self.given.extend(self.numbers.setdefault(name, len(self.numbers)) for name in names)
        self.ends.append(len(self.given))
        return True

    def tags(self, tokenizer: PreTrainedTokenizerBase, choice: TagChoice) -> GivenTags:
        names = list(self.numbers)
        tokens = TagTokens.of(names, [choice.takes(name) for name in names], tokenizer)
        return GivenTags(tokens, np.array(self.given, np.int32), np.array(self.ends, np.int64), self.list_of)


def tag_source(
    source: str | Sequence[str] | None,
    store: RegionStore,
    tokenizer: PreTrainedTokenizerBase,
    choice: TagChoice = ALL_CLASSES,
) -> TagSource:
    """The tags of the images of `store`.

    Args:
        source: None for the classes of the store itself; the path of another RegionStore for its classes; or one or
            more files of tags, which together name an image once: JSON of {image id: tags}, tags being a list of names
            or one text joined by ";"; published JSON of questions or statements, which carry them; or a published TSV
            of image id and objects.
        choice: which names become tags.

    Raises:
        UserError: no such file, a file of another shape or without any image of the store, or two lists for one image.
    """
    if source is None:
        return StoreTags(TagTokens.of_labels(store.label_map, tokenizer, choice), store)
    sources = [source] if isinstance(source, str) else list(source)
    if not {Path(one).suffix for one in sources} <= {".json", ".tsv"}:
        other = RegionStore(sources)
        other.require_sound()
        positions = positions_in(other, store.image_ids)
        _refuse_strangers(bool((positions >= 0).any()), ", ".join(sources), store)
        return StoreTags(TagTokens.of_labels(other.label_map, tokenizer, choice), other, positions)
    if choice.form != "class":
        raise UserError(f"data.tag_form={choice.form} needs a store: {sources[0]} has no attributes of regions.")
    lists = TagLists.of_images(len(store))
    for one in sources:
        for place, image_id, names in (_tags_of_tsv if one.endswith(".tsv") else _tags_of_json)(Path(one)):
            if image_id in store and not lists.add(store.index_of(image_id), names):
                raise UserError(f"{place} gives image {image_id} tags a second time; each image may have one list.")
    _refuse_strangers(len(lists.ends) > 1, ", ".join(sources), store)
    return lists.tags(tokenizer, choice)


def _refuse_strangers(known: bool, source: str, store: RegionStore) -> None:
    if not known:
        raise UserError(
            f"{source} has tags of none of the {len(store):,} images of {store!r} (ids like '{store.at(0).image_id}'): "
            "pass data.tags=FILE of the same images, or data.tags=null for the classes in the store."
        )


def positions_in(store: RegionStore, image_ids: np.ndarray) -> np.ndarray:
    """Where images are in a store, int64 in the shape of their ids, which are text or numbers; -1 for none."""
    wanted = list(map(str, np.ravel(image_ids).tolist()))
    places = {one: store.index_of(one) if one in store else -1 for one in dict.fromkeys(wanted)}  # each once
    found = np.fromiter(map(places.__getitem__, wanted), dtype=np.int64, count=len(wanted))
    return found.reshape(np.shape(image_ids))


# Files of tags: (place in the file, image id, tags) of each image.

Listed = Iterator[tuple[str, str, list[str]]]


class Tagged(msgspec.Struct, gc=False):
    """A question of one image, or a statement about two, of the published files."""

    img_id: Id | dict[str, Id]
    o: str | dict[str, str]


def _tags_of_json(path: Path) -> Listed:
    content = read_json(path)
    if isinstance(content, list):
        yield from _tags_of_published(path, content)
        return
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a tag file: expected one JSON object of image id → list of tags.")
    for image_id, value in content.items():
        names = value.split(";") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}, image {image_id}: its tags are {value!r}; give a list of names.")
        yield f"{path}", image_id, [name.strip() for name in names if name.strip()]


def _tags_of_published(path: Path, content: list[Any]) -> Listed:
    """Of "img_id" and "o" of each record, which are texts, or texts by side; many records name one image."""
    said: dict[str, str] = {}
    for number, value in enumerate(content, start=1):
        place = f"{path} record {number}"
        try:
            one = msgspec.convert(value, Tagged)
        except msgspec.ValidationError as error:
            raise wrong_value(error, place) from None
        images = one.img_id if isinstance(one.img_id, dict) else {"": one.img_id}
        tags = one.o if isinstance(one.o, dict) else {"": one.o}
        if images.keys() != tags.keys():
            raise UserError(f"{place} has images {sorted(images)} and tags {sorted(tags)}; each image needs its tags.")
        for side, image in images.items():
            before = said.setdefault(image_id := str(image), tags[side])
            if before != tags[side]:
                raise UserError(f"{place} gives image {image_id} other tags than a record before; get the file again.")
    for image_id, text in said.items():
        yield f"{path}", image_id, [name.strip() for name in text.split(";") if name.strip()]


class NamedObject(msgspec.Struct, gc=False):
    name: str = msgspec.field(name="class")


class NamedObjects(msgspec.Struct, gc=False):
    objects: list[NamedObject]


_OBJECTS = msgspec.json.Decoder(NamedObjects | list[NamedObject])


def _tags_of_tsv(path: Path) -> Listed:
    """Of the objects of each image, in their order; an index beside the file is held against it."""
    from vinvl.regions.formats.tsv import held_parts, line_index  # what nobody needs whose store has the classes

    def refuse(error: UserError) -> None:
        raise error

    for before, part in held_parts(path, _scan, line_index(path), 1, refuse):
        lists = iter(part.more)
        for number, image_id, wrong in part.images:
            place = f"{path} line {before + number + 1}"
            if isinstance(wrong, str):
                raise UserError(place + wrong)
            yield place, image_id, next(lists)


def _scan(part: Any) -> Any:
    from vinvl.regions.formats.rows import Done
    from vinvl.regions.formats.tsv import read_part

    names: list[list[str]] = []

    def read(image_id: str, columns: list[bytes]) -> None:
        found = decoded(columns[1] if len(columns) > 1 else b"", _OBJECTS, "column 2")
        names.append([one.name.strip() for one in (found if isinstance(found, list) else found.objects)])

    return read_part(part, read, Done())._replace(more=names)


# The tags that the records of a split carry.

SEPARATOR = "\x1f"


def tags_of_records(records: RecordTable, tokenizer: PreTrainedTokenizerBase, choice: TagChoice) -> GivenTags:
    """Those in the column "tags" or, of records with a left_image_id, "left_tags"; records of one image may differ.

    Raises:
        UserError: the records carry none.
    """
    columns = [name.removesuffix("image_id") + "tags" for name in records.form.images]
    if not all(name in records for name in columns):
        raise UserError(
            f"data.tags={RECORDS}, but {records.describe(0)} carries no tags: pass data.tags=FILE, or data.tags=null "
            "for the classes in the store."
        )
    for name in columns:
        if records.table[name].null_count:
            bare = int(records.table[name].is_null().to_numpy().argmax())
            raise UserError(
                f"data.tags={RECORDS}, but {records.describe(bare)} carries no tags where others do: pass "
                "data.tags=FILE, or data.tags=null for the classes in the store."
            )
    chunks = [chunk for name in columns for chunk in records.table[name].chunks]
    joined = pa.chunked_array([pc.binary_join(chunk, SEPARATOR) for chunk in chunks], pa.string())
    texts, codes = Column(joined).categories()
    lists = TagLists.of_images(len(texts))
    for number, text in enumerate(texts):
        lists.add(number, text.split(SEPARATOR) if text else [])
    by_record = codes.reshape(len(columns), -1).T.ravel().astype(np.int64)
    return replace(lists.tags(tokenizer, choice), list_of=by_record, of_records=True)

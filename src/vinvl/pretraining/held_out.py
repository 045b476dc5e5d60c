"""The images that models are scored on, by every name that a corpus may call them by."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from os.path import splitext
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec
import numpy as np

from vinvl.pictures.containers import SUFFIXES, Entry
from vinvl.pictures.finding import PictureNames, look_for
from vinvl.pictures.likeness import Alike, Looks, looks_of
from vinvl.run.errors import UserError, say
from vinvl.run.files import begins_a_list, read_bytes
from vinvl.run.values import (
    MAX_ID_LENGTH,
    FilledText,
    Id,
    decoded_lines,
    json_items,
    json_listed,
    json_members,
    shown,
    wrong_value,
)

# Names → keys: "coco:391895", "vg:2386621" (also GQA's), "flickr:1000092795", "oi:0013ea2087020901", and as they stand.

NUMBERS = {  # whose numbers plain digits are, by what stands before them or where a row says that it comes from
    "coco": "coco", "coco_captions": "coco", "vqa": "coco", "vqa2": "coco", "vg": "vg", "vg_qa": "vg", "gqa": "vg",
    "flickr": "flickr", "flickr30k": "flickr", "oi": "oi", "openimages": "oi", "open_images": "oi", "sbu": "", "cc": "",
    "googlecc": "", "conceptual_captions": "",
}  # fmt: skip
EVERYBODYS = ("coco", "vg", "flickr")  # where nothing says whose
_COCO = re.compile(r"COCO_(?:train|val|test)\d{4}_0*(\d+)|(0\d{11})")
_FLICKR = re.compile(r"(\d{6,})_[0-9a-f]{8,10}(?:_[a-z])?")  # number, secret and size, as Flickr calls its files
_OPEN_IMAGES = re.compile(r"(?:.*_)?([0-9a-f]{16})")
_DIGITS = re.compile(r"0|[1-9]\d*")


def keys_of(name: str, numbers: str | None = None) -> list[str]:
    """What an image id or the name of a picture's file may be compared by.

    Args:
        name: "coco_391895", "COCO_val2014_000000391895.jpg", "gqa_2386621", "oi_3_0013ea2087020901", "kitchen.png".
        numbers: whose numbers those are that have nothing in front: "coco", "vg" or "flickr"; "" for nobody's; None for
            any of them.
    """
    head, _, rest = name.partition("_")
    if head in NUMBERS and rest:
        numbers = NUMBERS[head]
    stem = PurePosixPath(rest if head in NUMBERS and rest else name).name
    if splitext(stem)[1].lower() in SUFFIXES:
        stem = splitext(stem)[0]
    keys = [] if numbers in EVERYBODYS and _DIGITS.fullmatch(name) else [f"id:{name}"]
    if match := _COCO.fullmatch(stem):
        keys.append(f"coco:{int(match[1] or match[2])}")
    elif match := _OPEN_IMAGES.fullmatch(stem):
        keys.append(f"oi:{match[1]}")
    elif match := _FLICKR.fullmatch(stem):
        keys.append(f"flickr:{match[1]}")
    elif _DIGITS.fullmatch(stem):
        return keys + [f"{whose}:{stem}" for whose in (EVERYBODYS if numbers is None else (numbers,)) if whose]
    if numbers == "vg" and re.fullmatch(r"n\d+", stem):  # of GQA
        keys.append(f"vg:{stem}")
    return keys if stem.isdecimal() else [*keys, f"name:{stem.lower()}"]


def keys_of_address(url: str) -> list[str]:
    """What the address of a picture may be compared by."""
    plain = url.partition("://")[2].removeprefix("www.") or url
    name = PurePosixPath(plain.partition("?")[0]).name
    keys = [f"url:{plain}"]
    if "flickr" in plain.partition("/")[0] and (match := _FLICKR.fullmatch(splitext(name)[0])):
        keys.append(f"flickr:{match[1]}")
    elif "VG_100K" in plain:
        keys += keys_of(name, "vg")
    elif "coco" in plain:
        keys += keys_of(name, "coco")
    return [key for key in keys if not key.startswith(("id:", "name:"))]


class Hit(NamedTuple):
    """An image of a held-out set that a row's image is, and how that was found."""

    held_out: str
    found_by: str  # of WAYS
    image: str


WAYS = ("id", "file name", "address", "link", "picture")
_WAY_OF_KEY = {"name": "file name", "url": "address"}


class HeldOut:
    """Images by their keys.

    Attributes:
        images: of each set, how many.
    """

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self._hits: dict[str, dict[str, Hit]] = {}  # by key, by set
        self.spaces: set[str] = set()  # of keys

    def add(self, held_out: str, keys: Sequence[str], image: str, found_by: str | None = None) -> bool:
        """Whether any of it is new."""
        new = False
        for key in keys:
            space = key.partition(":")[0]
            hits = self._hits.setdefault(key, {})
            if held_out not in hits:
                hits[held_out] = Hit(held_out, found_by or _WAY_OF_KEY.get(space, "id"), image)
                self.spaces.add(space)
                new = True
        return new

    def find(self, keys: Sequence[str]) -> dict[str, Hit]:
        """By set; of several ways by which an image is found the first of WAYS."""
        found: dict[str, Hit] = {}
        for key in keys:
            for held_out, hit in self._hits.get(key, {}).items():
                other = found.get(held_out)
                if other is None or WAYS.index(hit.found_by) < WAYS.index(other.found_by):
                    found[held_out] = hit
        return found


# The sets, in their official files. Each reader gives the split, a name for people, and keys.

Named = Iterator[tuple[str, str, list[str]]]


class AskedImage(msgspec.Struct, gc=False):
    image_id: Id


class GqaImage(msgspec.Struct, gc=False):
    imageId: Id  # noqa: N815


class NamedPair(msgspec.Struct, gc=False):
    identifier: FilledText
    left_url: str | None = None
    right_url: str | None = None


class ListedImage(msgspec.Struct, gc=False):
    """Of COCO, Karpathy's splits or NoCaps."""

    id: Id | None = None
    cocoid: Id | None = None
    filename: FilledText | None = None
    file_name: FilledText | None = None
    split: str | None = None
    open_images_id: FilledText | None = None
    flickr_url: str | None = None
    coco_url: str | None = None


class PassedOver(msgspec.Struct, gc=False):
    """An item of a list that nobody wants, and that is too long to be read as one value."""


def _vqa(path: Path, splits: Sequence[str]) -> Named:
    for _, one in json_listed(path, {"questions": AskedImage}, ["questions"], "give the questions of VQA"):
        yield "", str(one.image_id), keys_of(str(one.image_id), "coco")


def _gqa(path: Path, splits: Sequence[str]) -> Named:
    for number, (_, value) in enumerate(json_members(path, "question ids with their questions"), start=1):
        try:
            one = msgspec.convert(value, GqaImage)
        except msgspec.ValidationError as error:
            raise wrong_value(error, f"{path} record {number}") from None
        yield "", str(one.imageId), keys_of(str(one.imageId), "vg")


def _nlvr2(path: Path, splits: Sequence[str]) -> Named:
    for _, one in decoded_lines(path, msgspec.json.Decoder(NamedPair)):
        pair = one.identifier.rpartition("-")[0]
        for side, url in enumerate((one.left_url, one.right_url)):
            name = f"{pair}-img{side}"
            yield "", name, keys_of(name) + (keys_of_address(url) if url else [])


def _images(path: Path) -> Iterator[ListedImage]:
    kind = "a dataset_*.json of Karpathy's, or captions, instances or image infos of COCO or NoCaps"
    kinds = {"images": ListedImage, "annotations": PassedOver}
    return (one for key, one in json_listed(path, kinds, ["images"], f"give {kind}") if key == "images")


def _coco(path: Path, splits: Sequence[str]) -> Named:
    for number, one in enumerate(_images(path), start=1):
        image_id, name = one.cocoid if one.id is None else one.id, one.filename or one.file_name
        if image_id is None:
            raise UserError(f"{path} image {number} has neither id nor cocoid; give a file of COCO.")
        if one.split is None or one.split in splits:
            yield (
                one.split or "",
                str(image_id),
                keys_of(str(image_id), "coco") + (keys_of(name, "coco") if name else []),
            )


def _flickr30k(path: Path, splits: Sequence[str]) -> Named:
    for number, one in enumerate(_images(path), start=1):
        if one.filename is None or one.split is None:
            raise UserError(f"{path} image {number} has no filename and split; give dataset_flickr30k.json.")
        if one.split in splits:
            yield one.split, one.filename, keys_of(one.filename, "flickr")


def _nocaps(path: Path, splits: Sequence[str]) -> Named:
    for number, one in enumerate(_images(path), start=1):
        name = one.open_images_id or one.file_name
        if name is None:
            raise UserError(f"{path} image {number} has neither open_images_id nor file_name; give a file of NoCaps.")
        yield "", name, keys_of(name, "oi")


def _ids(path: Path, splits: Sequence[str]) -> Named:
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8: give a list of image ids or file names, one a line.") from None
    for number, line in enumerate(lines, start=1):
        if name := line.strip():
            if name[0] in "{[" or "\0" in name or ("://" not in name and len(name) > MAX_ID_LENGTH):
                raise UserError(f"{path} line {number} is {shown(name)}: give image ids or file names, one a line.")
            yield "", name, keys_of_address(name) if "://" in name else keys_of(name)


def _picture_name(entry: Entry) -> str:
    return entry.name if entry.kind != "path" else PictureNames().image_id(entry)


def _pictures(path: Path, splits: Sequence[str]) -> Named:
    for entry in look_for(path)[0]:
        yield "", entry.name, keys_of(PurePosixPath(entry.name).name)


Read = Callable[[Path, Sequence[str]], Named]
FORMS: Mapping[str, tuple[Read, tuple[str, ...]]] = {  # with the splits that are taken where none are named
    "vqa": (_vqa, ()),
    "gqa": (_gqa, ()),
    "nlvr2": (_nlvr2, ()),
    "coco": (_coco, ("val", "test")),
    "flickr30k": (_flickr30k, ("test",)),
    "nocaps": (_nocaps, ()),
    "ids": (_ids, ()),
    "pictures": (_pictures, ()),
}


def take_set(held: HeldOut, given: str) -> Path | None:
    """Adds what `given`, "coco=FILE" or "coco:val,test=FILE", names; the folder of its pictures, if that is what it is.

    Raises UserError for another form, a file that is not of it, a split that it does not have, and no images.
    """
    form, _, file = given.partition("=")
    form, colon, named = form.partition(":")
    if form not in FORMS or not file or (colon and not FORMS[form][1]):
        split = " (of coco and flickr30k also FORM:SPLIT,SPLIT=FILE)"
        raise UserError(f"--held-out {given} is no set: give FORM=FILE{split} with a FORM of {', '.join(FORMS)}.")
    read, splits = FORMS[form]
    splits = tuple(named.split(",")) if colon else splits
    path, seen, before = Path(file), set[tuple[str, str]](), set(held.images)
    for split, image, keys in read(path, splits):
        held_out = f"{form} {path.name}{f' {split}' if split else ''}"
        if held_out in before:  # of another folder
            held_out = f"{form} {path}{f' {split}' if split else ''}"
        if held_out in before:
            raise UserError(f"--held-out {given} is given more than once; give each set once.")
        held.add(held_out, keys, image)
        if (split, image) not in seen:
            seen.add((split, image))
            held.images[held_out] = held.images.get(held_out, 0) + 1
    there = {split for split, _ in seen}
    if missing := [split for split in named.split(",") if colon and split not in there]:
        raise UserError(f"{path} has no image of the split {missing[0]!r}.")
    if not seen:
        raise UserError(f"{path} names no image; give the file of a set of the form {form}.")
    return path if form == "pictures" else None


# One picture under several numbers.


class ImageNumbers(msgspec.Struct, gc=False):
    """Of Visual Genome's image_data.json."""

    image_id: Id
    coco_id: Id | None = None
    flickr_id: Id | None = None


def _linked(path: Path) -> Iterator[list[str]]:
    if begins_a_list(path):
        for one in json_items(path, ImageNumbers, "Visual Genome's images"):
            ids = {"vg": one.image_id, "coco": one.coco_id, "flickr": one.flickr_id}
            yield [f"{whose}:{value}" for whose, value in ids.items() if value is not None]
    else:
        for image in _images(path):
            if image.id is not None:
                urls = [url for url in (image.flickr_url, image.coco_url) if url]
                yield [f"coco:{image.id}", *(key for url in urls for key in keys_of_address(url))]


def take_links(held: HeldOut, paths: Sequence[Path]) -> int:
    """Adds the other names of held-out images, until there is nothing to add; how many images got one.

    Args:
        paths: Visual Genome's image_data.json, which knows COCO's and Flickr's numbers, and files of COCO with
            "flickr_url" of each image.

    Raises:
        UserError: a file is none of these.
    """
    added = 0
    while paths:
        before = added
        for path in paths:
            for keys in _linked(path):
                hits = held.find(keys)
                news = [held.add(name, keys, hit.image, "link") for name, hit in hits.items()]
                added += any(news)
        if added == before:
            break
    return added


# Pictures that look alike.


def take_alike(held: HeldOut, held_out: Sequence[Path], pictures: Sequence[str], most: int, workers: int) -> np.ndarray:
    """Adds the names of a corpus's pictures that look like held-out ones.

    Args:
        held_out: folders that `take_set` has taken.
        pictures: "SOURCE", or "PREFIX=SOURCE" where the corpus has that in front of ids.
        most: of the 64 bits may differ.

    Returns:
        (n,) int64, sorted: numbers of the keys of all pictures, see `has_picture`.
    """
    names, waves, plain = list[tuple[str, str]](), [], 0
    for path in held_out:
        entries = {entry.place: entry for entry in look_for(path)[0] if not entry.problem}
        held_out_name = f"pictures {path if f'pictures {path}' in held.images else path.name}"
        for looks in looks_of([*entries], workers):
            plain += _told(looks)
            names += [(held_out_name, entries[place].name) for place in looks.places]
            waves.append(looks.waves)
    if not names:
        raise UserError(f"{held_out[0]} has no picture that can be compared: give pictures of more than one colour.")
    alike, seen = Alike(np.concatenate(waves), most), array("q")
    for given in pictures:
        prefix, equals, source = given.partition("=")
        prefix, source = (prefix, source) if equals else ("", given)
        entries = {entry.place: entry for entry in look_for(source)[0] if not entry.problem}
        for looks in looks_of([*entries], workers):
            plain += _told(looks)
            keys = [keys_of(prefix + _picture_name(entries[place]), "") for place in looks.places]
            seen.extend(hash(key) for of_one in keys for key in of_one)
            for own, other, bits in alike.pairs(looks.waves).tolist():
                held.add(names[other][0], keys[own], f"{names[other][1]} ({bits} bits differ)", "picture")
    if plain:
        say(f"{plain:,} pictures are of one colour, and were compared with none.")
    return np.unique(np.array(seen, dtype=np.int64))


def has_picture(keys: Sequence[str], pictures: np.ndarray) -> bool:
    """Whether one of the keys is among those of `take_alike`."""
    wanted = np.array([hash(key) for key in keys], dtype=np.int64)
    places = np.searchsorted(pictures, wanted)
    return bool((pictures[np.minimum(places, len(pictures) - 1)] == wanted).any()) if len(pictures) else False


def _told(looks: Looks) -> int:
    """Warns of broken pictures; how many are of one colour."""
    for sentence in looks.broken:
        say(f"warning: {sentence}", error=True)
    return looks.plain

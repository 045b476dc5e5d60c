"""The pictures that a store was made of, found by what their names and its ids have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from vinvl.pictures.containers import SUFFIXES, Entry, name_of
from vinvl.pictures.finding import PictureNames, look_for
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

NUMBER = r"0*(\d+)$"


class Match(NamedTuple):
    """The picture of each image that has one, by the image's index in the store, and by which rule it was found."""

    places: dict[int, str]
    told: str


class Way(NamedTuple):
    """What of a picture's name is to be the same as what of an id, behind something that all ids have in front."""

    told: str
    of_picture: Callable[[Entry], str]  # raises UserError where nothing is
    of_id: Callable[[str], tuple[str, str]]  # → what stands in front of it, and what is compared


def pictures_of_store(store: RegionStore, source: str | Path, names: PictureNames | None = None) -> Match:
    """`pictures_of` the images of a store; of several rules the one that it was made with comes first."""
    return pictures_of(store.image_ids.tolist(), repr(store), source, names, store.provenance.get("image_id"))


def pictures_of(
    ids: Sequence[str], whose: str, source: str | Path, names: PictureNames | None = None, said: object = None
) -> Match:
    """The pictures of a source (`look_for`) that are of images with these ids.

    Without `names` that rule is taken by which most images have a picture; of several the one that is `said` to be
    theirs, or else the plainest. A name or a number that two pictures have is none's.

    Raises UserError if there are no pictures, none fits, or ids with two beginnings fit equally well.
    """
    entries, best, doubtful = look_for(source)[0], Match({}, ""), ""
    for way in [_exact(names)] if names else _ways(said):
        places, beginnings = _matched(ids, entries, way)
        if len(beginnings) > 1:
            first, second = (f"{one}…" for one in beginnings[:2])
            doubtful = doubtful or f"pictures of {source} fit ids like {first!r} and {second!r} by {way.told}"
        elif len(places) > len(best.places):
            best = Match(places, way.told + (f" behind {beginnings[0]!r}" if beginnings[0] else ""))
        if len(best.places) == min(len(entries), len(ids)):
            break
    if not best.places and len(ids):
        like, first = ids[0], name_of(entries[0].place)
        nothing = f"{source} has no picture of {whose}, whose ids are like {like!r}; the first picture is {first}"
        raise UserError(f"{doubtful or nothing}: pass id.rule, id.pattern or id.prefix.")
    told = f"{len(best.places):,} of {len(ids):,} images of {whose} have a picture in {source}, by {best.told}"
    return Match(best.places, told)


def _ways(said: object) -> Iterable[Way]:
    """First as the store says that its ids were made, if it does."""
    usual = [_exact(PictureNames(rule)) for rule in ("stem", "path", "file")]
    with suppress(UserError, TypeError):  # of another version; it is only a help
        if isinstance(said, dict):
            usual.insert(0, _exact(PictureNames(**said)))
    number = PictureNames(pattern=NUMBER).image_id
    return [
        *usual,
        Way("their names", PictureNames().image_id, lambda one: _split(one, r"([^/]+)$")),
        Way("the numbers at the end of names and ids", number, lambda one: _split(one, NUMBER)),
    ]


def _exact(names: PictureNames) -> Way:
    settings = ("id.rule", names.rule), ("id.pattern", names.pattern), ("id.prefix", names.prefix)
    return Way(" ".join(f"{key}={value}" for key, value in settings if value), names.image_id, lambda one: ("", one))


def _split(image_id: str, pattern: str) -> tuple[str, str]:
    stem, suffix = os.path.splitext(image_id)
    found = re.search(pattern, stem if suffix.lower() in SUFFIXES else image_id)
    return ("", "") if found is None else (image_id[: found.start()], found[1])


def _matched(ids: Iterable[str], entries: list[Entry], way: Way) -> tuple[dict[int, str], list[str]]:
    """The places of pictures, and what the ids of their images begin with: several where it is not clear which."""
    pictures: dict[str, str | None] = {}
    for entry in entries:
        with suppress(UserError):
            key = way.of_picture(entry)
            pictures[key] = None if key in pictures or entry.problem else entry.place
    found: dict[str, dict[int, str]] = {}
    for index, image_id in enumerate(ids):
        beginning, key = way.of_id(image_id)
        if (place := pictures.get(key)) is not None:
            found.setdefault(beginning, {})[index] = place
    ordered = sorted(found, key=lambda one: -len(found[one]))
    everything = list(chain.from_iterable(one.values() for one in found.values()))
    if len(set(everything)) == len(everything):  # as ids of COCO's train and val are, which share no numbers
        together = {index: place for one in ordered for index, place in found[one].items()}
        return together, ordered if len(ordered) == 1 else [""]
    best = [one for one in ordered if len(found[one]) == len(found[ordered[0]])]
    return found[best[0]], best

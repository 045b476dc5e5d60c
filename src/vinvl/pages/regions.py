"""A store and the pictures that it was made of → a page for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vinvl.pages.pages import RegionPicture, write_region_page
from vinvl.pages.summary import summarise
from vinvl.pictures import (
    EXIF_APPLY,
    EXIF_IGNORE,
    PILLOWS_LIMIT,
    PictureNames,
    ReadingOptions,
    find_pictures,
    picture_size,
    read_picture,
)
from vinvl.regions.shard import IdLookup
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError


def report_regions(
    stores: str | Path | Sequence[str | Path],
    output: Path,
    *,
    images: str | None = None,
    names: PictureNames | None = None,
    ids: Sequence[str] | None = None,
    count: int = 60,
    seed: int = 0,
    max_pixels: int = PILLOWS_LIMIT,
) -> int:
    """Writes the page; returns how many pictures it shows.

    Args:
        stores: file or folder of shards, or several.
        output: the HTML file.
        images: folder, list file or picture; None draws the boxes on grey.
        names: how ids follow from the pictures' places; None: as the store says it was made, else the file's stem.
        ids: images to show; None draws `count` of those whose pictures are there.
        seed: of the drawing.
        max_pixels: of pictures; larger ones are not shown.

    Raises:
        UserError: a store or picture folder that cannot be read, or an id that is not in the store.
    """
    store = RegionStore(stores)
    store.require_sound()
    made = store.provenance
    places = _places(store, images, names or _names_of(made.get("image_id"))) if images is not None else None
    wanted = _wanted(store, places, ids, count, seed)
    said = made.get("exif_orientation")  # else as published, or unturned where only that fits
    turnings = (said,) if said in (EXIF_APPLY, EXIF_IGNORE) else (EXIF_APPLY, EXIF_IGNORE)
    readings = [ReadingOptions(turning, max_pixels=max_pixels) for turning in turnings]  # type: ignore[arg-type]
    shown = [_with_picture(store, index, places, readings) for index in wanted]
    title = f"Regions of {', '.join(str(header.path.name) for header in store.headers[:3])}"
    more = f" and {len(store.headers) - 3} more" if len(store.headers) > 3 else ""
    summary = summarise(store, seed=seed)
    write_region_page(output, title + more, shown, summary, store.label_map, store.detector, made)
    return len(shown)


def _names_of(said: object) -> PictureNames:
    """How the store's ids follow from places, if it says so."""
    if isinstance(said, dict) and set(said) == {"rule", "pattern"}:
        try:
            return PictureNames(**said)
        except (UserError, TypeError):
            pass  # of another version; it is a help only
    return PictureNames()


def _places(store: RegionStore, images: str, names: PictureNames) -> dict[int, str]:
    """The picture of each image of the store that has one, by the image's index."""
    lookup = IdLookup(store.encoded_ids)
    pictures = find_pictures(images, names)
    found = {
        index: path
        for image_id, path in zip(pictures.ids, pictures.paths, strict=True)
        if (index := lookup.find(image_id)) >= 0
    }
    if not found and len(store):
        like = f"ids like {pictures.ids[0]!r}" if len(pictures) else "none with a usable id"
        raise UserError(
            f"images={images} has no picture of the store, whose ids are like {store.at(0).image_id!r}; the pictures "
            f"give {like}: pass id.rule or id.pattern."
        )
    return found


def _wanted(
    store: RegionStore, places: dict[int, str] | None, ids: Sequence[str] | None, count: int, seed: int
) -> list[int]:
    if ids is not None:
        return [store.index_of(image_id) for image_id in ids]
    candidates = np.arange(len(store)) if places is None else np.array(sorted(places), dtype=np.int64)
    chosen = np.random.default_rng(seed).permutation(candidates)[:count]
    return sorted(chosen.tolist())


def _with_picture(
    store: RegionStore, index: int, places: dict[int, str] | None, readings: Sequence[ReadingOptions]
) -> RegionPicture:
    regions = store.at(index)
    if places is None:
        return RegionPicture(regions, None)
    path = places.get(index)
    if path is None:
        return RegionPicture(regions, None, "its picture is not among the images")
    size = (regions.width, regions.height)
    try:
        reading = next((one for one in readings if picture_size(path, one) == size), readings[0])
        picture = read_picture(path, reading)
    except UserError as error:
        return RegionPicture(regions, None, str(error))
    return RegionPicture(regions, picture, "" if picture.size == size else _other_size(picture, *size))


def _other_size(picture: Image.Image, width: int, height: int) -> str:
    told = f"the store says {width} × {height} pixels, the picture has {picture.width} × {picture.height}"
    if picture.size == (height, width):
        return f"{told}: it was turned on the way (EXIF orientation)"
    return f"{told}: it is another picture, or another size of it"

"""A picture with its regions, as the pages draw it: what the macros of `pieces.html` take."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vinvl.pictures import EXIF_APPLY, EXIF_IGNORE, ReadingOptions, picture_size, read_picture
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

LONGEST_SIDE = 640  # pixels of the pictures in a page
ATTRIBUTES_SHOWN = 3
WIDE, LETTER, LINE = 360.0, 6.6, 16.0  # about so many pixels on the screen: a picture, a letter, the height of a name


def drawn(
    image_id: str,
    path: str | None,
    readings: Sequence[ReadingOptions],
    regions: Regions | None = None,
    labels: LabelMap | None = None,
    side: int = LONGEST_SIDE,
    wide: float = WIDE,
) -> dict[str, Any]:
    """What a page shows of an image, whose picture or regions or both are known.

    Args:
        path: of its picture, "" if it has none among those given, None if none are given.
        readings: how pictures may have been read; the first counts where none gives the size that the regions have.
        side: the most pixels that the picture in the page is wide or high.
        wide: about how many pixels of the screen it will take.
    """
    size = None if regions is None else (regions.width, regions.height)
    picture, note = _picture(path, size, readings)
    width, height = size or (picture.size if picture is not None else (0, 0))
    source = jpeg(picture, width, height, side) if width else ""
    return {"id": image_id, "note": note, **with_regions(source, width, height, regions, labels, wide)}


def with_regions(
    source: str, width: int, height: int, regions: Regions | None, labels: LabelMap | None = None, wide: float = WIDE
) -> dict[str, Any]:
    """A picture as the value of an `src`, in which these regions are drawn; `wide` as `drawn` has it."""
    named = [] if regions is None else [_region(regions, number, labels) for number in range(len(regions))]
    _place_names(named, width, height, wide)
    return {"source": source, "width": width, "height": height, "regions": named}


def readings_of(store: RegionStore | None, max_pixels: int) -> list[ReadingOptions]:
    """How a store's pictures may have been read: as it says, else as published, or unturned where only that fits."""
    said = None if store is None else store.provenance.get("exif_orientation")
    turnings = (said,) if said in (EXIF_APPLY, EXIF_IGNORE) else (EXIF_APPLY, EXIF_IGNORE)
    return [ReadingOptions(turning, max_pixels=max_pixels) for turning in turnings]  # type: ignore[arg-type]


def jpeg(picture: Image.Image | None, width: int, height: int, side: int) -> str:
    """A picture, or grey of a size, as the value of an `src`."""
    if picture is None:
        shrunk = min(1.0, side / max(width, height))
        picture = Image.new("RGB", (max(1, round(width * shrunk)), max(1, round(height * shrunk))), "#e8e8e8")
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return as_source("image/jpeg", file.getvalue())


def as_source(media_type: str, content: bytes) -> str:
    """Bytes as the value of an `src`."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(
    path: str | None, size: tuple[int, int] | None, readings: Sequence[ReadingOptions]
) -> tuple[Image.Image | None, str]:
    """The picture of an image, if there is one, and what is odd about it."""
    if not path:
        return None, "" if path is None else "its picture is not among the images"
    try:
        reading = next((one for one in readings if size and picture_size(path, one) == size), readings[0])
        picture = read_picture(path, reading)
    except UserError as error:
        return None, str(error)
    if size is None or picture.size == size:
        return picture, ""
    why = "it is another picture, or another size of it"
    if picture.size == size[::-1]:
        why = "it was turned on the way (EXIF orientation)"
    told = f"the store says {size[0]} × {size[1]} pixels, the picture has {picture.width} × {picture.height}"
    return picture, f"{told}: {why}"


def _region(regions: Regions, number: int, labels: LabelMap | None) -> dict[str, Any]:
    x1, y1, x2, y2 = regions.boxes[number].tolist()
    scored = zip(regions.attributes[number].tolist(), regions.attribute_scores[number].tolist(), strict=True)
    index, known = int(regions.classes[number]), labels or LabelMap()
    attributes = [(name_of_class(known.attributes, attribute), score) for attribute, score in scored if score > 0]
    return {
        "number": number,
        # of no class: its own number
        "tag": name_of_class(known.classes, index) if index or known.classes else f"#{number}",
        "score": float(regions.class_scores[number]),
        "attributes": attributes[:ATTRIBUTES_SHOWN],
        "x": x1,
        "y": y1,
        "width": max(0.0, x2 - x1),
        "height": max(0.0, y2 - y1),
        "area": (x2 - x1) * (y2 - y1),
        # Colours that differ from those of the regions before: by the golden angle around the circle of hues.
        "colour": f"hsl({number * 137.5 % 360:.0f} 85% 45%)",
    }


def name_of_class(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"number {index}"


def _place_names(regions: list[dict[str, Any]], width: int, height: int, wide: float) -> None:
    """Says of each region where its name stands, in percent, and whether it is free: no better one's is there."""
    taken = list[tuple[float, float, float, float]]()
    scale = wide / max(width, 1)
    for one in sorted(regions, key=lambda region: (-region["score"], region["number"])):
        length = LETTER * len(one["tag"]) + 10
        to_left = one["x"] + one["width"] / 2 > width / 2  # it ends where the box ends, and so within the picture
        right = min(one["x"] + one["width"], width)
        left = (right * scale - length) if to_left else max(one["x"], 0) * scale
        top = min(max(one["y"], 0) * scale, max(height * scale - LINE, 0))
        own = (left, top, left + length, top + LINE)
        one["free"] = all(_apart(own, other) for other in taken)
        if one["free"]:
            taken.append(own)
        side = ("right", 100 - 100 * right / max(width, 1)) if to_left else ("left", 100 * left / wide)
        one["name_place"] = f"{side[0]}:{side[1]:.1f}%;top:{100 * top / scale / max(height, 1):.1f}%"


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]

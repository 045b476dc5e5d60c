"""Pages for a person to look at, each one HTML file with everything in it, which can be moved and mailed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from vinvl.regions.regions import LabelMap, Regions
from vinvl.run.files import write_text_atomically

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
LONGEST_SIDE = 640  # pixels of the pictures in the page of regions
TOLD = (  # of a provenance, what a person looks at first
    "weights", "weights_sha256", "nms_filter", "boxes", "score_threshold", "min_boxes", "max_boxes", "min_size",
    "max_size", "pad_multiple", "colour_order", "exif_orientation", "precision", "made",
)  # fmt: skip
ATTRIBUTES_SHOWN = 3


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture file with a model's caption and what people wrote."""

    picture: Path
    caption: str
    references: Sequence[str]

    @property
    def source(self) -> str:
        return _source(MEDIA_TYPES[self.picture.suffix.lower()], self.picture.read_bytes())


@dataclass(frozen=True)
class RegionPicture:
    """An image's regions, and the picture if there is one; `note` says what is odd about it."""

    regions: Regions
    picture: Image.Image | None
    note: str = ""


@dataclass(frozen=True)
class Sign:
    """One figure, what it is, and, if it looks bad, what may be wrong."""

    name: str
    value: str
    warning: str = ""


@dataclass(frozen=True)
class RegionSummary:
    """What is in a store, from a sample of its images.

    Attributes:
        images: looked at.
        signs: figures for a person.
        region_counts: number of regions → images with that number.
        tags, attributes: the commonest names with their shares of all regions.
    """

    images: int
    signs: tuple[Sign, ...]
    region_counts: dict[int, int]
    tags: tuple[tuple[str, float], ...]
    attributes: tuple[tuple[str, float], ...]


def write_caption_page(path: Path, title: str, pictures: Sequence[CaptionedPicture]) -> None:
    """Captions next to their pictures.

    Raises:
        UserError: the file cannot be written.
    """
    _write_page(path, "captions.html", title=title, pictures=pictures)


def write_region_page(
    path: Path,
    title: str,
    pictures: Sequence[RegionPicture],
    summary: RegionSummary,
    label_map: LabelMap,
    detector: str,
    provenance: Mapping[str, Any],
) -> None:
    """Figures of the whole store first, then pictures with the boxes, tags and attributes of their regions.

    Raises:
        UserError: the file cannot be written.
    """
    told = {name: _short(provenance[name]) for name in TOLD if name in provenance}
    shown = [_shown(one, label_map) for one in pictures]
    _write_page(path, "regions.html", title=title, pictures=shown, summary=summary, detector=detector, told=told)


def _write_page(path: Path, template: str, **content: Any) -> None:
    """Writes a page completely or not at all."""
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    write_text_atomically(path, pages.get_template(template).render(content))


def _shown(one: RegionPicture, label_map: LabelMap) -> dict[str, Any]:
    """What the page says of a picture."""
    regions = one.regions
    small = (one.picture or Image.new("RGB", (regions.width, regions.height), "#e8e8e8")).convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return {
        "id": regions.image_id,
        "width": regions.width,
        "height": regions.height,
        "note": one.note,
        "source": _source("image/jpeg", file.getvalue()),
        "regions": [_region(regions, number, label_map) for number in range(len(regions))],
    }


def _region(regions: Regions, number: int, label_map: LabelMap) -> dict[str, Any]:
    x1, y1, x2, y2 = regions.boxes[number].tolist()
    scored = zip(regions.attributes[number].tolist(), regions.attribute_scores[number].tolist(), strict=True)
    attributes = [(_name(label_map.attributes, attribute), score) for attribute, score in scored if score > 0]
    return {
        "number": number,
        "tag": _name(label_map.classes, int(regions.classes[number])),
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


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"number {index}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"


def _source(media_type: str, content: bytes) -> str:
    """Bytes as the value of an `src`."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"

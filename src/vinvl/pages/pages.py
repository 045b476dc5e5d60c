"""Pages for a person to look at, each one HTML file with everything in it, which can be moved and mailed.

Captions beside their pictures; and a store with the pictures that it was made of, by which a person sees whether its
features are sane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader

from vinvl.pages.drawn import as_source, drawn, name_of_class, readings_of
from vinvl.pictures import PILLOWS_LIMIT, PictureNames, pictures_of_store
from vinvl.regions.regions import Regions
from vinvl.regions.store import RegionStore
from vinvl.run.files import write_text_atomically

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
TOLD = (  # of a provenance, what a person looks at first
    "weights", "weights_sha256", "nms_filter", "boxes", "given_boxes", "score_threshold", "min_boxes", "max_boxes",
    "min_size", "max_size", "pad_multiple", "colour_order", "exif_orientation", "precision", "made",
)  # fmt: skip
LEAST_BOXES = 10  # what published pipelines keep of any image, however unsure they are
SURE = 0.2  # the published score threshold
PAIRS = 200  # regions of which features are compared
SAMPLED_IMAGES = 2_000


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture file with a model's caption and what people wrote."""

    picture: Path
    caption: str
    references: Sequence[str]

    @property
    def source(self) -> str:
        return as_source(MEDIA_TYPES[self.picture.suffix.lower()], self.picture.read_bytes())


class Sign(NamedTuple):
    """One figure, what it is, and, if it looks bad, what may be wrong."""

    name: str
    value: str
    warning: str = ""


class RegionSummary(NamedTuple):
    """What is in a store, from a sample of its images."""

    images: int  # looked at
    signs: tuple[Sign, ...]  # figures for a person
    region_counts: dict[int, int]  # number of regions → images with that number
    tags: tuple[tuple[str, float], ...]  # the commonest names with their shares of all regions
    attributes: tuple[tuple[str, float], ...]


def write_page(path: Path, template: str, **content: Any) -> None:
    """Writes a page, of pages/TEMPLATE, completely or not at all; UserError if the file cannot be written."""
    write_text_atomically(path, rendered(template, **content))


def rendered(template: str, **content: Any) -> str:
    """The text that pages/TEMPLATE makes of its content, everything in which is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(template).render(content)


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
) -> tuple[int, str]:
    """Writes the page of a store: figures of the whole first, then pictures.

    Returns how many pictures it shows, and by which rule they were found.

    Raises UserError for a store or picture folder that cannot be read, or an id that is not in the store.

    Args:
        stores: file or folder of shards, or several.
        output: the HTML file.
        images: a source of pictures (`look_for`); None draws the boxes on grey.
        names: how ids follow from the pictures' places; None: see `pictures_of_store`.
        ids: images to show; None draws `count` of those whose pictures are there.
        seed: of the drawing.
        max_pixels: of pictures; larger ones are not shown.
    """
    store = RegionStore(stores)
    store.require_sound()
    made = store.provenance
    found = None if images is None else pictures_of_store(store, images, names)
    places = None if found is None else found.places
    readings = readings_of(store, max_pixels)
    if ids is not None:
        wanted = [store.index_of(image_id) for image_id in ids]
    else:
        candidates = np.arange(len(store)) if places is None else np.array(sorted(places), dtype=np.int64)
        wanted = sorted(np.random.default_rng(seed).permutation(candidates)[:count].tolist())

    def shown(index: int) -> dict[str, Any]:
        regions, path = store.at(index), None if places is None else places.get(index, "")
        return drawn(regions.image_id, path, readings, regions, store.label_map)

    more = f" and {len(store.headers) - 3} more" if len(store.headers) > 3 else ""
    write_page(
        output,
        "regions.html",
        title=f"Regions of {', '.join(header.path.name for header in store.headers[:3])}{more}",
        pictures=[shown(index) for index in wanted],
        summary=summarise(store, seed=seed),
        detector=store.detector,
        told={name: _short(made[name]) for name in TOLD if name in made},
    )
    return len(wanted), "" if found is None else found.told


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"


# Figures of a store by which a person sees whether its features are sane.


def summarise(store: RegionStore, most: int = 30, seed: int = 0) -> RegionSummary:
    """Looks at up to `SAMPLED_IMAGES` images, drawn at random; `most` names are listed."""
    rng = np.random.default_rng(seed)
    images = [store.at(int(index)) for index in np.sort(rng.permutation(len(store))[:SAMPLED_IMAGES])]
    counts = np.array([len(regions) for regions in images], dtype=np.int64)
    scores = np.concatenate([np.zeros(0, np.float32), *(regions.class_scores for regions in images)])
    classes, attributes = Counter[int](), Counter[int]()
    for regions in images:
        classes.update(regions.classes.tolist())
        attributes.update(regions.attributes[regions.attribute_scores > 0].tolist())
    outside = np.mean([_sticks_out(regions) for regions in images] or [0.0])
    signs = [
        *_count_signs(counts),
        *_score_signs(scores, counts),
        Sign("boxes that stick out of their picture by more than 1 %", f"{100 * outside:.1f} %"),
        _name_sign(classes, len(store.label_map.classes)),
        *_feature_signs([regions.features for regions in images if len(regions)], rng),
    ]
    named = [
        _commonest(*one, most) for one in ((classes, store.label_map.classes), (attributes, store.label_map.attributes))
    ]
    return RegionSummary(len(images), tuple(signs), dict(sorted(Counter(counts.tolist()).items())), *named)


def _count_signs(counts: np.ndarray) -> Iterator[Sign]:
    if len(counts) == 0:
        yield Sign("regions an image", "none", "the store has no images")
        return
    empty = int((counts == 0).sum())
    spread = f"{counts.min()} to {counts.max()}, {counts.mean():.1f} on average"
    yield Sign("regions an image", spread, f"{empty:,} images have no region at all" if empty else "")


def _score_signs(scores: np.ndarray, counts: np.ndarray) -> Iterator[Sign]:
    if len(scores) == 0 or not scores.any():
        yield Sign("class scores", "none are stored")
        return
    unsure, at_least = float((scores < SURE).mean()), float((counts == LEAST_BOXES).mean())
    warning = (
        "most images have just the least number of boxes: the detector saw little in them, for example if they had "
        "another colour order or size than those it was trained on"
    )
    yield Sign("class scores", f"{scores.mean():.2f} on average, {100 * unsure:.0f} % below {SURE}")
    warning = warning if at_least >= 0.5 else ""
    yield Sign(f"images with just {LEAST_BOXES} regions", f"{100 * at_least:.0f} %", warning)


def _name_sign(classes: Mapping[int, int], known: int) -> Sign:
    total = sum(classes.values())
    if total == 0 or set(classes) <= {0}:
        return Sign("kinds of tags", "none are stored", "models that use tags would see none")
    commonest = max(classes.values()) / total
    of_all = f" of {known - 1:,}" if known > 1 else ""
    value = f"{len(classes) - (0 in classes):,}{of_all}; the commonest has {100 * commonest:.0f} %"
    alone = commonest > 0.5 and len(classes) > 1
    return Sign("kinds of tags", value, "one tag for most regions: the detector saw little" if alone else "")


def _feature_signs(rows: list[np.ndarray], rng: np.random.Generator) -> Iterator[Sign]:
    if not rows:
        return
    sample = np.concatenate([image[: max(1, PAIRS // len(rows) + 1)] for image in rows[:PAIRS]]).astype(np.float32)
    sample = sample[rng.permutation(len(sample))[:PAIRS]]
    zeros, norms = float((sample == 0).mean()), np.linalg.norm(sample, axis=1)
    directions = sample / np.maximum(norms, 1e-6)[:, None]
    alike = (directions @ directions.T)[np.triu_indices(len(sample), 1)]
    cosine = float(alike.mean()) if len(alike) else 0.0
    figures = f"{sample.min():.2f} to {sample.max():.2f}, norm {norms.mean():.1f}, {100 * zeros:.0f} % zeros"
    yield Sign("features", figures, "" if np.isfinite(sample).all() else "some are NaN or infinite")
    warning = "all regions look the same to a model" if cosine > 0.95 else ""
    yield Sign("likeness of two regions' features", f"cosine {cosine:.2f} on average", warning)


def _sticks_out(regions: Regions) -> float:
    """The share of an image's boxes."""
    boxes, size = regions.boxes, np.array([regions.width, regions.height] * 2, dtype=np.float32)
    return float(((boxes < -0.01 * size) | (boxes > 1.01 * size)).any(axis=1).mean()) if len(boxes) else 0.0


def _commonest(counts: Counter[int], names: Sequence[str], most: int) -> tuple[tuple[str, float], ...]:
    total = max(1, sum(counts.values()))
    named = [(name_of_class(names, index), count / total) for index, count in counts.most_common(most + 1) if index]
    return tuple(named[:most])

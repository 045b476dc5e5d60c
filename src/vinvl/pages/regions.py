"""A store and the pictures that it was made of → a page by which a person sees whether its features are sane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from vinvl.pages.pages import RegionPicture, RegionSummary, Sign, write_region_page
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
        names: how ids follow from the pictures' places; None: as the store says it was made, or
            else by the file's name, the number at its end, or its path.
        ids: images to show; None draws `count` of those whose pictures are there.
        seed: of the drawing.
        max_pixels: of pictures; larger ones are not shown.

    Raises:
        UserError: a store or picture folder that cannot be read, or an id that is not in the store.
    """
    store = RegionStore(stores)
    store.require_sound()
    made = store.provenance
    places = None if images is None else _places(store, images, [names] if names else _names(made.get("image_id")))
    said = made.get("exif_orientation")  # else as published, or unturned where only that fits
    turnings = (said,) if said in (EXIF_APPLY, EXIF_IGNORE) else (EXIF_APPLY, EXIF_IGNORE)
    readings = [ReadingOptions(turning, max_pixels=max_pixels) for turning in turnings]  # type: ignore[arg-type]
    if ids is not None:
        wanted = [store.index_of(image_id) for image_id in ids]
    else:
        candidates = np.arange(len(store)) if places is None else np.array(sorted(places), dtype=np.int64)
        wanted = sorted(np.random.default_rng(seed).permutation(candidates)[:count].tolist())
    shown = [_with_picture(store, index, places, readings) for index in wanted]
    title = f"Regions of {', '.join(str(header.path.name) for header in store.headers[:3])}"
    more = f" and {len(store.headers) - 3} more" if len(store.headers) > 3 else ""
    write_region_page(output, title + more, shown, summarise(store, seed=seed), store.label_map, store.detector, made)
    return len(shown)


def _names(said: object) -> list[PictureNames]:
    """How the store's ids may follow from places: as it says, if it does, and in the usual ways."""
    usual = [PictureNames(), PictureNames(pattern=r"0*(\d+)$"), PictureNames("path"), PictureNames("file")]
    if isinstance(said, dict) and set(said) == {"rule", "pattern"}:
        with suppress(UserError, TypeError):  # of another version; it is only a help
            return [PictureNames(**said), *usual]
    return usual


def _places(store: RegionStore, images: str, ways: Sequence[PictureNames]) -> dict[int, str]:
    """The picture of each image of the store that has one, by the image's index; ids as the first way that finds any.

    Raises:
        UserError: no way finds any, with what is wrong by the first of them.
    """
    lookup, problem = IdLookup(store.encoded_ids), ""
    for way in ways:
        try:
            pictures = find_pictures(images, way)
        except UserError as error:
            problem = problem or str(error)
            continue
        at = zip(map(lookup.find, pictures.ids), pictures.paths, strict=True)
        if (found := {index: path for index, path in at if index >= 0}) or not len(store):
            return found
        like = f"ids like {pictures.ids[0]!r}" if len(pictures) else "none with a usable id"
        problem = problem or (
            f"images={images} has no picture of the store, whose ids are like {store.at(0).image_id!r}; the pictures "
            f"give {like}: pass id.rule or id.pattern."
        )
    raise UserError(problem)


def _with_picture(
    store: RegionStore, index: int, places: dict[int, str] | None, readings: Sequence[ReadingOptions]
) -> RegionPicture:
    regions = store.at(index)
    if places is None:
        return RegionPicture(regions, None)
    if index not in places:
        return RegionPicture(regions, None, "its picture is not among the images")
    path, size = places[index], (regions.width, regions.height)
    try:
        reading = next((one for one in readings if picture_size(path, one) == size), readings[0])
        picture = read_picture(path, reading)
    except UserError as error:
        return RegionPicture(regions, None, str(error))
    if picture.size == size:
        return RegionPicture(regions, picture)
    why = "it is another picture, or another size of it"
    if picture.size == size[::-1]:
        why = "it was turned on the way (EXIF orientation)"
    told = f"the store says {size[0]} × {size[1]} pixels, the picture has {picture.width} × {picture.height}"
    return RegionPicture(regions, picture, f"{told}: {why}")


# Figures of a store by which a person sees whether its features are sane.


LEAST_BOXES = 10  # what published pipelines keep of any image, however unsure they are
SURE = 0.2  # the published score threshold
PAIRS = 200  # regions of which features are compared
SAMPLED_IMAGES = 2_000


def summarise(store: RegionStore, most: int = 30, seed: int = 0) -> RegionSummary:
    """Looks at up to `SAMPLED_IMAGES` images, drawn at random; `most` names are listed."""
    rng = np.random.default_rng(seed)
    wanted = np.sort(rng.permutation(len(store))[:SAMPLED_IMAGES])
    images = [store.at(int(index)) for index in wanted]
    counts = np.array([len(regions) for regions in images], dtype=np.int64)
    scores = _joined([regions.class_scores for regions in images])
    classes, attributes = Counter[int](), Counter[int]()
    for regions in images:
        classes.update(regions.classes.tolist())
        attributes.update(regions.attributes[regions.attribute_scores > 0].tolist())
    outside = np.mean([_sticks_out(regions.boxes, regions.width, regions.height) for regions in images] or [0.0])
    rows = [regions.features for regions in images if len(regions)]
    signs = [
        *_count_signs(counts),
        *_score_signs(scores, counts),
        Sign("boxes that stick out of their picture by more than 1 %", f"{100 * outside:.1f} %"),
        *_name_signs(classes, len(store.label_map.classes)),
        *(_feature_signs(rows, rng) if rows else ()),
    ]
    return RegionSummary(
        images=len(images),
        signs=tuple(signs),
        region_counts=dict(sorted(Counter(counts.tolist()).items())),
        tags=_commonest(classes, store.label_map.classes, most),
        attributes=_commonest(attributes, store.label_map.attributes, most),
    )


def _count_signs(counts: np.ndarray) -> list[Sign]:
    if len(counts) == 0:
        return [Sign("regions an image", "none", "the store has no images")]
    empty = int((counts == 0).sum())
    spread = f"{counts.min()} to {counts.max()}, {counts.mean():.1f} on average"
    return [Sign("regions an image", spread, f"{empty:,} images have no region at all" if empty else "")]


def _score_signs(scores: np.ndarray, counts: np.ndarray) -> list[Sign]:
    if len(scores) == 0 or not scores.any():
        return [Sign("class scores", "none are stored")]
    unsure = float((scores < SURE).mean())
    at_least = float((counts == LEAST_BOXES).mean())
    warning = (
        "most images have just the least number of boxes: the detector saw little in them, for example if they had "
        "another colour order or size than those it was trained on"
    )
    return [
        Sign("class scores", f"{scores.mean():.2f} on average, {100 * unsure:.0f} % below {SURE}"),
        Sign(f"images with just {LEAST_BOXES} regions", f"{100 * at_least:.0f} %", warning if at_least >= 0.5 else ""),
    ]


def _name_signs(classes: Counter[int], known: int) -> list[Sign]:
    total = sum(classes.values())
    if total == 0 or set(classes) <= {0}:
        return [Sign("kinds of tags", "none are stored", "models that use tags would see none")]
    commonest = classes.most_common(1)[0][1] / total
    of_all = f" of {known - 1:,}" if known > 1 else ""
    value = f"{len(classes) - (0 in classes):,}{of_all}; the commonest has {100 * commonest:.0f} %"
    warning = "one tag for most regions: the detector saw little" if commonest > 0.5 and len(classes) > 1 else ""
    return [Sign("kinds of tags", value, warning)]


def _feature_signs(rows: list[np.ndarray], rng: np.random.Generator) -> list[Sign]:
    sample = np.concatenate([image[: max(1, PAIRS // len(rows) + 1)] for image in rows[:PAIRS]]).astype(np.float32)
    sample = sample[rng.permutation(len(sample))[:PAIRS]]
    finite = bool(np.isfinite(sample).all())
    zeros, norms = float((sample == 0).mean()), np.linalg.norm(sample, axis=1)
    directions = sample / np.maximum(norms, 1e-6)[:, None]
    alike = directions @ directions.T
    mean_cosine = float(alike[np.triu_indices(len(sample), 1)].mean()) if len(sample) > 1 else 0.0
    return [
        Sign(
            "features",
            f"{sample.min():.2f} to {sample.max():.2f}, norm {norms.mean():.1f}, {100 * zeros:.0f} % zeros",
            "" if finite else "some are NaN or infinite",
        ),
        Sign(
            "likeness of two regions' features",
            f"cosine {mean_cosine:.2f} on average",
            "all regions look the same to a model" if mean_cosine > 0.95 else "",
        ),
    ]


def _sticks_out(boxes: np.ndarray, width: int, height: int) -> float:
    """The share of an image's boxes."""
    size = np.array([width, height, width, height], dtype=np.float32)
    return float(((boxes < -0.01 * size) | (boxes > 1.01 * size)).any(axis=1).mean()) if len(boxes) else 0.0


def _commonest(counts: Counter[int], names: tuple[str, ...], most: int) -> tuple[tuple[str, float], ...]:
    total = max(1, sum(counts.values()))
    named = [(index, count / total) for index, count in counts.most_common(most + 1) if index]
    return tuple((names[index] if index < len(names) else f"number {index}", share) for index, share in named[:most])


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.float32)

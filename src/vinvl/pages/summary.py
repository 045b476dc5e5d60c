"""Figures of a store of regions by which a person sees whether its features are sane."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from vinvl.regions.store import RegionStore

LEAST_BOXES = 10  # what published pipelines keep of any image, however unsure they are
SURE = 0.2  # the published score threshold
PAIRS = 200  # regions of which features are compared
SAMPLED_IMAGES = 2_000


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

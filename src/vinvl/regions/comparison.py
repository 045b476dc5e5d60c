"""Do two stores hold the same features of the same images? Made by two detectors, or twice by one, they should."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vinvl.regions.regions import Regions
from vinvl.regions.shard import IdLookup
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

SAME_BOX = 0.9  # IoU from which two regions count as one
ALIKE = 0.99  # cosine from which two features count as one, rounding aside


@dataclass(frozen=True)
class Comparison:
    """What a sample of the images that both stores hold has in common.

    Attributes:
        shared: images that both hold.
        images: of these, looked at.
        regions: (of the first, of the second) in them.
        same_box: share of the first's regions that the second has with an IoU of at least `SAME_BOX`.
        same_tag: of these regions, the share with the same class name; nan if a store has no names.
        cosine: of these regions' features: mean, and what 95 % of them reach; nan if there are none.
        norm_ratio: mean ratio of the norms of these features, the second's to the first's.
        other_sizes: images whose width or height differ.
    """

    shared: int
    images: int
    regions: tuple[int, int]
    same_box: float
    same_tag: float
    cosine: tuple[float, float]
    norm_ratio: float
    other_sizes: int

    @property
    def verdict(self) -> str:
        """What the figures say, for a person."""
        if self.other_sizes > self.images // 10:
            return "many images differ in size: the pictures were turned or resized for one of the stores"
        if not self.same_box > 0.5:
            return "the boxes differ: another detector, other thresholds or NMS, or other preprocessing"
        if not self.cosine[0] > 0.9:
            return "boxes agree and features do not: the features of other boxes, another layer, or other preprocessing"
        if self.cosine[1] < ALIKE or self.same_box < 0.95 or not 0.99 < self.norm_ratio < 1.01:
            return "much alike, and not the same: other padding, precision or resizing, or another set of boxes"
        return "the same features, rounding aside"

    def rows(self) -> list[tuple[str, str]]:
        """(what, figure) for a person."""
        return [
            ("images in both", f"{self.shared:,}, {self.images:,} of them looked at"),
            ("regions", f"{self.regions[0]:,} and {self.regions[1]:,}"),
            (f"same boxes (IoU {SAME_BOX})", f"{100 * self.same_box:.1f} % of the first's"),
            ("same tags in these", f"{100 * self.same_tag:.1f} %"),
            ("cosine of features", f"{self.cosine[0]:.4f} on average, 95 % above {self.cosine[1]:.4f}"),
            ("ratio of norms", f"{self.norm_ratio:.4f}"),
            ("images of another size", f"{self.other_sizes:,}"),
            ("this says", self.verdict),
        ]


def compare_stores(first: RegionStore, second: RegionStore, most: int = 500, seed: int = 0) -> Comparison:
    """Compares up to `most` images that both hold, drawn at random.

    Raises:
        UserError: no image is in both, their features are of different dimensions, or one is damaged.
    """
    for store in (first, second):
        store.require_sound()
    if first.feature_dim != second.feature_dim:
        raise UserError(
            f"{first!r} and {second!r} cannot hold the same features: their dimensions are {first.feature_dim} and "
            f"{second.feature_dim}."
        )
    lookup = IdLookup(second.encoded_ids)
    positions = [(index, lookup.find(str(image_id))) for index, image_id in enumerate(first.image_ids)]
    shared = [pair for pair in positions if pair[1] >= 0]
    if not shared:
        raise UserError(f"{first!r} and {second!r} have no image in common: their ids may be written in other ways.")
    chosen = np.random.default_rng(seed).permutation(len(shared))[:most]
    pairs = [(first.at(shared[i][0]), second.at(shared[i][1])) for i in sorted(chosen.tolist())]
    names = first.label_map.classes, second.label_map.classes
    matches = [_match(one, other, names) for one, other in pairs]
    same_box = np.concatenate([match.same_box for match in matches])
    cosines = np.concatenate([match.cosines for match in matches])
    ratios = np.concatenate([match.ratios for match in matches])
    tags = np.concatenate([match.same_tag for match in matches])
    return Comparison(
        shared=len(shared),
        images=len(pairs),
        regions=(sum(len(one) for one, _ in pairs), sum(len(other) for _, other in pairs)),
        same_box=_mean(same_box),
        same_tag=_mean(tags) if all(names) else float("nan"),
        cosine=(_mean(cosines), float(np.quantile(cosines, 0.05)) if len(cosines) else float("nan")),
        norm_ratio=_mean(ratios),
        other_sizes=sum((one.width, one.height) != (other.width, other.height) for one, other in pairs),
    )


@dataclass(frozen=True)
class _Match:
    """Of one image: whether each region of the first is in the second, (R,), and of those that are, (m,) each."""

    same_box: np.ndarray
    same_tag: np.ndarray
    cosines: np.ndarray
    ratios: np.ndarray


def _match(one: Regions, other: Regions, names: tuple[tuple[str, ...], tuple[str, ...]]) -> _Match:
    nothing = np.zeros(0)
    if len(one) == 0 or len(other) == 0:
        return _Match(np.zeros(len(one), dtype=bool), nothing, nothing, nothing)
    overlaps = _iou(one.boxes.astype(np.float64), other.boxes.astype(np.float64))
    features = other.features.astype(np.float32)
    # Several classes of one box come as several regions: of boxes that fit alike, the one with the likest feature.
    own = one.features.astype(np.float32)
    norms = np.linalg.norm(own, axis=1)[:, None], np.linalg.norm(features, axis=1)[None]
    cosines = own @ features.T / np.maximum(norms[0] * norms[1], 1e-12)
    best = np.where(overlaps >= overlaps.max(axis=1, keepdims=True) - 1e-3, cosines, -np.inf).argmax(axis=1)
    rows = np.arange(len(one))
    same_box = overlaps[rows, best] >= SAME_BOX
    kept, partner = rows[same_box], best[same_box]
    tags = [
        _name(names[0], int(a)) == _name(names[1], int(b))
        for a, b in zip(one.classes[kept], other.classes[partner], strict=True)
    ]
    ratios = norms[1][0, partner] / np.maximum(norms[0][kept, 0], 1e-12)
    return _Match(same_box, np.array(tags, dtype=bool), cosines[kept, partner], ratios)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) overlap of boxes (N, 4) and (M, 4); 0 with empty boxes."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def _name(names: tuple[str, ...], index: int) -> str:
    return names[index].strip().lower() if index < len(names) else ""


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")

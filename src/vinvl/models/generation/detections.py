"""From detected objects to the constraints of a caption."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from vinvl.errors import UserError

# Classes of Open Images that captions seldom name: parts of bodies and things, and groups too wide to be seen as one.
TOO_GENERIC = frozenset(
    """auto part|bathroom accessory|bicycle wheel|boy|building|clothing|door handle|fashion accessory|footwear|girl|
hiking equipment|human arm|human beard|human body|human ear|human eye|human face|human foot|human hair|human hand|
human head|human leg|human mouth|human nose|land vehicle|mammal|man|person|personal care|plant|plumbing fixture|
seat belt|skull|sports equipment|tire|tree|vehicle registration plate|wheel|woman""".replace("\n", "").split("|")
)


def constraints_from_detections(
    classes: Sequence[str],
    scores: np.ndarray,
    boxes: np.ndarray,
    *,
    parents: Mapping[str, str] | None = None,
    synonyms: Mapping[str, str] | None = None,
    excluded: Collection[str] = TOO_GENERIC,
    max_constraints: int = 3,
    threshold: float = 0.85,
) -> list[str]:
    """The classes that an image's caption should name, the surest first (the NoCaps baseline, Agrawal et al. 2019).

    Excluded classes go first. Of two boxes that are nearly the same, the one whose class is an ancestor of the other's
    in the hierarchy goes: a dog is not also an animal. What remains is renamed, each label counted once with its best
    score, and cut to the best `max_constraints`.

    Args:
        classes: (n) class names; compared in lower case.
        scores: (n,) float; detections of score 0 are padding.
        boxes: (n, 4) float, x1, y1, x2, y2.
        parents: the class hierarchy: each class's parent. No suppression if not given.
        synonyms: what captions call a class, where not by its name ("kitchen & dining room table": "table").
        excluded: classes that set no constraint.
        threshold: boxes overlapping by more than this (intersection over union) are the same thing.

    Raises:
        UserError: arrays of different lengths, or a hierarchy with a circle.
    """
    scores, boxes = np.asarray(scores, dtype=np.float64), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(classes) == len(scores) == len(boxes):
        raise UserError(
            f"An image has {len(classes)} detected classes, {len(scores)} scores and {len(boxes)} boxes; give one each."
        )
    names = [name.lower() for name in classes]
    hierarchy = {child.lower(): parent.lower() for child, parent in (parents or {}).items()}
    unwanted = {name.lower() for name in excluded}
    renamed = {name.lower(): label for name, label in (synonyms or {}).items()}

    kept = [index for index, name in enumerate(names) if scores[index] > 0 and name not in unwanted]
    overlaps = box_overlaps(boxes[kept])
    ancestors = [_ancestors(names[index], hierarchy) for index in kept]
    best: dict[str, float] = {}
    for place, index in enumerate(kept):
        is_suppressed = any(
            names[index] in ancestors[other] and overlaps[place, other] > threshold for other in range(len(kept))
        )
        if not is_suppressed:
            label = renamed.get(names[index], names[index])
            best[label] = max(best.get(label, 0.0), float(scores[index]))
    return sorted(best, key=lambda label: -best[label])[:max_constraints]


def box_overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of boxes (n, 4): (n, n), 0 where both are empty."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1)
    joint = areas[:, None] + areas[None, :] - shared
    return np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)


def _ancestors(name: str, parents: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    while name in parents:
        name = parents[name]
        if name in found:
            raise UserError(f"The class hierarchy goes in a circle at {name!r}; every class needs a way to the top.")
        found.add(name)
    return found

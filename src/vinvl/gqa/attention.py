"""What an answer attended to, as GQA's grounding wants it: boxes of regions with weights that add up to 1."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.run.files import atomic_write

BOX = 4  # of the numbers of a region's geometry, which begin with x1/W, y1/H, x2/W, y2/H


def region_attention(batch: Batch, attended: Tensor) -> list[np.ndarray]:
    """Of each example, (R, 5) float64: x1, y1, x2, y2 of its regions in shares of the image, and their attention.

    The attention is that of [CLS], whose state the answer is read from, in the last layer: the mean over its heads,
    divided by the sum over the example's regions.

    Args:
        attended: (B, heads, L + R) float32, as `VinVLModel.recorded_attention` has them.
    """
    weights = attended.mean(dim=1)[:, batch.input_ids.shape[1] :]  # (B, R)
    flat = weights.flatten()[batch.regions.places].double().cpu().numpy()  # (ΣR,)
    boxes = batch.regions.geometry[:, :BOX].double().cpu().numpy()
    ends = np.cumsum(batch.regions.counts)[:-1]
    return [
        np.concatenate([of[0], (of[1] / max(of[1].sum(), np.finfo(np.float64).tiny))[:, None]], axis=1)
        for of in zip(np.split(boxes, ends), np.split(flat, ends), strict=True)
    ]


def write_attention(path: Path, rows: Iterable[tuple[str | int, Sequence[Sequence[float]]]]) -> None:
    """Writes question ids and (R, 5) numbers as the official script reads them (its option objectFeatures)."""
    with atomic_write(path) as file:
        file.write("[")
        for number, (question_id, cells) in enumerate(rows):
            one = {"questionId": str(question_id), "attention": [[round(x, 8) for x in cell] for cell in cells]}
            file.write((",\n" if number else "\n") + json.dumps(one))
        file.write("\n]\n")

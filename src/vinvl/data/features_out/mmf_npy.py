"""A store → `ID.npy` and `ID_info.npy` for each image, as MMF reads them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vinvl.data.store import RegionStore
from vinvl.errors import UserError


def write_mmf_npy(store: RegionStore, folder: Path) -> None:
    """Writes an image after the other into a folder that is there and empty; "val/42" becomes `val/42.npy`.

    ID.npy       (R, D) float32
    ID_info.npy  {"bbox" (R, 4) in pixels, "num_boxes", "objects" (R,), "cls_prob" (R,), "image_width", "image_height",
                 and of a store with attributes "attributes" and "attribute_scores" (R, K)}; classes as in the store,
                 0 is the background ("class_offset" 0 tells the way back so)

    Raises:
        UserError: an image id cannot be a path below the folder, or two would be one file.
    """
    for number in range(len(store)):
        regions = store.at(number)
        path = folder / f"{_safe(regions.image_id, regions.source)}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise UserError(f"{regions.source}: image {regions.image_id!r} would be written over another: {path.name}.")
        info: Any = {
            "bbox": np.array(regions.boxes),
            "num_boxes": len(regions),
            "objects": np.array(regions.classes),
            "class_offset": 0,
            "cls_prob": np.array(regions.class_scores),
            "image_width": regions.width,
            "image_height": regions.height,
        }
        if store.num_attributes:
            info |= {
                "attributes": np.array(regions.attributes),
                "attribute_scores": np.array(regions.attribute_scores),
            }
        np.save(path, regions.features.astype(np.float32))
        np.save(path.with_name(f"{path.stem}_info.npy"), info)


def _safe(image_id: str, source: str) -> str:
    parts = PurePosixPath(image_id).parts
    unfit = image_id.startswith("/") or ".." in parts or "\\" in image_id or not image_id.isprintable()
    if unfit or image_id.endswith("_info"):
        raise UserError(f"{source}: image {image_id!r} has an id that is no name of a file below the folder.")
    return image_id

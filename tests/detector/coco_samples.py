"""A small COCO instances file with attributes, and its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.picture_samples import gradient, save

SIZES = {1: (40, 30), 2: (30, 60), 7: (50, 50), 9: (80, 40)}  # of image ids; 9 has no objects


def instances() -> dict[str, Any]:
    """Three pictures with objects, one with a crowd, one without anything."""
    return {
        "images": [
            {"id": number, "file_name": f"sub/{number:03d}.png", "width": size[0], "height": size[1]}
            for number, size in SIZES.items()
        ],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "attributes": [{"id": 3, "name": "small"}, {"id": 1, "name": "black"}],
        "annotations": [
            {"id": 10, "image_id": 2, "category_id": 5, "bbox": [1, 2, 10, 20.5], "attributes": ["small", 1]},
            {"id": 11, "image_id": 1, "category_id": 2, "bbox": [0, 0, 40, 30], "attributes": ["black"]},
            {"id": 12, "image_id": 2, "category_id": 2, "bbox": [5, 5, 20, 20], "iscrowd": 1},
            {"id": 13, "image_id": 7, "category_id": 5, "bbox": [-0.5, 10, 51, 1], "attributes": []},
        ],
    }


def write(folder: Path, content: Any = None) -> tuple[Path, Path]:
    """The annotation file and the folder of pictures."""
    path = folder / "instances.json"
    path.write_text(json.dumps(instances() if content is None else content))
    for number, size in SIZES.items():
        save(folder / "pictures" / "sub" / f"{number:03d}.png", gradient(*size))
    return path, folder / "pictures"

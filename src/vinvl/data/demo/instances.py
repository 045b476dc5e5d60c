"""The demo world as pictures with annotated objects: COCO instances JSON with colours and textures as attributes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vinvl.data.demo.detection import ATTRIBUTES, CLASSES
from vinvl.data.demo.generate import image_file_name
from vinvl.data.demo.paths import SPLITS, DemoWorld
from vinvl.data.demo.world import ensure_demo_world
from vinvl.data.json_files import read_json
from vinvl.files import write_text_atomically


def ensure_demo_instances(
    folder: Path,
    *,
    seed: int,
    num_train_images: int,
    num_val_images: int,
    num_test_images: int,
    questions_per_image: int,
) -> DemoWorld:
    """The demo world of these sizes with its annotated objects; both are made where they are missing.

    The annotations lie in the world's folder and go with it when another world is made there. Arguments and errors are
    those of `ensure_demo_world`.
    """
    world = ensure_demo_world(
        folder,
        seed=seed,
        num_train_images=num_train_images,
        num_val_images=num_val_images,
        num_test_images=num_test_images,
        questions_per_image=questions_per_image,
    )
    for split in SPLITS:
        if not world.instances(split).exists():
            content = instances(read_json(world.scenes(split))["scenes"])
            write_text_atomically(world.instances(split), json.dumps(content))
    return world


def instances(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """What a COCO instances file says of scenes, which are in the layout of the demo world's scene files.

    A box is the square around the object's circle, as in the demo's region stores, also where the object is smaller or
    lies under another one.
    """
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        for thing in scene["objects"]:
            side = 2 * thing["radius"]
            corner = (thing["x"] - thing["radius"], thing["y"] - thing["radius"])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene["image_id"],
                    "category_id": CLASSES.index(thing["shape"]),
                    "bbox": [round(value, 2) for value in (*corner, side, side)],
                    "area": round(side * side, 2),
                    "iscrowd": 0,
                    "attributes": [thing["colour"], thing["texture"]],
                }
            )
    return {
        "info": {"description": "Generated demo world."},
        "images": [
            {
                "id": scene["image_id"],
                "file_name": image_file_name(scene["image_id"]),
                "width": scene["width"],
                "height": scene["height"],
            }
            for scene in scenes
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES) if index > 0],
        "attributes": [{"id": index, "name": name} for index, name in enumerate(ATTRIBUTES) if index > 0],
        "annotations": annotations,
    }
